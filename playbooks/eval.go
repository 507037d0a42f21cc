package playbooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"

	"stanch/sensors"
	"stanch/sensors/expression"
)

// Env is what a run's expressions see: the incident as it was when the playbook matched, its inputs, and the steps so
// far.
type Env struct {
	values   map[string]any
	outcomes map[string]Outcome // of the steps that have run
	set      map[string]bool    // the values that were set in this branch
	lenient  bool
	kept     *int // bytes of all values that the run has set, in every branch
}

// Bounds of what a run computes. Without them a playbook of a few lines doubles a text until the worker is killed, and
// again when Temporal hands the workflow to the next one.
const (
	maxValue = 256 << 10 // bytes of one value
	maxKept  = 4 << 20   // bytes of the values that one run sets
	maxText  = 64 << 10  // bytes of one rendered text
)

// NewEnv is the environment at the start of a run: every step has not run. The inputs that are not given have their
// defaults; an error names one that is missing or does not fit.
func (p *Program) NewEnv(incident Incident, given map[string]any) (Env, error) {
	e := Env{values: map[string]any{"incident": incident}, outcomes: map[string]Outcome{}, set: map[string]bool{}, kept: new(int)}
	p.Walk(func(s *Step) {
		if s.ID != "" {
			e.values[s.ID] = stepValue(p.outputsOf(s), reflect.Value{}, OutcomeSkipped, 0, nil)
		}
	})
	maps.Copy(e.values, p.values)
	inputs, err := p.bind(given, e)
	e.values["inputs"] = inputs
	return e, err
}

// Lenient is an environment in which outputs that are not there are zero values, as version 1 of the language had it.
func (e Env) Lenient() Env {
	e.lenient = true
	return e
}

// outputsOf is the struct type of a step's outputs, or nil.
func (p *Program) outputsOf(s *Step) reflect.Type {
	if s.Call != nil {
		if callee := p.Callees[s.Call.Playbook]; callee != nil {
			return callee.outputs
		}
		return nil
	}
	return p.catalogue[s.Action].OutputType()
}

// Walk visits every step, in the order of the file.
func (p *Program) Walk(visit func(*Step)) {
	walk(p.Steps, visit)
	walk(p.Finally, visit)
}

func walk(steps []Step, visit func(*Step)) {
	for i := range steps {
		visit(&steps[i])
		for _, b := range steps[i].Blocks() {
			walk(b.Steps, visit)
		}
	}
}

// Record enters a step's outcome and its outputs (JSON, of the first target) for the expressions that follow.
func (p *Program) Record(env Env, s *Step, outcome Outcome, outputs json.RawMessage, targets int, failed ...Target) error {
	if s.ID == "" {
		return nil
	}
	t := p.outputsOf(s)
	var value reflect.Value
	if t != nil && len(outputs) > 0 && outcome.Usable() {
		out := reflect.New(t)
		if err := json.Unmarshal(outputs, out.Interface()); err != nil {
			return fmt.Errorf("outputs of step %s: %w", s.Name(), err)
		}
		value = out.Elem()
	}
	env.values[s.ID] = stepValue(t, value, outcome, targets, failed)
	env.outcomes[s.ID] = outcome
	return nil
}

// Element enters the element of a loop's list.
func (e Env) Element(f *ForEach, element any) { e.values[f.As] = element }

// Set evaluates the values of a `set` step and gives them their names. Where one cannot be evaluated none is set.
func (p *Program) Set(s *Step, env Env) error {
	got := map[string]any{}
	for _, a := range s.Set {
		v, err := p.value(a.Value, env)
		if err != nil {
			return fmt.Errorf("`%s`: %w", a.Name, err)
		}
		value, err := convert(v, reflect.TypeOf(p.values[a.Name]))
		if err != nil {
			return fmt.Errorf("`%s` %w", a.Name, err)
		}
		got[a.Name] = value.Interface()
		if *env.kept += expression.EstimateSize(got[a.Name], maxValue); *env.kept > maxKept {
			return fmt.Errorf("`%s`: the values that this run sets have more than %d bytes together", a.Name, maxKept)
		}
	}
	maps.Copy(env.values, got)
	for _, a := range s.Set {
		env.set[a.Name] = true
	}
	return nil
}

// Items evaluates the list of a loop.
func (p *Program) Items(f *ForEach, env Env) ([]any, error) {
	out, err := p.eval(f.List, env)
	if err != nil {
		return nil, err
	}
	list := reflect.ValueOf(out)
	if out == nil || list.Kind() != reflect.Slice {
		return nil, fmt.Errorf("`foreach` was given %T and no list", out)
	}
	items := make([]any, list.Len())
	for i := range items {
		element, err := convert(list.Index(i).Interface(), p.loops[f])
		if err != nil {
			return nil, fmt.Errorf("an element of the list %w", err)
		}
		items[i] = element.Interface()
	}
	return items, nil
}

// Given evaluates what a call gives, by input.
func (p *Program) Given(s *Step, env Env) (map[string]any, error) {
	given := map[string]any{}
	for _, arg := range s.With {
		v, err := p.value(arg.Value, env)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", arg.Name, err)
		}
		given[arg.Name] = v
	}
	return given, nil
}

// Give evaluates the outputs of a playbook that has run, as JSON.
func (p *Program) Give(env Env) (json.RawMessage, error) {
	out := map[string]any{}
	for _, o := range p.Outputs {
		v, err := p.eval(o.Expr, env)
		if err != nil {
			return nil, fmt.Errorf("output %s: %w", o.Name, err)
		}
		out[o.Name] = v
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("outputs of %s: %w", p.Name, err)
	}
	if len(raw) > maxValue {
		return nil, fmt.Errorf("the outputs of %s have %d bytes, at most %d are allowed", p.Name, len(raw), maxValue)
	}
	return raw, nil
}

// Holds evaluates what a `wait` waits for, on the incident as it is now.
func (p *Program) Holds(w *Wait, env Env, live Incident) (bool, error) {
	inside := env.Clone()
	inside.values["live"] = live
	return p.Bool(w.Until, inside)
}

// eval runs an expression. It is an error to read the outputs of a step that has none.
func (p *Program) eval(e *Expr, env Env) (any, error) {
	for _, name := range p.reads[e] {
		if o, ran := env.outcomes[name]; !env.lenient && (!ran || !o.Usable()) {
			if !ran {
				o = OutcomeSkipped
			}
			return nil, &unreadError{name, o}
		}
	}
	out, err := expression.Run(p.exprs[e], env.values)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says that it evaluates
	}
	if expression.EstimateSize(out, maxValue) > maxValue {
		return nil, fmt.Errorf("the value has more than %d bytes", maxValue)
	}
	return out, nil
}

// unreadError is that an expression reads a step that has no outputs.
type unreadError struct {
	step    string
	outcome Outcome
}

func (e *unreadError) Error() string {
	return fmt.Sprintf("the outputs of step %s cannot be read: its outcome is %s", e.step, e.outcome)
}

// Clone gives a branch an environment of its own.
func (e Env) Clone() Env {
	values := make(map[string]any, len(e.values))
	maps.Copy(values, e.values)
	outcomes := make(map[string]Outcome, len(e.outcomes))
	maps.Copy(outcomes, e.outcomes)
	return Env{values: values, outcomes: outcomes, set: map[string]bool{}, lenient: e.lenient, kept: e.kept}
}

// Merge takes over what a joined branch recorded for the steps given.
func (e Env) Merge(branch Env, s *Step) {
	walk([]Step{*s}, func(inner *Step) {
		if o, ran := branch.outcomes[inner.ID]; ran && inner.ID != "" {
			e.values[inner.ID], e.outcomes[inner.ID] = branch.values[inner.ID], o
		}
		for _, a := range inner.Set {
			if branch.set[a.Name] {
				e.values[a.Name], e.set[a.Name] = branch.values[a.Name], true
			}
		}
	})
}

// Incident is the snapshot that the run works on.
func (e Env) Incident() Incident { return e.values["incident"].(Incident) }

// Bool evaluates a condition; a nil expression is true.
func (p *Program) Bool(e *Expr, env Env) (bool, error) {
	if e == nil {
		return true, nil
	}
	out, err := p.eval(e, env)
	if err != nil {
		return false, err
	}
	b, ok := out.(bool)
	if !ok {
		return false, fmt.Errorf("the condition gave %T", out)
	}
	return b, nil
}

// Text renders a text; values are rendered as data and are never read as a template again.
func (p *Program) Text(t *Text, env Env) (string, error) {
	if t == nil {
		return "", nil
	}
	var b strings.Builder
	for _, part := range t.Parts {
		if part.Expr == nil {
			b.WriteString(part.Literal)
			continue
		}
		out, err := p.eval(part.Expr, env)
		if unread := (*unreadError)(nil); errors.As(err, &unread) {
			// What people are told does not fail with what was to be found out for it.
			fmt.Fprintf(&b, "(unknown: step %s %s)", unread.step, unread.outcome)
			continue
		}
		if err != nil {
			return "", err
		}
		switch v := out.(type) {
		case string:
			b.WriteString(v)
		case bool, int, int64, uint16, uint32, uint64, float64, sensors.Objective, sensors.Severity:
			fmt.Fprint(&b, v)
		default:
			raw, err := json.Marshal(v)
			if err != nil {
				return "", fmt.Errorf("render %T: %w", v, err)
			}
			b.Write(raw)
		}
		if b.Len() > maxText {
			return "", fmt.Errorf("the text has more than %d bytes", maxText)
		}
	}
	return b.String(), nil
}

// Arguments evaluates `with` to the JSON of the action's parameters, type-checked once more with real values.
func (p *Program) Arguments(s *Step, env Env) (json.RawMessage, error) {
	values := map[string]any{}
	for _, arg := range s.With {
		v, err := p.value(arg.Value, env)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", arg.Name, err)
		}
		values[arg.Name] = v
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("parameters of %s: %w", s.Action, err)
	}
	if len(raw) > maxValue {
		return nil, fmt.Errorf("the parameters of %s have %d bytes, at most %d are allowed", s.Action, len(raw), maxValue)
	}
	return p.catalogue[s.Action].CanonicalParams(raw)
}

// CanonicalParams decodes parameters strictly, checks them and encodes them again with every field, so that equal
// parameters have equal bytes.
func (s Spec) CanonicalParams(raw json.RawMessage) (json.RawMessage, error) {
	t := s.ParamType()
	if t == nil {
		return json.RawMessage("{}"), nil
	}
	value := reflect.New(t)
	if len(raw) > 0 {
		decoder := json.NewDecoder(strings.NewReader(string(raw)))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(value.Interface()); err != nil {
			return nil, fmt.Errorf("parameters of %s: %w", s.Name, err)
		}
	}
	if check, ok := value.Interface().(Checker); ok {
		if name, problem := check.Check(); problem != "" {
			return nil, fmt.Errorf("parameter %s of %s: %s", name, s.Name, problem)
		}
	}
	out, err := json.Marshal(value.Interface())
	if err != nil {
		return nil, fmt.Errorf("parameters of %s: %w", s.Name, err)
	}
	return out, nil
}

func (p *Program) value(v Value, env Env) (any, error) {
	switch {
	case v.Expr != nil:
		return p.eval(v.Expr, env)
	case v.Text != nil:
		return p.Text(v.Text, env)
	case v.IsList:
		out := []any{}
		for _, item := range v.List {
			element, err := p.value(item, env)
			if err != nil {
				return nil, err
			}
			out = append(out, element)
		}
		return out, nil
	case v.IsMap:
		out := map[string]any{}
		for _, entry := range v.Map {
			element, err := p.value(entry.Value, env)
			if err != nil {
				return nil, err
			}
			out[entry.Name] = element
		}
		return out, nil
	}
	return v.Literal, nil
}

// MaxTargets bounds the targets of one step.
const MaxTargets = 50

// Targets evaluates `target`; its default is each pod or container with a detection of its own.
func (p *Program) Targets(s *Step, env Env) ([]Target, error) {
	incident := env.Incident()
	targets := incident.Targets
	if s.Target != nil {
		out, err := p.eval(s.Target, env)
		if err != nil {
			return nil, fmt.Errorf("target: %w", err)
		}
		switch v := out.(type) {
		case Target:
			targets = []Target{v}
		case []Target:
			targets = v
		case []any:
			targets = nil
			for _, item := range v {
				t, ok := item.(Target)
				if !ok {
					return nil, fmt.Errorf("target: an element is %T and no target", item)
				}
				targets = append(targets, t)
			}
		default:
			return nil, fmt.Errorf("target: %T is no target", out)
		}
	}
	if len(targets) > MaxTargets {
		return nil, fmt.Errorf("target: %d targets, at most %d are allowed", len(targets), MaxTargets)
	}
	return targets, nil
}
