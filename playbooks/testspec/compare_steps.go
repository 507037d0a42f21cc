package testspec

import (
	"fmt"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/sensors/duration"
)

// compareSteps looks for each expected step after the previous one.
func (c *comparison) compareSteps() {
	cursor := 0
	for _, want := range c.ExpectedSteps {
		fits, near := -1, -1
		for i := cursor; i < len(c.Steps); i++ {
			if !c.matchesStep(want, c.Steps[i]) {
				continue
			}
			if near < 0 {
				near = i
			}
			if key, _ := c.firstDifference(want, c.Steps[i]); key == "" {
				fits = i
				break
			}
		}
		before := slices.IndexFunc(c.Steps[:cursor], func(s StepRun) bool { return c.matchesStep(want, s) })
		switch {
		case fits >= 0:
			cursor = fits + 1
		case near >= 0:
			key, what := c.firstDifference(want, c.Steps[near])
			c.failExpectedStepf(want.positions[key], c.Steps[near].Step, "step %s%s: %s", c.Steps[near].Step,
				c.targetSuffix(c.Steps[near]), what)
			cursor = near + 1
		case before >= 0:
			got := c.Steps[before]
			c.failExpectedStepf(want.Pos, got.Step, "step %s%s ran before %s, not after it (%s at %s)", got.Step,
				c.targetSuffix(got), c.Steps[cursor-1].Step, got.Outcome, formatOffset(got.EndedAt))
			c.failures[len(c.failures)-1].StepMissing = true
		default:
			c.failExpectedStepf(want.Pos, want.StepName, "step %s did not run%s", describeExpectedStep(want),
				c.describeActualSteps(want))
			c.failures[len(c.failures)-1].StepMissing = true
		}
	}
}

func (c *comparison) failExpectedStepf(at Pos, step, format string, args ...any) {
	c.failf(at, step, format, args...)
	c.failures[len(c.failures)-1].IsExpectedStep = true
}

func describeExpectedStep(want *ExpectedStep) string {
	name := want.StepName
	if name == "" {
		name = want.Action
	}
	return name + targetSuffix(want.Target)
}

func (c *comparison) targetSuffix(s StepRun) string {
	if t, ok := c.TargetsByID[s.Target]; ok && t.Kind != playbooks.TargetIncident {
		return " on " + t.String()
	}
	return ""
}

// matchesStep reports whether an actual step is the expected one. A name without loops and calls matches the step in
// any of them.
func (c *comparison) matchesStep(want *ExpectedStep, got StepRun) bool {
	return (want.StepName == "" || want.StepName == got.Step || want.StepName == LastStepName(got.Step)) &&
		(want.Action == "" || want.Action == got.Action) &&
		(want.Playbook == "" || want.Playbook == got.Playbook) && (want.Target == "" || got.Target != "" &&
		c.matchesTarget(want.Target, got.Target))
}

// firstDifference returns the first key in which a step differs, and the difference; "" if there is none.
func (c *comparison) firstDifference(want *ExpectedStep, got StepRun) (key, what string) {
	_, within := want.positions["within"]
	_, at := want.positions["at"]
	switch {
	case want.Outcome != "" && want.Outcome != got.Outcome:
		return "outcome", fmt.Sprintf("the outcome is %s, expected %s%s", got.Outcome, want.Outcome, reasonSuffix(got.Reason))
	case !strings.Contains(got.Reason, want.Reason):
		return "reason",
			fmt.Sprintf("the reason is %s, expected it to contain %s", quoteTruncated(got.Reason), quoteTruncated(want.Reason))
	case within && got.EndedAt > want.NotAfter+timeTolerance/10:
		return "within",
			fmt.Sprintf("it ended with %s at %s, expected within %s", got.Outcome, formatOffset(got.EndedAt),
				duration.Format(want.NotAfter))
	case at && absDuration(got.EndedAt-want.ExpectedAt) > timeTolerance:
		return "at",
			fmt.Sprintf("it ended with %s at %s, expected at %s", got.Outcome, formatOffset(got.EndedAt),
				duration.Format(want.ExpectedAt))
	}
	if want.Params.Node != nil {
		if text := describeMissingJSON(want.Params.JSON, got.Params); text != "" {
			return "with", text
		}
	}
	return "", ""
}

// describeActualSteps lists the actual steps, for an expected step that is missing.
func (c *comparison) describeActualSteps(want *ExpectedStep) string {
	if len(c.Playbooks) == 0 {
		return fmt.Sprintf("; no playbook handles the incident (%s, confidence %.2f, severity %s)", c.FinalIncident.Objective,
			c.FinalIncident.Confidence, c.FinalIncident.Severity)
	}
	for _, s := range c.Steps { // the same step on another target
		if want.Target != "" && (want.StepName == "" || want.StepName == s.Step || want.StepName == LastStepName(s.Step)) &&
			(want.Action == "" || want.Action == s.Action) {
			return fmt.Sprintf("; it ran on %s", c.targetName(s.Target))
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
	return "; steps that ran: " + strings.Join(came, ", ")
}
