// Package display decides how a person, a target, an outcome, a vote, a lease and an incident's state are written, so
// that the command line, Slack, tickets, mail, the audit and simulation say the same of the same thing. Durations are
// written by sensors/duration.
//
// It refuses markup and escaping: what it returns is plain text that may hold an attacker's words, and whoever shows it
// makes it safe for where it is shown.
package display

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/duration"
)

// FormatPerson names a person and how it was proved who they are: "alice (uid 1000 on the local socket)".
func FormatPerson(name, proved string) string {
	if proved == "" {
		return name
	}
	return fmt.Sprintf("%s (%s)", name, proved)
}

// TargetName names the target with an ShortTargetID as people know it, from the incident that it belongs to.
func TargetName(in playbooks.Incident, id string) string {
	for _, t := range in.Targets {
		if t.ID() == id {
			return t.String()
		}
	}
	if kind, uid, _ := strings.Cut(id, ":"); playbooks.TargetKind(kind) == playbooks.TargetWorkload && in.Workload.Name != "" && (in.Workload.UID == uid || uid == "") {
		return "workload " + in.Workload.String()
	}
	return ShortTargetID(id)
}

// ShortTargetID is a target's ShortTargetID where its name is not known: its kind and the beginning of its identifier.
func ShortTargetID(id string) string {
	kind, uid, ok := strings.Cut(id, ":")
	switch {
	case !ok:
		return id
	case playbooks.TargetKind(kind) == playbooks.TargetIncident:
		return "the incident"
	}
	const enough = 12 // of a container's id, as container runtimes show it
	return kind + " " + uid[:min(enough, len(uid))]
}

// DescribeOutcome says in prose what became of a step; contains is true of steps whose verb is `contain`.
func DescribeOutcome(o playbooks.Outcome, contains bool) string {
	switch o {
	case playbooks.OutcomeChanged:
		if contains {
			return "applied and verified"
		}
		return "succeeded"
	case playbooks.OutcomeUnverified:
		return "applied, not verified"
	case playbooks.OutcomeUnchanged:
		return "was in force already"
	case playbooks.OutcomeProposed:
		return "proposed, not done"
	case playbooks.OutcomeDenied:
		return "denied"
	case playbooks.OutcomeRefused:
		return "refused"
	case playbooks.OutcomeFailed:
		return "failed"
	case playbooks.OutcomeSkipped:
		return "skipped"
	}
	return string(o)
}

// isContainment reports whether a step contains something. Reports from before steps named their verb are known by their lease.
func isContainment(s playbooks.StepReport) bool {
	return s.Verb == playbooks.VerbContain || s.Verb == "" && s.LeaseID != ""
}

// IsContainmentInForce reports whether a step's containment was in force when it ended.
func IsContainmentInForce(s playbooks.StepReport) bool {
	switch s.Outcome {
	case playbooks.OutcomeChanged, playbooks.OutcomeUnverified, playbooks.OutcomeUnchanged:
		return isContainment(s)
	case playbooks.OutcomeProposed, playbooks.OutcomeDenied, playbooks.OutcomeRefused, playbooks.OutcomeFailed, playbooks.OutcomeSkipped:
	}
	return false
}

// DescribeStepOutcome says what became of a step, without its name: "applied and verified", "refused: the budget is spent". An
// approval that was given says who gave it.
func DescribeStepOutcome(s playbooks.StepReport) string {
	if s.Action == approvalActionName && s.Outcome == playbooks.OutcomeChanged {
		return cmp.Or(s.Reason, "approved")
	}
	return withReason(DescribeOutcome(s.Outcome, isContainment(s)), s.Reason)
}

const (
	approvalActionName = "approval"
	stopActionName     = "stop"
)

func withReason(what, reason string) string {
	if reason == "" {
		return what
	}
	return what + ": " + reason
}

// notConfiguredPattern is how a refusal ends whose reason is that something optional is not there.
var notConfiguredPattern = regexp.MustCompile(`^no .* (is|are) (configured|connected)`)

// IsNotConfigured reports whether a step was refused only because something optional is not there, such as tickets or a cluster: that
// is worth a remark and says nothing of how the incident ended.
func IsNotConfigured(s playbooks.StepReport) bool {
	return s.Outcome == playbooks.OutcomeRefused && s.Verb != playbooks.VerbContain && s.LeaseID == "" && notConfiguredPattern.MatchString(s.Reason)
}

// SummarizeRun says in one line how a playbook's run stands or ended: what it contained first, then what kept it from more, then
// remarks.
func SummarizeRun(in playbooks.Incident, r playbooks.PlaybookRun) string {
	var contained, kept, problems, remarks []string // kept from containing
	stopped := ""
	var last playbooks.StepReport
	for _, s := range r.Steps {
		switch what := stepName(s); {
		case s.Action == stopActionName && s.Outcome != playbooks.OutcomeSkipped:
			stopped = withReason("stopped, "+DescribeOutcome(s.Outcome, false), s.Reason)
		case IsContainmentInForce(s):
			contained = append(contained, fmt.Sprintf("%s of %s %s", what, TargetName(in, s.Target), DescribeOutcome(s.Outcome, true)))
		case IsNotConfigured(s):
			remarks = append(remarks, fmt.Sprintf("%s was left out: %s", what, s.Reason))
		case !s.Outcome.RunsOnFailure() && !s.Outcome.RunsOnDenied() && s.Outcome != playbooks.OutcomeProposed:
			last = s
		case isContainment(s) && s.Target != "":
			kept = append(kept, fmt.Sprintf("%s of %s %s", what, TargetName(in, s.Target), withReason(DescribeOutcome(s.Outcome, true), s.Reason)))
		case isContainment(s):
			kept = append(kept, what+" "+withReason(DescribeOutcome(s.Outcome, true), s.Reason))
		default:
			problems = append(problems, what+" "+withReason(DescribeOutcome(s.Outcome, false), s.Reason))
		}
	}
	problems = append(kept, problems...)
	var parts []string
	if len(contained) > 0 {
		parts = append(parts, "contained: "+joinLimited(contained))
	}
	if r.Error != "" {
		parts = append(parts, "failed: "+r.Error)
	}
	if stopped != "" {
		parts = append(parts, stopped)
	}
	if len(problems) > 0 {
		parts = append(parts, joinLimited(problems))
	}
	if len(remarks) > 0 {
		parts = append(parts, "remark: "+joinLimited(remarks))
	}
	switch {
	case len(parts) > 0:
		return strings.Join(parts, "; ")
	case r.Ended.IsZero() && last.Action != "":
		return "running, after " + last.Action
	case r.Ended.IsZero():
		return "running"
	}
	return "done, nothing contained"
}

// stepName is what a step is called in a sentence: its action, or its verb where the action's name says too little.
func stepName(s playbooks.StepReport) string {
	if s.Verb == playbooks.VerbTicket {
		return string(s.Verb)
	}
	return s.Action
}

// joinLimited joins what one line can hold and counts the rest.
func joinLimited(all []string) string {
	const most = 3
	if n := len(all) - most; n > 0 {
		return fmt.Sprintf("%s; and %d more", strings.Join(all[:most], "; "), n)
	}
	return strings.Join(all, "; ")
}

// SummarizeOutcomes says in one line what became of an incident so far: what is or was contained first. "" before anything ran.
func SummarizeOutcomes(in playbooks.Incident) string {
	var parts []string
	for _, r := range in.Playbooks {
		parts = append(parts, r.Playbook+": "+SummarizeRun(in, r))
	}
	slices.SortStableFunc(parts, func(a, b string) int {
		return cmp.Compare(outcomePriority(a), outcomePriority(b))
	})
	return strings.Join(parts, "; ")
}

func outcomePriority(part string) int {
	if strings.Contains(part, ": contained: ") {
		return 0
	}
	return 1
}

// DescribeStatus says how an incident stands: "open", "open, assigned to alice", "resolved: false-positive by alice" or
// "closed, resolved: false-positive by alice".
func DescribeStatus(in playbooks.Incident) string {
	status := in.Status
	if in.Disposition != "" {
		resolved := fmt.Sprintf("resolved: %s by %s", in.Disposition, in.DispositionBy)
		if status == "open" {
			return resolved
		}
		return status + ", " + resolved
	}
	if in.Assignee != "" {
		status += ", assigned to " + in.Assignee
	}
	return status
}

// DescribeLease says how a lease stands: "held, verified", "held, NOT verified", "ended, undone and verified".
func DescribeLease(l playbooks.LeaseReport) string {
	switch {
	case l.State == "held" && l.Verified:
		return "held, verified"
	case l.State == "held":
		return "held, NOT verified"
	case l.State == "ended" && l.Undone:
		return "ended, undone and verified"
	case l.State == "ended":
		return "ended"
	}
	return l.State
}

// DescribeApprovalProgress says how far a question has come: "1 of 2 said yes (alice); waiting for one more of responders".
func DescribeApprovalProgress(yes []string, quorum int, of string) string {
	quorum = max(quorum, 1)
	text := fmt.Sprintf("%d of %d", len(yes), quorum)
	if len(yes) > 0 {
		text += " said yes (" + strings.Join(yes, ", ") + ")"
	}
	switch more := quorum - len(yes); {
	case more == 1 && len(yes) > 0:
		return text + "; waiting for one more of " + of
	case more == 1:
		return text + "; waiting for one of " + of
	case more > 1 && len(yes) > 0:
		return fmt.Sprintf("%s; waiting for %d more of %s", text, more, of)
	case more > 1:
		return fmt.Sprintf("%s; waiting for %d of %s", text, more, of)
	}
	return text
}

// SortedTimeline is an incident's timeline by time; entries of one moment keep their order.
func SortedTimeline(in playbooks.Incident) []playbooks.TimelineEntry {
	out := slices.Clone(in.Timeline)
	slices.SortStableFunc(out, func(a, b playbooks.TimelineEntry) int { return a.At.Compare(b.At) })
	return out
}

// HeadlineDetection is the detection that says most of an incident: the most severe, of those the surest, of those one of the
// incident's own objective, then one that names a technique, then the first. With its place; -1 without detections.
func HeadlineDetection(in playbooks.Incident) (playbooks.DetectionSummary, int) {
	if len(in.Detections) == 0 {
		return playbooks.DetectionSummary{}, -1
	}
	worst := 0
	yes := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	detected := func(d playbooks.DetectionSummary) int { return yes(d.Rule != sensors.RuleManualRequest) } // what people ask for comes last
	for i, a := range in.Detections {
		b := in.Detections[worst]
		if cmp.Or(
			cmp.Compare(detected(a), detected(b)),
			cmp.Compare(a.Severity.Rank(), b.Severity.Rank()), cmp.Compare(a.Confidence, b.Confidence),
			cmp.Compare(yes(a.Objective == in.Objective), yes(b.Objective == in.Objective)), cmp.Compare(yes(a.Technique != ""), yes(b.Technique != "")),
		) > 0 {
			worst = i
		}
	}
	return in.Detections[worst], worst
}

// FormatTime is a moment in UTC, as everything that several people read has it.
func FormatTime(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

// StepTimelineText is a step of a playbook as a line of a timeline.
func StepTimelineText(playbook string, s playbooks.StepReport) string {
	return fmt.Sprintf("%s: %s %s", playbook, stepName(s), DescribeStepOutcome(s))
}

// RefusedContainment is a containment that was refused while people had paused new containments.
type RefusedContainment struct {
	Playbook string `json:"playbook"`
	Action   string `json:"action"`
	Target   string `json:"target"` // as people know it
	Reason   string `json:"reason"`
	// RetryCommand is the command that contains it now.
	RetryCommand string    `json:"again"`
	At           time.Time `json:"at"`
}

// FindRefusedWhilePaused lists the containments of an incident that were refused because new containments were paused, and
// whose targets nothing has contained since, each once.
func FindRefusedWhilePaused(in playbooks.Incident) []RefusedContainment {
	since := map[string]time.Time{} // the last containment, by target
	for _, r := range in.Playbooks {
		for _, s := range r.Steps {
			if IsContainmentInForce(s) && s.At.After(since[s.Target]) {
				since[s.Target] = s.At
			}
		}
	}
	var out []RefusedContainment
	known := map[string]bool{}
	for _, r := range in.Playbooks {
		for _, s := range r.Steps {
			key := r.Playbook + "\x00" + s.Action + "\x00" + s.Target
			paused := s.Guard == playbooks.GuardKillSwitch || strings.HasPrefix(s.Reason, playbooks.ReasonPaused)
			if s.Outcome != playbooks.OutcomeRefused || !paused || s.At.Before(since[s.Target]) || known[key] {
				continue
			}
			known[key] = true
			out = append(out, RefusedContainment{
				Playbook: r.Playbook, Action: s.Action, Target: TargetName(in, s.Target), Reason: s.Reason, At: s.At, RetryCommand: retryCommand(in, r, s),
			})
		}
	}
	return out
}

// retryCommand is the command that does once more what a run was refused: what a person asked for with `stanch contain` is no
// playbook that `stanch run` knows.
func retryCommand(in playbooks.Incident, r playbooks.PlaybookRun, s playbooks.StepReport) string {
	what := fmt.Sprintf("run %s --on %s", r.Playbook, TargetArgument(in, s.Target))
	if holds, ok := playbooks.ParseManualPlaybookName(r.Playbook, s.Action); ok && r.RequestID != "" {
		what = fmt.Sprintf("contain %s --action %s --for %s", TargetArgument(in, s.Target), s.Action, duration.Format(holds))
	}
	return "stanch " + what + " --reason 'refused while paused'"
}

// TargetArgument is a target as `stanch contain` and `stanch run` take it: "pod/NAMESPACE/NAME", "container/ID", else the incident's
// id, which means its pods and containers.
func TargetArgument(in playbooks.Incident, id string) string {
	for _, t := range in.Targets {
		switch {
		case t.ID() != id:
		case t.Kind == playbooks.TargetPod:
			return "pod/" + t.Namespace + "/" + t.Name
		case t.Kind == playbooks.TargetContainer:
			return "container/" + t.UID
		}
	}
	return in.ID
}
