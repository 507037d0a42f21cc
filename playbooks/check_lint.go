package playbooks

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"stanch/sensors/duration"
)

// lintPlaybook warns about valid but unwise constructs. It reports nothing for a playbook with errors, which must be
// fixed first.
func (c *checker) lintPlaybook() {
	if c.Problems.HasErrors() {
		return
	}
	book := c.program.Playbook
	if book.Description == "" {
		c.warnf(book.NamePos, "no-description", "a sentence for the responder: `description: …`", "the playbook says nothing of what it is for")
	}
	if m := book.Match; m != nil {
		if always, constant := c.evalConstantCondition(m.When); constant && always && len(m.Objectives) == 0 && m.Severity.Text == "" && c.hasContainment() {
			c.warnf(m.When.Pos, "matches-everything", "name the `objective`", "it contains, and it matches every incident")
		} else if constant && !always {
			c.warnf(m.When.Pos, "matches-nothing", "", "it never matches: its `when` is always false")
		}
		if m.Exclusive && m.Priority != nil && *m.Priority == 0 {
			c.warnf(book.NamePos, "exclusive", "give it a `priority` above the others'", "it is exclusive with the lowest priority: it holds back only its equals")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.program.assignedZeroValues)) {
		if !c.namesRead[name] {
			c.warnf(c.declaredPositions[name], "unused", "remove it", "nothing reads `%s`", name)
		}
	}
	for _, in := range book.Inputs {
		if !c.namesRead["inputs"] {
			c.warnf(in.Pos, "unused", "remove it", "nothing reads the inputs")
			break
		}
	}
	walkSteps(book.Steps, c.lintStep)
}

func (c *checker) hasContainment() bool {
	found := false
	walkSteps(c.program.Steps, func(s *Step) { found = found || s.Verb == VerbContain })
	return found
}

func (c *checker) lintStep(s *Step) {
	spec := c.program.catalog[s.Action]
	if always, constant := c.evalConstantCondition(s.If); constant && always {
		c.warnf(s.If.Pos, "always-true", "remove it", "this `if` is always true")
	}
	switch {
	case s.Approval != nil:
		c.lintApproval(s.Approval, s)
	case spec.Class == ClassContain && c.program.MaxPhase < 2, spec.Class == ClassDisrupt && c.program.MaxPhase < 3:
		c.warnf(s.ActionPos, "never-runs", "raise `max_phase`, or remove the step", "`%s` is only ever proposed: the playbook goes no further than phase %d", s.Action, c.program.MaxPhase)
	case spec.MaxDuration > 0 && s.LeaseDuration > spec.MaxDuration:
		c.warnf(s.LeaseDurationPos, "too-long", fmt.Sprintf("hold it for at most `%s`", duration.Format(spec.MaxDuration)), "`%s` for %s: %s", s.Action, duration.Format(s.LeaseDuration), lowerFirst(spec.Doc))
	case spec.Reversible && s.LeaseDuration > 24*time.Hour:
		c.warnf(s.LeaseDurationPos, "long-lease", "hold for hours and extend it: `stanch extend`", "a lease of %s holds long after everybody has gone home", duration.Format(s.LeaseDuration))
	case s.Verb == VerbContain && !spec.Reversible && s.Retry != nil:
		c.warnf(s.keyPositions["retry"], "retried-act", "remove it", "`%s` has no undo: a second attempt may act twice", s.Action)
	case s.ForEach != nil && s.ForEach.Concurrency > 1:
		walkSteps(s.ForEach.Steps, func(inner *Step) {
			if inner.Approval != nil {
				c.warnf(inner.Pos, "many-questions", "put the loop inside of one approval", "people are asked up to %d things at once", s.ForEach.Concurrency)
			}
		})
	}
}

func (c *checker) lintApproval(a *Approval, s *Step) {
	if a.Question == nil {
		c.warnf(s.keyPositions["approval"], "no-question", "say what is known and what a yes does: `ask: …`", "people are asked without a question")
	}
	if a.Timeout < time.Minute {
		c.warnf(s.keyPositions["timeout"], "short-timeout", "give them some minutes", "nobody who sleeps answers within %s", duration.Format(a.Timeout))
	}
	if a.Timeout > 12*time.Hour {
		c.warnf(s.keyPositions["timeout"], "long-timeout", "ask again instead, in a new incident", "after %s nobody remembers what was asked", duration.Format(a.Timeout))
	}
	effects, disrupts := false, false
	walkSteps(a.Steps, func(inner *Step) {
		effects = effects || inner.Verb == VerbContain || inner.Call != nil
		disrupts = disrupts || c.program.catalog[inner.Action].Class == ClassDisrupt
	})
	if !effects {
		c.warnf(s.keyPositions["approval"], "asks-for-nothing", "remove the approval around them", "nothing inside of it needs a yes")
	}
	if disrupts && a.Quorum < 2 && a.Escalate == nil && len(a.Users) == 1 && len(a.Groups) == 0 {
		c.warnf(s.keyPositions["from"], "one-person", "ask a group, or `escalate`", "everything waits for one person")
	}
}
