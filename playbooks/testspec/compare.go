package testspec

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/truncate"
)

// timeTolerance is the maximum difference between an expected and an actual time, because people write full seconds.
const timeTolerance = time.Second

// comparison compares one test with its result.
type comparison struct {
	*TestCase
	Result
	failures []Failure
}

// CompareWithResult returns the failed expectations of a test, in the order of the file.
func CompareWithResult(t *TestCase, h Result) []Failure {
	c := &comparison{TestCase: t, Result: h}
	if h.Error != "" {
		c.failf(t.Pos, "", "the test did not complete: %s", h.Error)
	}
	if t.ExpectedMatch != nil && *t.ExpectedMatch != (len(h.Playbooks) > 0) {
		if *t.ExpectedMatch {
			c.failf(t.positions["matched"], "", "no playbook handles the incident (%s, confidence %.2f, severity %s)",
				h.FinalIncident.Objective, h.FinalIncident.Confidence, h.FinalIncident.Severity)
		} else {
			c.failf(t.positions["matched"], "", "the incident is handled by %s, but no playbook was expected",
				strings.Join(h.Playbooks, ", "))
		}
	}
	if t.hasNoExpectations() {
		c.failf(t.Pos, "",
			"the test has no expectations, so it can never fail; add them, or let `stanch test --update` write them")
	}
	c.checkFakeTargets()
	c.compareSteps()
	c.compareApprovalRequests()
	c.checkForbiddenActions()
	c.compareContainments()
	c.compareLeases()
	c.compareIncident()
	c.checkTimeToContain()
	slices.SortStableFunc(c.failures, func(a, b Failure) int { return 1000*(a.Line-b.Line) + a.Column - b.Column })
	return c.failures
}

// checkFakeTargets reports fake results for unknown targets. Without this check, a typing error would let the action
// succeed.
func (c *comparison) checkFakeTargets() {
	for _, f := range c.FakeResults {
		if f.Target == "" {
			continue
		}
		var names []string
		fits := false
		for _, t := range c.TargetsByID {
			fits = fits || TargetMatchesName(f.Target, t)
			names = append(names, t.Name)
		}
		if slices.Sort(names); !fits {
			c.failf(f.positions["target"], "", "the result of %s is for %s, which is not a target; the targets were %s",
				f.Action, quoteTruncated(f.Target), truncate.Text(strings.Join(slices.Compact(names), ", "), 200))
		}
	}
}

func (t *TestCase) hasNoExpectations() bool {
	return len(t.ExpectedSteps) == 0 && t.ExpectedApprovalRequests == nil && len(t.ForbiddenActions) == 0 &&
		t.ExpectedContainments == nil && t.ExpectedLeases == nil && t.ExpectedIncident == nil && t.ExpectedMatch == nil &&
		t.TimeToContain == nil
}

func (c *comparison) failf(at Pos, step, format string, args ...any) {
	c.failures = append(c.failures, Failure{
		Line: at.Line, Column: at.Column, Step: step,
		Message: fmt.Sprintf(format, args...),
	})
}

// targetName returns the name of a target as people write it.
func (c *comparison) targetName(id string) string {
	if t, ok := c.TargetsByID[id]; ok {
		return t.String()
	}
	return id
}

func (c *comparison) matchesTarget(want, id string) bool {
	t, known := c.TargetsByID[id]
	return want == "" || want == id || known && TargetMatchesName(want, t)
}

// TargetMatchesName reports whether name identifies the target: its name, NAMESPACE/NAME, id, or display text.
func TargetMatchesName(name string, t playbooks.Target) bool {
	return name == t.Name || name == t.Namespace+"/"+t.Name || name == t.UID || name == t.ID() || name == t.String()
}

// describeMissingJSON returns the part of the wanted JSON that got lacks, or "".
func describeMissingJSON(want, got json.RawMessage) string {
	var w, g any
	if json.Unmarshal(want, &w) != nil || len(got) > 0 && json.Unmarshal(got, &g) != nil {
		return "invalid JSON"
	}
	return describeJSONDifference("", w, g)
}

func describeJSONDifference(path string, want, got any) string {
	if w, ok := want.(map[string]any); ok {
		g, _ := got.(map[string]any)
		for _, key := range sortedKeys(w) {
			inner := strings.TrimPrefix(path+"."+key, ".")
			v, there := g[key]
			if !there && w[key] != nil {
				return fmt.Sprintf("`%s` is missing, expected %s", inner, truncatedJSON(w[key]))
			}
			if text := describeJSONDifference(inner, w[key], v); text != "" {
				return text
			}
		}
		return ""
	}
	p, _ := json.Marshal(want)
	q, _ := json.Marshal(got)
	if string(p) != string(q) {
		return fmt.Sprintf("`%s` is %s, expected %s", path, truncatedJSON(got), truncatedJSON(want))
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func truncatedJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return truncate.Text(string(raw), 80)
}

// reasonSuffix returns ": REASON", or "".
func reasonSuffix(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + truncate.Text(reason, 300)
}

// formatOffset formats an offset, rounded to 100 ms.
func formatOffset(d time.Duration) string { return duration.Format(d.Round(100 * time.Millisecond)) }

func (c *comparison) compareApprovalRequests() {
	if c.ExpectedApprovalRequests == nil {
		return
	}
	wanted := *c.ExpectedApprovalRequests
	for i, want := range wanted {
		if i >= len(c.ApprovalRequests) {
			c.failf(want.Pos, "", "the approval %s was not requested; %s", quoteTruncated(want.Title+want.Text),
				describeApprovalRequests(c.ApprovalRequests))
			continue
		}
		got := c.ApprovalRequests[i]
		check := func(key, text, part string) {
			if !strings.Contains(text, part) {
				c.failf(want.positions[key], "", "the request's %s is %s, expected it to contain %s", key, quoteTruncated(text),
					quoteTruncated(part))
			}
		}
		check("title", got.Title, want.Title)
		check("text", got.Text, want.Text)
		check("would", strings.Join(got.ProposedActions, "; "), want.ProposedAction)
		for _, who := range want.Approvers {
			if !slices.Contains(strings.FieldsFunc(got.Approvers, func(r rune) bool { return r == ',' || r == ' ' || r == ';' }),
				who) {
				c.failf(want.positions["of"], "", "the approvers are %s, without %s", got.Approvers, who)
			}
		}
		if want.Quorum > 0 && want.Quorum != got.Quorum {
			c.failf(want.positions["quorum"], "", "the quorum is %d, expected %d", got.Quorum, want.Quorum)
		}
		if _, given := want.positions["within"]; given && got.AskedAt > want.NotAfter {
			c.failf(want.positions["within"], "", "it is requested at %s, expected within %s", formatOffset(got.AskedAt),
				duration.Format(want.NotAfter))
		}
	}
	for _, got := range c.ApprovalRequests[min(len(wanted), len(c.ApprovalRequests)):] {
		c.failf(c.positions["asks"], "", "unexpected approval request %s at %s", quoteTruncated(got.Title),
			formatOffset(got.AskedAt))
	}
}

func quoteTruncated(s string) string { return fmt.Sprintf("%q", truncate.Text(s, 100)) }

func describeApprovalRequests(all []ApprovalRequest) string {
	if len(all) == 0 {
		return "no approval was requested"
	}
	titles := make([]string, len(all))
	for i, a := range all {
		titles[i] = quoteTruncated(a.Title)
	}
	return "requested: " + strings.Join(titles, ", ")
}

func (c *comparison) checkForbiddenActions() {
	for _, n := range c.ForbiddenActions {
		for _, e := range c.actualContainments() {
			if e.Action == n.Name {
				c.failf(n.Pos, "", "%s was applied to %s at %s, which `never` forbids", n.Name, c.targetName(e.Target),
					formatOffset(e.AppliedAt))
			}
		}
		for _, s := range c.Steps {
			done := s.Outcome == playbooks.OutcomeSucceeded || s.Outcome == playbooks.OutcomeChanged ||
				s.Outcome == playbooks.OutcomeUnverified || s.Outcome == playbooks.OutcomeUnchanged
			took := slices.ContainsFunc(c.actualContainments(), func(e ContainmentRecord) bool { return e.Action == n.Name })
			if done && !took && (s.Action == n.Name || LastStepName(s.Step) == n.Name) {
				c.failf(n.Pos, s.Step, "%s ended with %s at %s, which `never` forbids", n.Name, s.Outcome, formatOffset(s.EndedAt))
			}
		}
	}
}

// actualContainments returns the containments that were applied.
func (c *comparison) actualContainments() []ContainmentRecord { return c.Containments }

func (c *comparison) compareContainments() {
	if c.ExpectedContainments == nil {
		return
	}
	left := slices.Clone(c.actualContainments())
	for _, want := range *c.ExpectedContainments {
		differs := func(e ContainmentRecord) (key, what string) {
			switch {
			case want.Outcome != "" && want.Outcome != e.Outcome:
				return "outcome", fmt.Sprintf("the outcome is %s, expected %s", e.Outcome, want.Outcome)
			case want.LeaseDuration > 0 && (e.UndoneAt == 0 ||
				absDuration(e.UndoneAt-e.AppliedAt-want.LeaseDuration) > timeTolerance):
				held := "until it is undone manually"
				if e.UndoneAt > 0 {
					held = "for " + formatOffset(e.UndoneAt-e.AppliedAt)
				}
				return "for", fmt.Sprintf("it is active %s, but should be active for %s", held, duration.Format(want.LeaseDuration))
			case want.Params.Node != nil:
				return "with", describeMissingJSON(want.Params.JSON, e.Params)
			}
			return "", ""
		}
		near, text := -1, ""
		at := want.Pos
		for i, e := range left {
			if e.Action != want.Action || !c.matchesTarget(want.Target, e.Target) {
				continue
			}
			key, what := differs(e)
			if near < 0 || what == "" {
				near, text = i, what
				if at = want.positions[key]; key == "" {
					at = want.Pos
				}
			}
			if what == "" {
				break
			}
		}
		switch {
		case near < 0:
			c.failf(want.Pos, "", "%s was not applied%s%s", want.Action, targetSuffix(want.Target),
				c.describeOutcome(want.Action))
		case text != "":
			c.failf(at, "", "%s on %s: %s", want.Action, c.targetName(left[near].Target), text)
		}
		if near >= 0 {
			left = slices.Delete(left, near, near+1)
		}
	}
	for _, e := range left {
		c.failf(c.positions["effects"], "", "%s was unexpectedly applied to %s at %s", e.Action, c.targetName(e.Target),
			formatOffset(e.AppliedAt))
	}
}

func absDuration(d time.Duration) time.Duration { return max(d, -d) }

func targetSuffix(target string) string {
	if target == "" {
		return ""
	}
	return " of " + target
}

// describeOutcome returns the outcome of an action's steps.
func (c *comparison) describeOutcome(action string) string {
	for _, s := range c.Steps {
		if s.Action == action {
			return fmt.Sprintf("; step %s is %s%s", s.Step, s.Outcome, reasonSuffix(s.Reason))
		}
	}
	return "; no step ran it"
}

func (c *comparison) compareLeases() {
	if c.ExpectedLeases == nil {
		return
	}
	left := slices.Clone(c.Leases)
	for _, want := range *c.ExpectedLeases {
		i := slices.IndexFunc(left, func(l playbooks.LeaseReport) bool {
			return l.Action == want.Action && c.matchesTarget(want.Target, l.Target)
		})
		if i < 0 {
			c.failf(want.Pos, "", "missing lease of %s%s%s", want.Action, targetSuffix(want.Target),
				c.describeOutcome(want.Action))
			continue
		}
		got := left[i]
		left = slices.Delete(left, i, i+1)
		if want.State != "" && want.State != got.State {
			c.failf(want.positions["state"], "", "the lease of %s on %s is %s, expected %s%s", got.Action,
				c.targetName(got.Target), got.State, want.State, reasonSuffix(got.Reason))
		}
		if want.Undone != nil && *want.Undone != got.Undone {
			c.failf(want.positions["undone"], "", "the lease of %s on %s: undone is %v, expected %v%s", got.Action,
				c.targetName(got.Target), got.Undone, *want.Undone, reasonSuffix(got.Reason))
		}
		if !strings.Contains(got.Reason, want.Reason) {
			c.failf(want.positions["reason"], "", "the lease of %s on %s: the reason is %s, expected it to contain %s",
				got.Action, c.targetName(got.Target), quoteTruncated(got.Reason), quoteTruncated(want.Reason))
		}
	}
	for _, l := range left {
		c.failf(c.positions["leases"], "", "unexpected lease of %s on %s: %s", l.Action, c.targetName(l.Target), l.State)
	}
}

func (c *comparison) compareIncident() {
	want, got := c.ExpectedIncident, c.FinalIncident
	if want == nil {
		return
	}
	word := func(key, want, got string) {
		if want != "" && want != got {
			c.failf(c.ExpectedIncident.positions[key], "", "the incident's %s is %s, expected %s", key, got, want)
		}
	}
	word("status", want.Status, got.Status)
	word("objective", string(want.Objective), string(got.Objective))
	word("severity", string(want.Severity), string(got.Severity))
	if want.Confidence != nil && math.Abs(*want.Confidence-got.Confidence) > 0.005 {
		c.failf(want.positions["confidence"], "", "the incident's confidence is %.2f, expected %.2f", got.Confidence,
			*want.Confidence)
	}
	if !strings.Contains(got.Summary, want.Summary) {
		c.failf(want.positions["summary"], "", "the incident's summary is %s, expected it to contain %s",
			quoteTruncated(got.Summary), quoteTruncated(want.Summary))
	}
}

func (c *comparison) checkTimeToContain() {
	if c.TimeToContain == nil {
		return
	}
	if len(c.actualContainments()) == 0 {
		c.failf(c.TimeToContain.Pos, "", "nothing was contained")
		return
	}
	took := c.actualContainments()[0].AppliedAt
	for _, e := range c.actualContainments() {
		took = min(took, e.AppliedAt)
	}
	// The simulation's clock starts at its first millisecond.
	if took = took.Truncate(10 * time.Millisecond); took > c.TimeToContain.Limit || c.TimeToContain.IsExclusive &&
		took >= c.TimeToContain.Limit {
		c.failf(c.TimeToContain.Pos, "", "the first containment is in force after %s, expected %s", formatOffset(took),
			c.TimeToContain)
	}
}
