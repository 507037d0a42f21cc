package playbooks

import (
	"maps"
	"slices"
	"strings"

	"stanch/sensors/expression"
	"stanch/sensors/truncate"
)

// checkFlow checks that every step is reachable, and that expressions read only steps that have run.
func (c *checker) checkFlow() {
	for _, u := range c.expressionUses {
		for _, name := range slices.Sorted(maps.Keys(u.stepReads)) {
			c.checkStepHasRun(u, name, u.stepReads[name])
		}
	}
	c.checkReachable(c.program.Steps)
	c.checkReachable(c.program.Finally)
	walkSteps(c.program.Finally, func(s *Step) {
		switch {
		case s.Verb == VerbContain || s.Approval != nil || s.Call != nil || s.Wait != nil:
			c.errorf(s.Pos, "finally", "put it at the end of `steps`",
				"`%s` is not allowed in `finally`: these steps only observe, and do not wait", s.Kind())
		case s.Stop != nil:
			c.errorf(s.Pos, "finally", "remove it", "`stop` is not allowed in `finally`, because the playbook is already ending")
		}
	})
}

// checkStepHasRun reports the use of a step's output in an expression that can be evaluated when the step has not run.
func (c *checker) checkStepHasRun(u exprUse, name string, h readKind) {
	born, ok := c.declaredAt[name]
	if ok && h.readsOutputs && c.isStepName(name) && slices.Contains(u.flow.conditions, "failed:"+c.stepPaths[name]) {
		c.errorf(u.expr.Pos, "may-not-have-run", "read its outcome: `"+name+".outcome`",
			"the step `%s` has failed here: it has no outputs", name)
		return
	}
	if ok && u.affectsPlan && c.isStepName(name) && h.readsOutputs {
		for _, condition := range born.conditions {
			if strings.HasPrefix(condition, "approved:") && slices.Contains(u.flow.conditions, condition) {
				c.errorf(u.expr.Pos, "not-known-yet", "put that step before the approval",
					"the approval is requested before the step `%s` has run, so it cannot cover the outputs of that step", name)
				return
			}
		}
	}
	if !ok || !h.readsOutputs || !c.isStepName(name) || h.readsOutcome || slices.Contains(u.flow.outcomeCheckedSteps,
		name) {
		return
	}
	for _, condition := range born.conditions {
		if !slices.Contains(u.flow.conditions, condition) {
			c.errorf(u.expr.Pos, "may-not-have-run",
				"check its outcome first: `"+name+".outcome == \"succeeded\" && …`, or put this under the same condition",
				"the step `%s` may not have run here: it is %s", name, describeCondition(condition))
			return
		}
	}
}

// describeCondition returns a condition in words.
func describeCondition(condition string) string {
	kind, path, _ := strings.Cut(condition, ":")
	switch kind {
	case "approved":
		return "in the approval " + path
	case "failed":
		return "in the `on_failure` of " + path
	case "denied":
		return "in the `on_denied` of " + path
	case "each":
		return "in the loop " + path
	case "finally":
		return "in `finally`"
	}
	return "under `if: " + truncate.Text(condition, 60) + "`"
}

// checkReachable reports steps that can never run.
func (c *checker) checkReachable(steps []Step) {
	ended := Pos{}
	for i := range steps {
		s := &steps[i]
		if ended != (Pos{}) {
			c.errorf(s.Pos, "unreachable", "remove it, or give the `stop` an `if`",
				"this can never run: the playbook stops at line %d", ended.Line)
			ended = Pos{}
		}
		if value, constant := c.evalConstantCondition(s.If); constant && !value {
			c.errorf(s.If.Pos, "unreachable", "remove the step", "this can never run: its `if` is always false")
		}
		if s.Stop != nil && s.If == nil {
			ended = s.Pos
		}
		if s.ForEach != nil {
			c.checkLoopAssignments(s)
		}
		for j := range s.Parallel {
			c.checkReachable(s.Parallel[j : j+1])
		}
		c.checkReachable(s.nestedSteps())
		c.checkReachable(s.OnFailure)
		c.checkReachable(s.OnDenied)
	}
}

// checkLoopAssignments reports values that a loop sets and that are read after the iteration that set them.
func (c *checker) checkLoopAssignments(loop *Step) {
	inside := "each:" + loop.Path
	walkSteps(loop.ForEach.Steps, func(s *Step) {
		for _, a := range s.Assignments {
			if born, ok := c.declaredAt[a.Name]; ok && !slices.Contains(born.conditions, inside) {
				c.errorf(a.Pos, "lost", "give it another name; values that a loop sets are not visible outside",
					"`%s` is also set outside the loop: the value set here is lost after each iteration", a.Name)
			}
		}
	})
}

// evalConstantCondition returns the value of a condition that depends on nothing; constant is false for others.
func (c *checker) evalConstantCondition(e *Expr) (value, constant bool) {
	program := c.program.compiledExprs[e]
	if e == nil || program == nil {
		return false, false
	}
	if len(findReads(program.Node())) > 0 {
		return false, false
	}
	out, err := expression.Run(program, nil)
	value, constant = out.(bool)
	return value, constant && err == nil
}
