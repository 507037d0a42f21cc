package playbooks

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
)

// checkTypes compiles every expression and checks every parameter.
func (c *checker) checkTypes() {
	book := c.program.Playbook
	names := typeScope{"incident": Incident{}}
	for i := range book.Inputs {
		c.checkInput(&book.Inputs[i], names)
	}
	names["inputs"] = reflect.Zero(inputsStructType(book.Inputs)).Interface()
	if book.Match != nil {
		c.compileExpr(book.Match.When, names, flowContext{}, reflect.TypeFor[bool]())
	}
	c.checkSequenceTypes(book.Steps, names, flowContext{})
	c.checkSequenceTypes(book.Finally, names, flowContext{}.withCondition("finally"))
	var fields []reflect.StructField
	for _, o := range book.Outputs {
		t := c.compileExpr(o.Expr, names, flowContext{}.withCondition("outputs"), nil)
		if t == nil {
			continue
		}
		if !isOutputType(t) {
			c.errorf(o.Expr.Pos, "type", "use a string, a number, true or false, a target, or a list of these",
				"the output `%s` is %s", o.Name, describeType(t))
			continue
		}
		if slices.Contains(alwaysReadableFields, o.Name) {
			c.errorf(o.Pos, "name", "choose another name", "the name `%s` is reserved: every step has it", o.Name)
			continue
		}
		fields = append(fields, outputStructField(o.Name, t))
	}
	c.program.outputsType = reflect.StructOf(fields)
}

// outputStructField returns the struct field of an output.
func outputStructField(name string, t reflect.Type) reflect.StructField {
	return reflect.StructField{
		Name: "Out_" + name, Type: t,
		Tag: reflect.StructTag(fmt.Sprintf(`json:%q expr:%q`, name, name)),
	}
}

// isOutputType reports whether a playbook can return a value of a type.
func isOutputType(t reflect.Type) bool {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float64:
		return true
	default:
		return isIntegerType(t) || t == reflect.TypeFor[Target]()
	}
}

// checkSequenceTypes checks a sequence and adds its names to the given scope, for the steps that follow.
func (c *checker) checkSequenceTypes(steps []Step, names typeScope, at flowContext) {
	for i := range steps {
		c.checkStepTypes(&steps[i], names, at)
	}
}

func (c *checker) checkStepTypes(s *Step, names typeScope, at flowContext) {
	if s.If != nil {
		c.compileExpr(s.If, names, at, reflect.TypeFor[bool]())
		at = at.withCondition(normalizeSpaces(s.If.Source), c.stepsWithOutcomeRead(s.If)...)
	}
	c.affectsPlan = s.Verb == VerbContain || s.ForEach != nil || s.Call != nil
	c.checkTarget(s, names, at)
	switch {
	case c.stepsWithUnknownNames[s]:
	case s.Approval != nil:
		c.checkTemplate(s.Approval.Question, names, at)
		c.affectsPlan = false
		c.checkSequenceTypes(s.Approval.Steps, names, at.withCondition("approved:"+s.Path))
	case s.Parallel != nil:
		// Branches are isolated: each sees the steps before the block, and only the steps after it see all branches.
		before := maps.Clone(names)
		for i := range s.Parallel {
			branch := maps.Clone(before)
			c.checkStepTypes(&s.Parallel[i], branch, at)
			maps.Copy(names, branch)
		}
	case s.ForEach != nil:
		c.checkForEach(s, names, at)
	case s.Call != nil:
		c.checkCallInputs(s, names, at)
	case s.Wait != nil && s.Wait.Until != nil:
		inside := maps.Clone(names)
		inside["live"] = Incident{}
		if c.compileExpr(s.Wait.Until, inside, at, reflect.TypeFor[bool]()) != nil && !c.namesRead["live"] {
			c.errorf(s.Wait.Until.Pos, "unreachable",
				"read `live`, the current incident: `live.total_detections > incident.total_detections`",
				"the condition reads nothing that can change during the wait")
		}
		delete(c.namesRead, "live")
	case s.Assignments != nil:
		c.checkAssignmentTypes(s, names, at)
	case s.Stop != nil:
		c.checkTemplate(s.Stop.Reason, names, at)
	case s.Action != "":
		c.checkArguments(s, c.program.catalog[s.Action], names, at)
	}
	c.affectsPlan = false
	if _, mine := c.declaredPositions[s.ID]; s.ID != "" && mine {
		names[s.ID] = zeroStepValue(c.program.stepOutputsType(s))
		c.declaredAt[s.ID], c.stepPaths[s.ID] = at, s.Path
	}
	c.checkSequenceTypes(s.OnFailure, names, at.withCondition("failed:"+s.Path, s.ID))
	c.checkSequenceTypes(s.OnDenied, names, at.withCondition("denied:"+s.Path, s.ID))
}

// stepsWithOutcomeRead returns the steps whose outcome an expression reads.
func (c *checker) stepsWithOutcomeRead(e *Expr) []string {
	program := c.program.compiledExprs[e]
	if program == nil {
		return nil
	}
	var out []string
	for name, h := range findReads(program.Node()) {
		if h.readsOutcome {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// normalizeSpaces returns an expression's text with single spaces, for comparison.
func normalizeSpaces(source string) string { return strings.Join(strings.Fields(source), " ") }

func (c *checker) checkTarget(s *Step, names typeScope, at flowContext) {
	if s.Target == nil {
		return
	}
	if t := c.compileExpr(s.Target, names, at, nil); t != nil && !isTargetListType(t) {
		c.errorf(s.Target.Pos, "type", "for example, use `incident.targets` or `filter(incident.targets, .name == \"web\")`",
			"`target` must return targets, not %s", describeType(t))
	}
}

func (c *checker) checkForEach(s *Step, names typeScope, at flowContext) {
	f := s.ForEach
	t := c.compileExpr(f.List, names, at, nil)
	c.affectsPlan = false
	if t == nil {
		if f.List != nil {
			return // unknown type: the element's type is unknown too
		}
	} else if t.Kind() != reflect.Slice || t.Elem().Kind() == reflect.Interface {
		c.errorf(f.List.Pos, "type", "for example, use `incident.targets`", "`foreach` requires a list, not %s",
			describeType(t))
		return
	}
	inside := maps.Clone(names)
	if t != nil {
		c.program.loopElementTypes[f] = t.Elem()
		inside[f.Variable] = reflect.Zero(t.Elem()).Interface()
	}
	c.checkSequenceTypes(f.Steps, inside, at.withCondition("each:"+s.Path))
}

// checkCallInputs checks the inputs of a call.
func (c *checker) checkCallInputs(s *Step, names typeScope, at flowContext) {
	callee := c.program.Callees[s.Call.Playbook]
	if callee == nil {
		return
	}
	var known []string
	given := map[string]bool{}
	inputs := map[string]Input{}
	for _, in := range callee.Inputs {
		known, inputs[in.Name] = append(known, in.Name), in
	}
	for _, arg := range s.Arguments {
		in, ok := inputs[arg.Name]
		if !ok {
			hint := diagnostic.DidYouMean(arg.Name, known)
			if len(known) == 0 {
				hint = "it has no inputs"
			}
			c.errorf(arg.Pos, "unknown-parameter", hint, "the playbook `%s` has no input `%s`", callee.Name,
				truncate.Text(arg.Name, 40))
			continue
		}
		given[arg.Name] = true
		c.checkValue(arg.Value, wantedValue{in.goType(), in.boundsTag(), arg.Name}, names, at)
	}
	for _, in := range callee.Inputs {
		if !given[in.Name] && in.Default == nil {
			c.errorf(s.Call.Pos, "required", fmt.Sprintf("add `with: {%s: …}`", in.Name),
				"the playbook `%s` requires the input `%s`", callee.Name, in.Name)
		}
	}
}

// checkAssignmentTypes infers the type of each value of a `set`. A name that is set again keeps its type.
func (c *checker) checkAssignmentTypes(s *Step, names typeScope, at flowContext) {
	for _, a := range s.Assignments {
		t := c.inferValueType(a.Value, a.Name, names, at)
		if t == nil {
			continue
		}
		if first := c.program.assignedZeroValues[a.Name]; first != nil && !isAssignable(t, reflect.TypeOf(first)) {
			c.errorf(a.Value.Pos, "type", "choose another name", "`%s` has been %s since line %d, but this value is %s", a.Name,
				describeType(reflect.TypeOf(first)), c.declaredPositions[a.Name].Line, describeType(t))
			continue
		}
		if c.program.assignedZeroValues[a.Name] == nil {
			c.program.assignedZeroValues[a.Name] = reflect.Zero(t).Interface()
			c.declaredAt[a.Name] = at
		}
		names[a.Name] = c.program.assignedZeroValues[a.Name]
	}
}

// inferValueType returns the type of a value without a declared type.
func (c *checker) inferValueType(v Value, name string, names typeScope, at flowContext) reflect.Type {
	switch {
	case v.Expr != nil:
		t := c.compileExpr(v.Expr, names, at, nil)
		if t != nil && t.Kind() == reflect.Interface {
			c.errorf(v.Expr.Pos, "type", "", "the type of `%s` cannot be determined", name)
			return nil
		}
		return t
	case v.Template != nil:
		c.checkTemplate(v.Template, names, at)
		return reflect.TypeFor[string]()
	case v.IsList || v.IsMap:
		c.errorf(v.Pos, "type", "write a list as an expression: `${[1, 2]}`", "`%s` must be one value or an expression", name)
		return nil
	case v.Literal == nil:
		c.errorf(v.Pos, "type", "give it a value", "`%s` is empty", name)
		return nil
	}
	return reflect.TypeOf(v.Literal)
}
