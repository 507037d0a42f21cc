package playbooks

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"stanch/sensors/duration"
)

// adviceStage warns of what is legal and unwise. It is silent about a playbook with errors: they come first.
func (c *checker) adviceStage() {
	if c.Problems.HasErrors() {
		return
	}
	book := c.program.Playbook
	if book.Description == "" {
		c.warn(book.NamePos, "no-description", "a sentence for the responder: `description: …`", "the playbook says nothing of what it is for")
	}
	if m := book.Match; m != nil {
		if always, constant := c.constant(m.When); constant && always && len(m.Objectives) == 0 && m.Severity.Text == "" && c.mayContain() {
			c.warn(m.When.Pos, "matches-everything", "name the `objective`", "it contains, and it matches every incident")
		} else if constant && !always {
			c.warn(m.When.Pos, "matches-nothing", "", "it never matches: its `when` is always false")
		}
		if m.Exclusive && m.Priority != nil && *m.Priority == 0 {
			c.warn(book.NamePos, "exclusive", "give it a `priority` above the others'", "it is exclusive with the lowest priority: it holds back only its equals")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.program.values)) {
		if !c.read[name] {
			c.warn(c.ids[name], "unused", "remove it", "nothing reads `%s`", name)
		}
	}
	for _, in := range book.Inputs {
		if !c.read["inputs"] {
			c.warn(in.Pos, "unused", "remove it", "nothing reads the inputs")
			break
		}
	}
	walk(book.Steps, c.advise)
}

func (c *checker) mayContain() bool {
	found := false
	walk(c.program.Steps, func(s *Step) { found = found || s.Verb == VerbContain })
	return found
}

func (c *checker) advise(s *Step) {
	spec := c.program.catalogue[s.Action]
	if always, constant := c.constant(s.If); constant && always {
		c.warn(s.If.Pos, "always-true", "remove it", "this `if` is always true")
	}
	switch {
	case s.Approval != nil:
		c.adviseApproval(s.Approval, s)
	case spec.Class == ClassContain && c.program.MaxPhase < 2, spec.Class == ClassDisrupt && c.program.MaxPhase < 3:
		c.warn(s.ActionPos, "never-runs", "raise `max_phase`, or remove the step", "`%s` is only ever proposed: the playbook goes no further than phase %d", s.Action, c.program.MaxPhase)
	case spec.MaxFor > 0 && s.For > spec.MaxFor:
		c.warn(s.ForPos, "too-long", fmt.Sprintf("hold it for at most `%s`", duration.Format(spec.MaxFor)), "`%s` for %s: %s", s.Action, duration.Format(s.For), lower(spec.Doc))
	case spec.Reversible && s.For > 24*time.Hour:
		c.warn(s.ForPos, "long-lease", "hold for hours and extend it: `stanch extend`", "a lease of %s holds long after everybody has gone home", duration.Format(s.For))
	case s.Verb == VerbContain && !spec.Reversible && s.Retry != nil:
		c.warn(s.keys["retry"], "retried-act", "remove it", "`%s` has no undo: a second attempt may act twice", s.Action)
	case s.ForEach != nil && s.ForEach.Concurrency > 1:
		walk(s.ForEach.Steps, func(inner *Step) {
			if inner.Approval != nil {
				c.warn(inner.Pos, "many-questions", "put the loop inside of one approval", "people are asked up to %d things at once", s.ForEach.Concurrency)
			}
		})
	}
}

func (c *checker) adviseApproval(a *Approval, s *Step) {
	if a.Ask == nil {
		c.warn(s.keys["approval"], "no-question", "say what is known and what a yes does: `ask: …`", "people are asked without a question")
	}
	if a.Timeout < time.Minute {
		c.warn(s.keys["timeout"], "short-timeout", "give them some minutes", "nobody who sleeps answers within %s", duration.Format(a.Timeout))
	}
	if a.Timeout > 12*time.Hour {
		c.warn(s.keys["timeout"], "long-timeout", "ask again instead, in a new incident", "after %s nobody remembers what was asked", duration.Format(a.Timeout))
	}
	effects, disrupts := false, false
	walk(a.Steps, func(inner *Step) {
		effects = effects || inner.Verb == VerbContain || inner.Call != nil
		disrupts = disrupts || c.program.catalogue[inner.Action].Class == ClassDisrupt
	})
	if !effects {
		c.warn(s.keys["approval"], "asks-for-nothing", "remove the approval around them", "nothing inside of it needs a yes")
	}
	if disrupts && a.Quorum < 2 && a.Escalate == nil && len(a.Users) == 1 && len(a.Groups) == 0 {
		c.warn(s.keys["from"], "one-person", "ask a group, or `escalate`", "everything waits for one person")
	}
}
