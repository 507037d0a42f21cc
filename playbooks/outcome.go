package playbooks

// Outcome is the result of a step. YAML, reports, the audit and the command line use the same values.
type Outcome string

// The outcomes.
const (
	OutcomeSucceeded  Outcome = "succeeded"  // done; there is no effect to verify
	OutcomeChanged    Outcome = "changed"    // applied and verified
	OutcomeUnverified Outcome = "unverified" // applied; the effect cannot be observed
	OutcomeUnchanged  Outcome = "unchanged"  // the target already had this state
	OutcomeProposed   Outcome = "proposed"   // the phase or the budget does not allow it; planned only
	OutcomeDenied     Outcome = "denied"     // not approved, or the approval timed out
	OutcomeRefused    Outcome = "refused"    // the action or a guard refused it
	OutcomeFailed     Outcome = "failed"     // failed after all retries; partial effects are undone
	OutcomeSkipped    Outcome = "skipped"    // its `if` was false
)

// Outcomes lists every outcome, best first. A step with several targets has the worst outcome of theirs, the one that
// is later in this list.
var Outcomes = []Outcome{
	OutcomeSkipped, OutcomeUnchanged, OutcomeSucceeded, OutcomeChanged, OutcomeUnverified, OutcomeProposed, OutcomeDenied,
	OutcomeRefused, OutcomeFailed,
}

// ReasonPaused is the prefix of the reason of every containment that was refused while new containments were paused.
// Package display uses it to list these containments after the pause.
const ReasonPaused = "new containments are paused"

// GuardKillSwitch is the guard that refuses containments while new containments are paused.
const GuardKillSwitch = "kill-switch"

// Description returns what the outcome means, for people.
func (o Outcome) Description() string {
	switch o {
	case OutcomeSucceeded:
		return "done; the action changes nothing, so there is no effect to verify"
	case OutcomeChanged:
		return "applied, and the effect was verified"
	case OutcomeUnverified:
		return "applied, but the effect could not be verified; the reason says why"
	case OutcomeUnchanged:
		return "already in the requested state (joins the lease if there is one)"
	case OutcomeProposed:
		return "not allowed by the phase or the budget; planned, and recorded as \"would have\""
	case OutcomeDenied:
		return "the approval was denied or timed out"
	case OutcomeRefused:
		return "rejected by the action or a guard, with the reason"
	case OutcomeFailed:
		return "failed after all retries; partial effects are undone"
	case OutcomeSkipped:
		return "its `if` was false"
	}
	return ""
}

// RunsOnFailure reports whether the step's `on_failure` runs.
func (o Outcome) RunsOnFailure() bool { return o == OutcomeRefused || o == OutcomeFailed }

// RunsOnDenied reports whether the step's `on_denied` runs.
func (o Outcome) RunsOnDenied() bool { return o == OutcomeDenied }

// HasOutputs reports whether expressions may read the step's outputs.
func (o Outcome) HasOutputs() bool {
	return o == OutcomeSucceeded || o == OutcomeChanged || o == OutcomeUnverified || o == OutcomeUnchanged ||
		o == OutcomeProposed
}

// WorseOf returns the worse of two outcomes. "" is better than any other.
func (o Outcome) WorseOf(other Outcome) Outcome {
	if outcomeRank(other) > outcomeRank(o) {
		return other
	}
	return o
}

func outcomeRank(o Outcome) int {
	for i, known := range Outcomes {
		if o == known {
			return i
		}
	}
	return -1
}
