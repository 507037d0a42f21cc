package scenario

import (
	"fmt"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/sensors/duration"
)

// steps finds each expected step behind the one before it.
func (c *comparison) steps() {
	cursor := 0
	for _, want := range c.Expect {
		fits, near := -1, -1
		for i := cursor; i < len(c.Steps); i++ {
			if !c.names(want, c.Steps[i]) {
				continue
			}
			if near < 0 {
				near = i
			}
			if key, _ := c.differs(want, c.Steps[i]); key == "" {
				fits = i
				break
			}
		}
		before := slices.IndexFunc(c.Steps[:cursor], func(s Ran) bool { return c.names(want, s) })
		switch {
		case fits >= 0:
			cursor = fits + 1
		case near >= 0:
			key, what := c.differs(want, c.Steps[near])
			c.expectf(want.at[key], c.Steps[near].Step, "step %s%s: %s", c.Steps[near].Step, c.onTarget(c.Steps[near]), what)
			cursor = near + 1
		case before >= 0:
			got := c.Steps[before]
			c.expectf(want.Pos, got.Step, "step %s%s came before %s and not after it (%s at %s)", got.Step, c.onTarget(got), c.Steps[cursor-1].Step, got.Outcome, seconds(got.At))
			c.failures[len(c.failures)-1].Gone = true
		default:
			c.expectf(want.Pos, want.Step, "step %s did not come%s", called(want), c.instead(want))
			c.failures[len(c.failures)-1].Gone = true
		}
	}
}

func (c *comparison) expectf(at Pos, step, format string, args ...any) {
	c.failf(at, step, format, args...)
	c.failures[len(c.failures)-1].Expects = true
}

func called(want *Step) string {
	name := want.Step
	if name == "" {
		name = want.Action
	}
	return name + on(want.Target)
}

func (c *comparison) onTarget(s Ran) string {
	if t, ok := c.Names[s.Target]; ok && t.Kind != playbooks.TargetIncident {
		return " on " + t.String()
	}
	return ""
}

// names tells whether a step is the one that is meant. A name without its loops and calls is any of theirs.
func (c *comparison) names(want *Step, got Ran) bool {
	return (want.Step == "" || want.Step == got.Step || want.Step == Last(got.Step)) && (want.Action == "" || want.Action == got.Action) &&
		(want.Playbook == "" || want.Playbook == got.Playbook) && (want.Target == "" || got.Target != "" && c.isTarget(want.Target, got.Target))
}

// differs gives the first key in which a step is not as expected, and in what; "" if it is.
func (c *comparison) differs(want *Step, got Ran) (key, what string) {
	_, within := want.at["within"]
	_, at := want.at["at"]
	switch {
	case want.Outcome != "" && want.Outcome != got.Outcome:
		return "outcome", fmt.Sprintf("outcome is %s, not %s%s", got.Outcome, want.Outcome, because(got.Reason))
	case !strings.Contains(got.Reason, want.Reason):
		return "reason", fmt.Sprintf("the reason is %s, without %s", quoted(got.Reason), quoted(want.Reason))
	case within && got.At > want.Within+slack/10:
		return "within", fmt.Sprintf("it is %s at %s, not within %s", got.Outcome, seconds(got.At), duration.Format(want.Within))
	case at && abs(got.At-want.After) > slack:
		return "at", fmt.Sprintf("it is %s at %s, not at %s", got.Outcome, seconds(got.At), duration.Format(want.After))
	}
	if want.With.Node != nil {
		if text := subset(want.With.JSON, got.With); text != "" {
			return "with", text
		}
	}
	return "", ""
}

// instead says what came, for who looks for a step that did not.
func (c *comparison) instead(want *Step) string {
	if len(c.Playbooks) == 0 {
		return fmt.Sprintf("; no playbook handles the incident (%s, confidence %.2f, severity %s)", c.Final.Objective, c.Final.Confidence, c.Final.Severity)
	}
	for _, s := range c.Steps { // the same step on another target
		if want.Target != "" && (want.Step == "" || want.Step == s.Step || want.Step == Last(s.Step)) && (want.Action == "" || want.Action == s.Action) {
			return fmt.Sprintf("; it came on %s", c.target(s.Target))
		}
	}
	var came []string
	for _, s := range c.Steps {
		if s.Outcome != playbooks.OutcomeSkipped {
			came = append(came, fmt.Sprintf("%s %s", s.Step, s.Outcome))
		}
	}
	if len(came) > 12 {
		came = append(came[:12], fmt.Sprintf("and %d more", len(came)-12))
	}
	return "; what came: " + strings.Join(came, ", ")
}
