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
		c.warnf(book.NamePos, "no-description", "add a sentence for the responder: `description: …`",
			"the playbook has no description")
	}
	if m := book.Match; m != nil {
		if always, constant := c.evalConstantCondition(m.When); constant && always && len(m.Objectives) == 0 &&
			m.Severity.Text == "" && c.hasContainment() {
			c.warnf(m.When.Pos, "matches-everything", "name the `objective`",
				"the playbook has containment steps and matches every incident")
		} else if constant && !always {
			c.warnf(m.When.Pos, "matches-nothing", "", "the playbook never matches: its `when` is always false")
		}
		if m.Exclusive && m.Priority != nil && *m.Priority == 0 {
			c.warnf(book.NamePos, "exclusive", "set a `priority` above that of the others",
				"the playbook is exclusive with the lowest priority: it excludes only playbooks of the same priority")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.program.assignedZeroValues)) {
		if !c.namesRead[name] {
			c.warnf(c.declaredPositions[name], "unused", "remove it", "`%s` is not used", name)
		}
	}
	for _, in := range book.Inputs {
		if !c.namesRead["inputs"] {
			c.warnf(in.Pos, "unused", "remove it", "the inputs are not used")
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
		c.warnf(s.ActionPos, "never-runs", "raise `max_phase`, or remove the step",
			"`%s` is only proposed: the playbook's maximum phase is %d", s.Action, c.program.MaxPhase)
	case spec.MaxDuration > 0 && s.LeaseDuration > spec.MaxDuration:
		c.warnf(s.LeaseDurationPos, "too-long",
			fmt.Sprintf("use a duration of at most `%s`", duration.Format(spec.MaxDuration)), "`%s` for %s: %s", s.Action,
			duration.Format(s.LeaseDuration), lowerFirst(spec.Doc))
	case spec.Reversible && s.LeaseDuration > 24*time.Hour:
		c.warnf(s.LeaseDurationPos, "long-lease", "use a duration of a few hours, and extend the lease with `stanch extend`",
			"a lease of %s is too long", duration.Format(s.LeaseDuration))
	case s.Verb == VerbContain && !spec.Reversible && s.Retry != nil:
		c.warnf(s.keyPositions["retry"], "retried-act", "remove it", "`%s` has no undo: a retry may apply it twice", s.Action)
	case s.ForEach != nil && s.ForEach.Concurrency > 1:
		walkSteps(s.ForEach.Steps, func(inner *Step) {
			if inner.Approval != nil {
				c.warnf(inner.Pos, "many-questions", "put the loop inside one approval",
					"up to %d approvals are requested at the same time", s.ForEach.Concurrency)
			}
		})
	}
}

func (c *checker) lintApproval(a *Approval, s *Step) {
	if a.Question == nil {
		c.warnf(s.keyPositions["approval"], "no-question", "describe what is known and what an approval does: `ask: …`",
			"the approval has no `ask` text")
	}
	if a.Timeout < time.Minute {
		c.warnf(s.keyPositions["timeout"], "short-timeout", "use at least a few minutes",
			"%s is too short for people to respond", duration.Format(a.Timeout))
	}
	if a.Timeout > 12*time.Hour {
		c.warnf(s.keyPositions["timeout"], "long-timeout", "use a shorter timeout; a new incident requests a new approval",
			"%s is too long: people no longer know what was requested", duration.Format(a.Timeout))
	}
	effects, disrupts := false, false
	walkSteps(a.Steps, func(inner *Step) {
		effects = effects || inner.Verb == VerbContain || inner.Call != nil
		disrupts = disrupts || c.program.catalog[inner.Action].Class == ClassDisrupt
	})
	if !effects {
		c.warnf(s.keyPositions["approval"], "asks-for-nothing", "remove the approval",
			"no step inside the approval requires one")
	}
	if disrupts && a.Quorum < 2 && a.Escalate == nil && len(a.Users) == 1 && len(a.Groups) == 0 {
		c.warnf(s.keyPositions["from"], "one-person", "ask a group, or `escalate`", "only one person can approve")
	}
}
