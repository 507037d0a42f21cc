package playbooks

import (
	"slices"
	"strings"
)

// attempt is an evidence step that will have been attempted: for which targets and under which conditions.
type attempt struct {
	target     string
	conditions []string
}

// evidence checks that on every path to a containment an evidence step for the same target was attempted. It
// returns what is attempted once the sequence has run.
func (c *checker) evidence(steps []Step, before []attempt, conditions []string) []attempt {
	have := slices.Clone(before)
	for i := range steps {
		have = c.evidenceStep(&steps[i], have, conditions)
	}
	return have
}

func (c *checker) evidenceStep(s *Step, have []attempt, conditions []string) []attempt {
	if s.If != nil {
		conditions = append(slices.Clone(conditions), strings.Join(strings.Fields(s.If.Source), " "))
	}
	target := ""
	if s.Target != nil {
		target = strings.Join(strings.Fields(s.Target.Source), " ")
	}
	switch {
	case s.Verb == VerbEvidence:
		have = append(have, attempt{target, conditions})
	case s.Verb == VerbContain:
		// What no detection is about has no evidence of its own: any of the incident counts, as it does for the guard.
		spec := c.program.catalogue[s.Action]
		derived := len(spec.Targets) > 0 && !spec.Targets[0].Detected()
		covers := func(evidence, containment string) bool { return derived || covers(evidence, containment) }
		covered := slices.ContainsFunc(have, func(a attempt) bool {
			return covers(a.target, target) && !slices.ContainsFunc(a.conditions, func(cond string) bool { return !slices.Contains(conditions, cond) })
		})
		if _, known := c.program.catalogue[s.Action]; known && !covered {
			hint := "put `- evidence: process.snapshot` before it"
			if target != "" {
				hint = "put an evidence step with the same `target` before it"
			}
			if slices.ContainsFunc(have, func(a attempt) bool { return covers(a.target, target) }) {
				hint = "the evidence step before it stands under an `if` of its own: move it out, or put the containment under the same `if`"
			}
			c.errorf(s.ActionPos, "evidence-first", hint, "`%s` comes before any evidence of its target", s.Action)
		}
	case s.Parallel != nil:
		after := slices.Clone(have)
		for i := range s.Parallel {
			// Branches run at once: evidence in one is not before a containment in another.
			after = append(after, c.evidenceStep(&s.Parallel[i], have, conditions)[len(have):]...)
		}
		have = after
	case s.Approval != nil:
		c.evidence(s.Approval.Steps, have, append(slices.Clone(conditions), "approved:"+s.Path))
	}
	c.evidence(s.OnFailure, have, conditions)
	c.evidence(s.OnDenied, have, conditions)
	return have
}

// covers tells whether evidence of one target is evidence of the other: the default is every pod of the incident with
// a detection of its own, so a selection of them is covered too.
func covers(evidence, containment string) bool {
	if evidence == containment {
		return true
	}
	selection := strings.Contains(containment, "incident.targets") && !strings.Contains(containment, "concat(") && !strings.Contains(containment, "map(")
	return evidence == "" && selection
}
