package scenario

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/yamlnode"
)

// slack is how far a time may be from the one that is expected: people write whole seconds.
const slack = time.Second

// comparison is of one test with what happened.
type comparison struct {
	*Test
	Happened
	failures []Failure
}

// Compare says what did not come as the test expects, in the order of the file.
func Compare(t *Test, h Happened) []Failure {
	c := &comparison{Test: t, Happened: h}
	if h.Error != "" {
		c.failf(t.Pos, "", "it could not be run to its end: %s", h.Error)
	}
	if t.Matched != nil && *t.Matched != (len(h.Playbooks) > 0) {
		if *t.Matched {
			c.failf(t.at["matched"], "", "no playbook handles the incident (%s, confidence %.2f, severity %s)", h.Final.Objective, h.Final.Confidence, h.Final.Severity)
		} else {
			c.failf(t.at["matched"], "", "it is handled by %s, and should be by none", strings.Join(h.Playbooks, ", "))
		}
	}
	if t.expectsNothing() {
		c.failf(t.Pos, "", "it expects nothing, and so would never fail: write what is to happen, or let `stanch test --update` write what does")
	}
	c.fakes()
	c.steps()
	c.asks()
	c.never()
	c.effects()
	c.leases()
	c.outcome()
	c.contained()
	slices.SortStableFunc(c.failures, func(a, b Failure) int { return 1000*(a.Line-b.Line) + a.Column - b.Column })
	return c.failures
}

// fakes are answers for a target: one that there is not, by a slip of the pen, would leave the action to succeed.
func (c *comparison) fakes() {
	for _, f := range c.Fakes {
		if f.Target == "" {
			continue
		}
		var names []string
		fits := false
		for _, t := range c.Names {
			fits = fits || IsTarget(f.Target, t)
			names = append(names, t.Name)
		}
		if slices.Sort(names); !fits {
			c.failf(f.at["target"], "", "the answer of %s is for %s, and nothing was so called; there were %s", f.Action, quoted(f.Target), yamlnode.Truncate(strings.Join(slices.Compact(names), ", "), 200))
		}
	}
}

func (t *Test) expectsNothing() bool {
	return len(t.Expect) == 0 && t.Asks == nil && len(t.Never) == 0 && t.Effects == nil && t.Leases == nil && t.Outcome == nil && t.Matched == nil && t.Bound == nil
}

func (c *comparison) failf(at Pos, step, format string, args ...any) {
	c.failures = append(c.failures, Failure{Line: at.Line, Column: at.Column, Step: step, What: fmt.Sprintf(format, args...)})
}

// target is a target as people call it.
func (c *comparison) target(id string) string {
	if t, ok := c.Names[id]; ok {
		return t.String()
	}
	return id
}

func (c *comparison) isTarget(want, id string) bool {
	t, known := c.Names[id]
	return want == "" || want == id || known && IsTarget(want, t)
}

// IsTarget tells whether a target is the one that is named: by its name, namespace and name, id, or as people say it.
func IsTarget(name string, t playbooks.Target) bool {
	return name == t.Name || name == t.Namespace+"/"+t.Name || name == t.UID || name == t.ID() || name == t.String()
}

// subset tells what of the JSON wanted is not in got, or "".
func subset(want, got json.RawMessage) string {
	var w, g any
	if json.Unmarshal(want, &w) != nil || len(got) > 0 && json.Unmarshal(got, &g) != nil {
		return "it cannot be read"
	}
	return lacks("", w, g)
}

func lacks(path string, want, got any) string {
	if w, ok := want.(map[string]any); ok {
		g, _ := got.(map[string]any)
		for _, key := range sorted(w) {
			inner := strings.TrimPrefix(path+"."+key, ".")
			v, there := g[key]
			if !there && w[key] != nil {
				return fmt.Sprintf("`%s` is not given, and should be %s", inner, brief(w[key]))
			}
			if text := lacks(inner, w[key], v); text != "" {
				return text
			}
		}
		return ""
	}
	p, _ := json.Marshal(want)
	q, _ := json.Marshal(got)
	if string(p) != string(q) {
		return fmt.Sprintf("`%s` is %s, not %s", path, brief(got), brief(want))
	}
	return ""
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func brief(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return yamlnode.Truncate(string(raw), 80)
}

// because is a reason behind a colon.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + yamlnode.Truncate(reason, 300)
}

// seconds is an offset as people write it.
func seconds(d time.Duration) string { return duration.Format(d.Round(100 * time.Millisecond)) }

func (c *comparison) asks() {
	if c.Asks == nil {
		return
	}
	wanted := *c.Asks
	for i, want := range wanted {
		if i >= len(c.Asked) {
			c.failf(want.Pos, "", "the question %s was not asked; %s", quoted(want.Title+want.Text), asked(c.Asked))
			continue
		}
		got := c.Asked[i]
		check := func(key, text, part string) {
			if !strings.Contains(text, part) {
				c.failf(want.at[key], "", "the question's %s is %s, without %s", key, quoted(text), quoted(part))
			}
		}
		check("title", got.Title, want.Title)
		check("text", got.Text, want.Text)
		check("would", strings.Join(got.Would, "; "), want.Would)
		for _, who := range want.Of {
			if !slices.Contains(strings.FieldsFunc(got.Of, func(r rune) bool { return r == ',' || r == ' ' || r == ';' }), who) {
				c.failf(want.at["of"], "", "%s are asked, not %s", got.Of, who)
			}
		}
		if want.Quorum > 0 && want.Quorum != got.Quorum {
			c.failf(want.at["quorum"], "", "the quorum is %d, not %d", got.Quorum, want.Quorum)
		}
		if _, given := want.at["within"]; given && got.At > want.Within {
			c.failf(want.at["within"], "", "it is asked at %s, not within %s", seconds(got.At), duration.Format(want.Within))
		}
	}
	for _, got := range c.Asked[min(len(wanted), len(c.Asked)):] {
		c.failf(c.at["asks"], "", "%s is asked too, at %s", quoted(got.Title), seconds(got.At))
	}
}

func quoted(s string) string { return fmt.Sprintf("%q", yamlnode.Truncate(s, 100)) }

func asked(all []Asked) string {
	if len(all) == 0 {
		return "nobody is asked anything"
	}
	titles := make([]string, len(all))
	for i, a := range all {
		titles[i] = quoted(a.Title)
	}
	return "asked is " + strings.Join(titles, ", ")
}

func (c *comparison) never() {
	for _, n := range c.Never {
		for _, e := range c.held() {
			if e.Action == n.Path {
				c.failf(n.Pos, "", "%s takes hold of %s at %s, and never should", n.Path, c.target(e.Target), seconds(e.From))
			}
		}
		for _, s := range c.Steps {
			done := s.Outcome == playbooks.OutcomeChanged || s.Outcome == playbooks.OutcomeUnverified || s.Outcome == playbooks.OutcomeUnchanged
			took := slices.ContainsFunc(c.held(), func(e Held) bool { return e.Action == n.Path })
			if done && !took && (s.Action == n.Path || Last(s.Step) == n.Path) {
				c.failf(n.Pos, s.Step, "%s is %s at %s, and never should be", n.Path, s.Outcome, seconds(s.At))
			}
		}
	}
}

// held are the effects that happened; the test's own are those that are expected.
func (c *comparison) held() []Held { return c.Happened.Effects }

func (c *comparison) effects() {
	if c.Test.Effects == nil {
		return
	}
	left := slices.Clone(c.held())
	for _, want := range *c.Test.Effects {
		differs := func(e Held) (key, what string) {
			switch {
			case want.Outcome != "" && want.Outcome != e.Outcome:
				return "outcome", fmt.Sprintf("the effect is %s, not %s", e.Outcome, want.Outcome)
			case want.For > 0 && (e.To == 0 || abs(e.To-e.From-want.For) > slack):
				held := "until it is taken back by hand"
				if e.To > 0 {
					held = "for " + seconds(e.To-e.From)
				}
				return "for", fmt.Sprintf("it holds %s, not for %s", held, duration.Format(want.For))
			case want.With.Node != nil:
				return "with", subset(want.With.JSON, e.With)
			}
			return "", ""
		}
		near, text := -1, ""
		at := want.Pos
		for i, e := range left {
			if e.Action != want.Action || !c.isTarget(want.Target, e.Target) {
				continue
			}
			key, what := differs(e)
			if near < 0 || what == "" {
				near, text = i, what
				if at = want.at[key]; key == "" {
					at = want.Pos
				}
			}
			if what == "" {
				break
			}
		}
		switch {
		case near < 0:
			c.failf(want.Pos, "", "%s takes no hold%s%s", want.Action, on(want.Target), c.fate(want.Action))
		case text != "":
			c.failf(at, "", "%s on %s: %s", want.Action, c.target(left[near].Target), text)
		}
		if near >= 0 {
			left = slices.Delete(left, near, near+1)
		}
	}
	for _, e := range left {
		c.failf(c.at["effects"], "", "%s takes hold of %s too, at %s", e.Action, c.target(e.Target), seconds(e.From))
	}
}

func abs(d time.Duration) time.Duration { return max(d, -d) }

func on(target string) string {
	if target == "" {
		return ""
	}
	return " of " + target
}

// fate says what became of an action's steps.
func (c *comparison) fate(action string) string {
	for _, s := range c.Steps {
		if s.Action == action {
			return fmt.Sprintf("; step %s is %s%s", s.Step, s.Outcome, because(s.Reason))
		}
	}
	return "; no step came to it"
}

func (c *comparison) leases() {
	if c.Test.Leases == nil {
		return
	}
	left := slices.Clone(c.Happened.Leases)
	for _, want := range *c.Test.Leases {
		i := slices.IndexFunc(left, func(l playbooks.LeaseReport) bool {
			return l.Action == want.Action && c.isTarget(want.Target, l.Target)
		})
		if i < 0 {
			c.failf(want.Pos, "", "there is no lease of %s%s%s", want.Action, on(want.Target), c.fate(want.Action))
			continue
		}
		got := left[i]
		left = slices.Delete(left, i, i+1)
		if want.State != "" && want.State != got.State {
			c.failf(want.at["state"], "", "the lease of %s on %s is %s, not %s%s", got.Action, c.target(got.Target), got.State, want.State, because(got.Reason))
		}
		if want.Undone != nil && *want.Undone != got.Undone {
			c.failf(want.at["undone"], "", "the lease of %s on %s: undone is %v, not %v%s", got.Action, c.target(got.Target), got.Undone, *want.Undone, because(got.Reason))
		}
		if !strings.Contains(got.Reason, want.Reason) {
			c.failf(want.at["reason"], "", "the lease of %s on %s: the reason is %s, without %s", got.Action, c.target(got.Target), quoted(got.Reason), quoted(want.Reason))
		}
	}
	for _, l := range left {
		c.failf(c.at["leases"], "", "there is a lease of %s on %s too, %s", l.Action, c.target(l.Target), l.State)
	}
}

func (c *comparison) outcome() {
	want, got := c.Outcome, c.Final
	if want == nil {
		return
	}
	word := func(key, want, got string) {
		if want != "" && want != got {
			c.failf(c.Outcome.at[key], "", "the incident's %s is %s, not %s", key, got, want)
		}
	}
	word("status", want.Status, got.Status)
	word("objective", string(want.Objective), string(got.Objective))
	word("severity", string(want.Severity), string(got.Severity))
	if want.Confidence != nil && math.Abs(*want.Confidence-got.Confidence) > 0.005 {
		c.failf(want.at["confidence"], "", "the incident's confidence is %.2f, not %.2f", got.Confidence, *want.Confidence)
	}
	if !strings.Contains(got.Summary, want.Summary) {
		c.failf(want.at["summary"], "", "the incident's summary is %s, without %s", quoted(got.Summary), quoted(want.Summary))
	}
}

func (c *comparison) contained() {
	if c.Bound == nil {
		return
	}
	if len(c.held()) == 0 {
		c.failf(c.Bound.Pos, "", "nothing was contained")
		return
	}
	took := c.held()[0].From
	for _, e := range c.held() {
		took = min(took, e.From)
	}
	// The clock of a simulation begins with the first millisecond.
	if took = took.Truncate(10 * time.Millisecond); took > c.Bound.Limit || c.Bound.Less && took >= c.Bound.Limit {
		c.failf(c.Bound.Pos, "", "the first containment is in force after %s, not %s", seconds(took), c.Bound)
	}
}
