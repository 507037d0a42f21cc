package playbooks

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"stanch/sensors/diagnostic"
)

// typesStage compiles every expression and judges every parameter.
func (c *checker) typesStage() {
	book := c.program.Playbook
	names := scope{"incident": Incident{}}
	for i := range book.Inputs {
		c.input(&book.Inputs[i], names)
	}
	names["inputs"] = reflect.Zero(inputType(book.Inputs)).Interface()
	if book.Match != nil {
		c.compile(book.Match.When, names, place{}, reflect.TypeFor[bool]())
	}
	c.typesOf(book.Steps, names, place{})
	c.typesOf(book.Finally, names, place{}.under("finally"))
	var fields []reflect.StructField
	for _, o := range book.Outputs {
		t := c.compile(o.Expr, names, place{}.under("outputs"), nil)
		if t == nil {
			continue
		}
		if !plain(t) {
			c.errorf(o.Expr.Pos, "type", "give a string, a number, true or false, a target, or a list of one of them", "the output `%s` is %s", o.Name, typeName(t))
			continue
		}
		if slices.Contains(alwaysKnown, o.Name) {
			c.errorf(o.Pos, "name", "choose another name", "every step has `%s` already", o.Name)
			continue
		}
		fields = append(fields, outputField(o.Name, t))
	}
	c.program.outputs = reflect.StructOf(fields)
}

// outputField is the field under which an output is kept.
func outputField(name string, t reflect.Type) reflect.StructField {
	return reflect.StructField{Name: "Out_" + name, Type: t, Tag: reflect.StructTag(fmt.Sprintf(`json:%q expr:%q`, name, name))}
}

// plain tells whether a type may leave a playbook.
func plain(t reflect.Type) bool {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float64:
		return true
	default:
		return isInt(t) || t == reflect.TypeFor[Target]()
	}
}

// typesOf checks a sequence. The scope that it is given gains the names of the sequence, for those that follow.
func (c *checker) typesOf(steps []Step, names scope, at place) {
	for i := range steps {
		c.typesOfStep(&steps[i], names, at)
	}
}

func (c *checker) typesOfStep(s *Step, names scope, at place) {
	if s.If != nil {
		c.compile(s.If, names, at, reflect.TypeFor[bool]())
		at = at.under(normal(s.If.Source), c.outcomesIn(s.If)...)
	}
	c.plans = s.Verb == VerbContain || s.ForEach != nil || s.Call != nil
	c.target(s, names, at)
	switch {
	case c.bad[s]:
	case s.Approval != nil:
		c.text(s.Approval.Ask, names, at)
		c.plans = false
		c.typesOf(s.Approval.Steps, names, at.under("approved:"+s.Path))
	case s.Parallel != nil:
		// Branches are isolated: each sees what came before, and only what follows sees them all.
		before := maps.Clone(names)
		for i := range s.Parallel {
			branch := maps.Clone(before)
			c.typesOfStep(&s.Parallel[i], branch, at)
			maps.Copy(names, branch)
		}
	case s.ForEach != nil:
		c.loop(s, names, at)
	case s.Call != nil:
		c.call(s, names, at)
	case s.Wait != nil && s.Wait.Until != nil:
		inside := maps.Clone(names)
		inside["live"] = Incident{}
		if c.compile(s.Wait.Until, inside, at, reflect.TypeFor[bool]()) != nil && !c.read["live"] {
			c.errorf(s.Wait.Until.Pos, "unreachable", "read `live`, the incident as it is now: `live.total > incident.total`", "nothing that it reads changes while it waits")
		}
		delete(c.read, "live")
	case s.Set != nil:
		c.setTypes(s, names, at)
	case s.Stop != nil:
		c.text(s.Stop.Reason, names, at)
	case s.Action != "":
		c.arguments(s, c.program.catalogue[s.Action], names, at)
	}
	c.plans = false
	if _, mine := c.ids[s.ID]; s.ID != "" && mine {
		names[s.ID] = zeroStep(c.program.outputsOf(s))
		c.born[s.ID], c.paths[s.ID] = at, s.Path
	}
	c.typesOf(s.OnFailure, names, at.under("failed:"+s.Path, s.ID))
	c.typesOf(s.OnDenied, names, at.under("denied:"+s.Path, s.ID))
}

// outcomesIn are the steps whose outcome an expression looks at.
func (c *checker) outcomesIn(e *Expr) []string {
	program := c.program.exprs[e]
	if program == nil {
		return nil
	}
	var out []string
	for name, h := range readsOf(program.Node()) {
		if h.outcome {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// normal is an expression's text with its spaces evened out, for comparison.
func normal(source string) string { return strings.Join(strings.Fields(source), " ") }

func (c *checker) target(s *Step, names scope, at place) {
	if s.Target == nil {
		return
	}
	if t := c.compile(s.Target, names, at, nil); t != nil && !isTargets(t) {
		c.errorf(s.Target.Pos, "type", "use for example `incident.targets` or `filter(incident.targets, .name == \"web\")`",
			"`target` must give targets, not %s", typeName(t))
	}
}

func (c *checker) loop(s *Step, names scope, at place) {
	f := s.ForEach
	t := c.compile(f.List, names, at, nil)
	c.plans = false
	if t == nil {
		if f.List != nil {
			return // its type is not known: neither is the element's
		}
	} else if t.Kind() != reflect.Slice || t.Elem().Kind() == reflect.Interface {
		c.errorf(f.List.Pos, "type", "use for example `incident.targets`", "`foreach` must be given a list, not %s", typeName(t))
		return
	}
	inside := maps.Clone(names)
	if t != nil {
		c.program.loops[f] = t.Elem()
		inside[f.As] = reflect.Zero(t.Elem()).Interface()
	}
	c.typesOf(f.Steps, inside, at.under("each:"+s.Path))
}

// call judges the inputs that a call gives.
func (c *checker) call(s *Step, names scope, at place) {
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
	for _, arg := range s.With {
		in, ok := inputs[arg.Name]
		if !ok {
			hint := diagnostic.DidYouMean(arg.Name, known)
			if len(known) == 0 {
				hint = "it takes none"
			}
			c.errorf(arg.Pos, "unknown-parameter", hint, "the playbook `%s` has no input `%s`", callee.Name, clip(arg.Name, 40))
			continue
		}
		given[arg.Name] = true
		c.value(arg.Value, in.goType(), in.tag(), arg.Name, names, at)
	}
	for _, in := range callee.Inputs {
		if !given[in.Name] && in.Default == nil {
			c.errorf(s.Call.Pos, "required", fmt.Sprintf("add `with: {%s: …}`", in.Name), "the playbook `%s` needs the input `%s`", callee.Name, in.Name)
		}
	}
}

// setTypes finds the type of each value that is given a name. One that is set again keeps its type.
func (c *checker) setTypes(s *Step, names scope, at place) {
	for _, a := range s.Set {
		t := c.typeOf(a.Value, a.Name, names, at)
		if t == nil {
			continue
		}
		if first := c.program.values[a.Name]; first != nil && !assignable(t, reflect.TypeOf(first)) {
			c.errorf(a.Value.Pos, "type", "choose another name", "`%s` is %s since line %d, this gives %s", a.Name, typeName(reflect.TypeOf(first)), c.ids[a.Name].Line, typeName(t))
			continue
		}
		if c.program.values[a.Name] == nil {
			c.program.values[a.Name] = reflect.Zero(t).Interface()
			c.born[a.Name] = at
		}
		names[a.Name] = c.program.values[a.Name]
	}
}

// typeOf is the type of a value that says it by itself.
func (c *checker) typeOf(v Value, name string, names scope, at place) reflect.Type {
	switch {
	case v.Expr != nil:
		t := c.compile(v.Expr, names, at, nil)
		if t != nil && t.Kind() == reflect.Interface {
			c.errorf(v.Expr.Pos, "type", "", "the type of `%s` cannot be known", name)
			return nil
		}
		return t
	case v.Text != nil:
		c.text(v.Text, names, at)
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
