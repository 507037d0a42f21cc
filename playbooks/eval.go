package playbooks

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"stanch/sensors"
	"stanch/sensors/condition"
)

// Env is what a run's expressions see: the incident as it was when the playbook matched, and the steps so far.
type Env struct {
	values map[string]any
}

// NewEnv is the environment at the start of a run: every step has not run.
func (p *Program) NewEnv(incident Incident) Env {
	e := Env{values: map[string]any{"incident": incident}}
	p.Walk(func(s *Step) {
		if s.ID != "" {
			e.values[s.ID] = stepValue(p.catalogue[s.Action].OutputType(), reflect.Value{}, OutcomeSkipped, 0)
		}
	})
	return e
}

// Walk visits every step, in the order of the file.
func (p *Program) Walk(visit func(*Step)) { walk(p.Steps, visit) }

func walk(steps []Step, visit func(*Step)) {
	for i := range steps {
		s := &steps[i]
		visit(s)
		walk(s.Parallel, visit)
		if s.Approval != nil {
			walk(s.Approval.Steps, visit)
		}
		walk(s.OnFailure, visit)
		walk(s.OnDenied, visit)
	}
}

// Record enters a step's outcome and its outputs (JSON, of the first target) for the expressions that follow.
func (p *Program) Record(env Env, s *Step, outcome Outcome, outputs json.RawMessage, targets int) error {
	if s.ID == "" {
		return nil
	}
	t := p.catalogue[s.Action].OutputType()
	var value reflect.Value
	if t != nil && len(outputs) > 0 && outcome.Usable() {
		out := reflect.New(t)
		if err := json.Unmarshal(outputs, out.Interface()); err != nil {
			return fmt.Errorf("outputs of step %s: %w", s.Name(), err)
		}
		value = out.Elem()
	}
	env.values[s.ID] = stepValue(t, value, outcome, targets)
	return nil
}

// Clone gives a branch an environment of its own.
func (e Env) Clone() Env {
	values := make(map[string]any, len(e.values))
	for k, v := range e.values {
		values[k] = v
	}
	return Env{values: values}
}

// Merge takes over what a joined branch recorded for the steps given.
func (e Env) Merge(branch Env, s *Step) {
	walk([]Step{*s}, func(inner *Step) {
		if v, ok := branch.values[inner.ID]; ok && inner.ID != "" {
			e.values[inner.ID] = v
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
	out, err := condition.Run(p.exprs[e], env.values)
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
		out, err := condition.Run(p.exprs[part.Expr], env.values)
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
		return condition.Run(p.exprs[v.Expr], env.values)
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
		out, err := condition.Run(p.exprs[s.Target], env.values)
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

// Matches tells whether the playbook handles the incident, and why or why not in one sentence.
func (p *Program) Matches(incident Incident) (bool, string) {
	m := p.Match
	if len(m.Objectives) > 0 {
		found := false
		for _, o := range m.Objectives {
			found = found || o == string(incident.Objective)
		}
		if !found {
			return false, fmt.Sprintf("the objective is %s, not %s", incident.Objective, strings.Join(m.Objectives, " or "))
		}
	}
	if m.Severity != "" && incident.Severity.Rank() < sensors.Severity(m.Severity).Rank() {
		return false, fmt.Sprintf("the severity is %s, below %s", incident.Severity, m.Severity)
	}
	ok, err := p.Bool(m.When, p.NewEnv(incident))
	switch {
	case err != nil:
		return false, fmt.Sprintf("its condition cannot be evaluated: %v", err)
	case !ok:
		return false, fmt.Sprintf("its condition does not hold: %s", m.When.Source)
	}
	return true, "it matches"
}
