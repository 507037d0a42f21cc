// Package display formats people, targets, outcomes, approvals, leases and the state of incidents as text, so that
// the command line, Slack, tickets, mail, the audit and simulation describe the same thing in the same words. Package
// duration formats durations.
//
// It neither adds markup nor escapes: its results are plain text that may contain attacker-controlled strings.
// Callers escape them for their medium.
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

// FormatPerson returns a person's name and how they were authenticated: "alice (uid 1000 on the local socket)".
// proved may be "".
func FormatPerson(name, proved string) string {
	if proved == "" {
		return name
	}
	return fmt.Sprintf("%s (%s)", name, proved)
}

// TargetName returns the name of the target of an incident with a target id, such as "pod shop/web-1". For a target
// that is not in the incident it returns ShortTargetID.
func TargetName(in playbooks.Incident, id string) string {
	for _, t := range in.Targets {
		if t.ID() == id {
			return t.String()
		}
	}
	if kind, uid, _ := strings.Cut(id, ":"); playbooks.TargetKind(kind) == playbooks.TargetWorkload &&
		in.Workload.Name != "" && (in.Workload.UID == uid || uid == "") {
		return "workload " + in.Workload.String()
	}
	return ShortTargetID(id)
}

// ShortTargetID shortens a target id, KIND:UID, to its kind and the first 12 characters of its UID: "pod
// 01234567-89a". The id of an incident becomes "the incident"; an id without a kind is returned unchanged.
func ShortTargetID(id string) string {
	kind, uid, ok := strings.Cut(id, ":")
	switch {
	case !ok:
		return id
	case playbooks.TargetKind(kind) == playbooks.TargetIncident:
		return "the incident"
	}
	const shortUIDBytes = 12 // as container runtimes shorten container ids
	return kind + " " + uid[:min(shortUIDBytes, len(uid))]
}

// DescribeOutcome returns the outcome of a step as a phrase: "applied and verified". contains is true for steps with
// the verb contain. An unknown outcome is returned unchanged.
func DescribeOutcome(o playbooks.Outcome, contains bool) string {
	switch o {
	case playbooks.OutcomeSucceeded:
		return "succeeded"
	case playbooks.OutcomeChanged:
		if contains {
			return "applied and verified"
		}
		return "succeeded"
	case playbooks.OutcomeUnverified:
		return "applied, not verified"
	case playbooks.OutcomeUnchanged:
		return "already in force"
	case playbooks.OutcomeProposed:
		return "proposed, not run"
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

// isContainment reports whether a step is a containment. Reports of earlier versions have no verb; their lease shows
// it.
func isContainment(s playbooks.StepReport) bool {
	return s.Verb == playbooks.VerbContain || s.Verb == "" && s.LeaseID != ""
}

// IsContainmentInForce reports whether a step is a containment that was in force when the step ended.
func IsContainmentInForce(s playbooks.StepReport) bool {
	switch s.Outcome {
	case playbooks.OutcomeChanged, playbooks.OutcomeUnverified, playbooks.OutcomeUnchanged:
		return isContainment(s)
	case playbooks.OutcomeSucceeded, playbooks.OutcomeProposed, playbooks.OutcomeDenied, playbooks.OutcomeRefused,
		playbooks.OutcomeFailed, playbooks.OutcomeSkipped:
	}
	return false
}

// DescribeStepOutcome returns the outcome of a step with its reason, without its name: "refused: the budget is
// spent". For a granted approval it returns who approved.
func DescribeStepOutcome(s playbooks.StepReport) string {
	if s.Action == approvalActionName && s.Outcome == playbooks.OutcomeSucceeded {
		return cmp.Or(s.Reason, "approved")
	}
	return withReason(DescribeOutcome(s.Outcome, isContainment(s)), s.Reason)
}

const (
	approvalActionName = "approval"
	stopActionName     = "stop"
)

// withReason appends a reason, if there is one: "WHAT: REASON".
func withReason(what, reason string) string {
	if reason == "" {
		return what
	}
	return what + ": " + reason
}

// notConfiguredPattern matches the reason of a refusal because something optional is not configured or connected.
var notConfiguredPattern = regexp.MustCompile(`^(no .* (is|are) (configured|connected)|\w+ (is|are) not configured)`)

// IsNotConfigured reports whether a step was refused only because something optional is missing, such as tickets or a
// cluster. Such a step is a note, and not a failure of the response. It is false for containments.
func IsNotConfigured(s playbooks.StepReport) bool {
	return s.Outcome == playbooks.OutcomeRefused && s.Verb != playbooks.VerbContain && s.LeaseID == "" &&
		notConfiguredPattern.MatchString(s.Reason)
}

// SummarizeRun returns one line about a playbook run: its containments, then refusals and failures, then notes. A run
// in progress without such results is "running". Each part lists at most three steps.
func SummarizeRun(in playbooks.Incident, r playbooks.PlaybookRun) string {
	var contained, notContained, problems, notes []string
	stopped := ""
	var last playbooks.StepReport
	for _, s := range r.Steps {
		switch what := stepName(s); {
		case s.Action == stopActionName && s.Outcome != playbooks.OutcomeSkipped:
			stopped = withReason("stopped, "+DescribeOutcome(s.Outcome, false), s.Reason)
		case IsContainmentInForce(s):
			contained = append(contained, fmt.Sprintf("%s on %s %s", what, TargetName(in, s.Target),
				DescribeOutcome(s.Outcome, true)))
		case IsNotConfigured(s):
			notes = append(notes, fmt.Sprintf("%s skipped: %s", what, s.Reason))
		case !s.Outcome.RunsOnFailure() && !s.Outcome.RunsOnDenied() && s.Outcome != playbooks.OutcomeProposed:
			last = s
		case isContainment(s) && s.Target != "":
			notContained = append(notContained, fmt.Sprintf("%s on %s %s", what, TargetName(in, s.Target),
				withReason(DescribeOutcome(s.Outcome, true), s.Reason)))
		case isContainment(s):
			notContained = append(notContained, what+" "+withReason(DescribeOutcome(s.Outcome, true), s.Reason))
		default:
			problems = append(problems, what+" "+withReason(DescribeOutcome(s.Outcome, false), s.Reason))
		}
	}
	problems = append(notContained, problems...)
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
	if len(notes) > 0 {
		parts = append(parts, "note: "+joinLimited(notes))
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

// stepName returns the action of a step, or its verb for tickets, whose actions are named only by what they do
// ("create").
func stepName(s playbooks.StepReport) string {
	if s.Verb == playbooks.VerbTicket {
		return string(s.Verb)
	}
	return s.Action
}

// joinLimited joins the first three of all, and counts the others.
func joinLimited(all []string) string {
	const most = 3
	if n := len(all) - most; n > 0 {
		return fmt.Sprintf("%s; and %d more", strings.Join(all[:most], "; "), n)
	}
	return strings.Join(all, "; ")
}

// SummarizeOutcomes returns one line about all playbook runs of an incident, those that contained first; "" before
// any ran.
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

// outcomePriority returns 0 for the summary of a run that contained, and 1 for others.
func outcomePriority(part string) int {
	if strings.Contains(part, ": contained: ") {
		return 0
	}
	return 1
}

// DescribeStatus returns the status of an incident: "open", "open, assigned to alice", "resolved: false-positive by
// alice" or "closed, resolved: false-positive by alice".
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

// DescribeLease returns the state of a lease: "in force, verified", "in force, NOT verified", "ended, undone and
// verified", "ended", or any other state unchanged.
func DescribeLease(l playbooks.LeaseReport) string {
	switch {
	case l.State == "held" && l.Verified:
		return "in force, verified"
	case l.State == "held":
		return "in force, NOT verified"
	case l.State == "ended" && l.Undone:
		return "ended, undone and verified"
	case l.State == "ended":
		return "ended"
	}
	return l.State
}

// DescribeApprovalProgress returns the progress of an approval request: "1 of 2 approved (alice); waiting for 1 more of
// responders". of names the approvers. A quorum below 1 counts as 1.
func DescribeApprovalProgress(approvedBy []string, quorum int, of string) string {
	quorum = max(quorum, 1)
	text := fmt.Sprintf("%d of %d approved", len(approvedBy), quorum)
	if len(approvedBy) > 0 {
		text += " (" + strings.Join(approvedBy, ", ") + ")"
	}
	switch more := quorum - len(approvedBy); {
	case more > 0 && len(approvedBy) > 0:
		return fmt.Sprintf("%s; waiting for %d more from %s", text, more, of)
	case more > 0:
		return fmt.Sprintf("%s; waiting for %d from %s", text, more, of)
	}
	return text
}

// SortedTimeline returns a copy of an incident's timeline, sorted by time. Entries with the same time keep their order.
func SortedTimeline(in playbooks.Incident) []playbooks.TimelineEntry {
	out := slices.Clone(in.Timeline)
	slices.SortStableFunc(out, func(a, b playbooks.TimelineEntry) int { return a.At.Compare(b.At) })
	return out
}

// HeadlineDetection returns the most important detection of an incident and its index; -1 without detections.
// Detections rank before manual requests, then by severity, confidence, the incident's own objective, and having a
// technique. The first of equals wins.
func HeadlineDetection(in playbooks.Incident) (playbooks.DetectionSummary, int) {
	if len(in.Detections) == 0 {
		return playbooks.DetectionSummary{}, -1
	}
	worst := 0
	toInt := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	// Manual requests rank last.
	detected := func(d playbooks.DetectionSummary) int { return toInt(d.Rule != sensors.RuleManualRequest) }
	for i, a := range in.Detections {
		b := in.Detections[worst]
		if cmp.Or(
			cmp.Compare(detected(a), detected(b)),
			cmp.Compare(a.Severity.Rank(), b.Severity.Rank()), cmp.Compare(a.Confidence, b.Confidence),
			cmp.Compare(toInt(a.Objective == in.Objective), toInt(b.Objective == in.Objective)),
			cmp.Compare(toInt(a.Technique != ""), toInt(b.Technique != "")),
		) > 0 {
			worst = i
		}
	}
	return in.Detections[worst], worst
}

// FormatTime formats a time in UTC, for text that people in several time zones read: "2006-01-02 15:04:05 UTC".
func FormatTime(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

// StepTimelineText returns the timeline line of a finished step: "PLAYBOOK: ACTION OUTCOME".
func StepTimelineText(playbook string, s playbooks.StepReport) string {
	return fmt.Sprintf("%s: %s %s", playbook, stepName(s), DescribeStepOutcome(s))
}

// RefusedContainment is a containment that was refused while new containments were paused.
type RefusedContainment struct {
	Playbook string `json:"playbook"`
	Action   string `json:"action"`
	Target   string `json:"target"` // as TargetName returns it
	Reason   string `json:"reason"`
	// RetryCommand is the command that contains the target now.
	RetryCommand string    `json:"retry_command"`
	At           time.Time `json:"at"`
}

// FindRefusedWhilePaused returns the containments of an incident that were refused because new containments were
// paused, each once, without those whose target was contained since.
func FindRefusedWhilePaused(in playbooks.Incident) []RefusedContainment {
	since := map[string]time.Time{} // time of the last containment, by target
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
				Playbook: r.Playbook, Action: s.Action, Target: TargetName(in, s.Target), Reason: s.Reason, At: s.At,
				RetryCommand: retryCommand(in, r, s),
			})
		}
	}
	return out
}

// retryCommand returns the command that repeats a refused step. A run of `stanch contain` is repeated as such: its
// playbook is unknown to `stanch run`.
func retryCommand(in playbooks.Incident, r playbooks.PlaybookRun, s playbooks.StepReport) string {
	what := fmt.Sprintf("run %s --on %s", r.Playbook, TargetArgument(in, s.Target))
	if lasts, ok := playbooks.ParseManualPlaybookName(r.Playbook, s.Action); ok && r.RequestID != "" {
		what = fmt.Sprintf("contain %s --action %s --for %s", TargetArgument(in, s.Target), s.Action,
			duration.Format(lasts))
	}
	return "stanch " + what + " --reason 'refused while paused'"
}

// TargetArgument returns the TARGET argument of `stanch contain` and `stanch run` for a target id of an incident:
// "pod/NAMESPACE/NAME" or "container/ID". For other targets it returns the incident's id, which stands for all of its
// pods and containers.
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
