package playbooks

// Outcome is what became of a step; the vocabulary is the same everywhere.
type Outcome string

// The outcomes.
const (
	OutcomeSucceeded  Outcome = "succeeded"  // done; it changes nothing, so there is no effect to verify
	OutcomeChanged    Outcome = "changed"    // applied and verified
	OutcomeUnverified Outcome = "unverified" // applied, effect cannot be observed
	OutcomeUnchanged  Outcome = "unchanged"  // it was so already
	OutcomeProposed   Outcome = "proposed"   // phase or budget does not allow it; planned for real
	OutcomeDenied     Outcome = "denied"     // asked, and the answer was no or none came
	OutcomeRefused    Outcome = "refused"    // the action or a guard will not
	OutcomeFailed     Outcome = "failed"     // tried, and failed after its retries; what it did is undone
	OutcomeSkipped    Outcome = "skipped"    // its `if` was false
)

// Outcomes lists every outcome, the best first. Where a step has several targets its own outcome is the worst of
// theirs, which is the later in this list.
var Outcomes = []Outcome{
	OutcomeSkipped, OutcomeUnchanged, OutcomeSucceeded, OutcomeChanged, OutcomeUnverified, OutcomeProposed, OutcomeDenied, OutcomeRefused, OutcomeFailed,
}

// ReasonPaused begins the reason of every containment that was refused because people paused new containments: by it those
// are found again when the pause ends.
const ReasonPaused = "new containments are paused"

// GuardKillSwitch is the guard that refuses them.
const GuardKillSwitch = "kill-switch"

// Description says what the outcome means, for people.
func (o Outcome) Description() string {
	switch o {
	case OutcomeSucceeded:
		return "done; it changes nothing, so there is no effect to verify"
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

// RunsOnFailure tells whether the step's `on_failure` runs.
func (o Outcome) RunsOnFailure() bool { return o == OutcomeRefused || o == OutcomeFailed }

// RunsOnDenied tells whether the step's `on_denied` runs.
func (o Outcome) RunsOnDenied() bool { return o == OutcomeDenied }

// HasOutputs tells whether the step's outputs may be read.
func (o Outcome) HasOutputs() bool {
	return o == OutcomeSucceeded || o == OutcomeChanged || o == OutcomeUnverified || o == OutcomeUnchanged || o == OutcomeProposed
}

// WorseOf is the worse of two outcomes; "" is better than any.
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
