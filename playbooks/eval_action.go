package playbooks

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// EvalArguments evaluates `with` to the JSON of the action's parameters, and checks the actual values again.
func (p *Program) EvalArguments(s *Step, env EvalEnv) (json.RawMessage, error) {
	values := map[string]any{}
	for _, arg := range s.Arguments {
		v, err := p.evalValue(arg.Value, env)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", arg.Name, err)
		}
		values[arg.Name] = v
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("read the parameters of %s: %w", s.Action, err)
	}
	if len(raw) > maxValueBytes {
		return nil, fmt.Errorf("the parameters of %s are %d bytes; the maximum is %d", s.Action, len(raw),
			maxValueBytes)
	}
	return p.catalog[s.Action].CanonicalizeParams(raw)
}

// CanonicalizeParams decodes parameters strictly, checks them and encodes them with every field, so that equal
// parameters have equal bytes.
func (s ActionSpec) CanonicalizeParams(raw json.RawMessage) (json.RawMessage, error) {
	t := s.ParamType()
	if t == nil {
		return json.RawMessage("{}"), nil
	}
	value := reflect.New(t)
	if len(raw) > 0 {
		decoder := json.NewDecoder(strings.NewReader(string(raw)))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(value.Interface()); err != nil {
			return nil, fmt.Errorf("read the parameters of %s: %w", s.Name, err)
		}
	}
	if check, ok := value.Interface().(ParamsChecker); ok {
		if name, problem := check.Check(); problem != "" {
			return nil, fmt.Errorf("parameter %s of %s: %s", name, s.Name, problem)
		}
	}
	out, err := json.Marshal(value.Interface())
	if err != nil {
		return nil, fmt.Errorf("read the parameters of %s: %w", s.Name, err)
	}
	return out, nil
}

func (p *Program) evalValue(v Value, env EvalEnv) (any, error) {
	switch {
	case v.Expr != nil:
		return p.evalExpr(v.Expr, env)
	case v.Template != nil:
		return p.RenderTemplate(v.Template, env)
	case v.IsList:
		out := []any{}
		for _, item := range v.List {
			element, err := p.evalValue(item, env)
			if err != nil {
				return nil, err
			}
			out = append(out, element)
		}
		return out, nil
	case v.IsMap:
		out := map[string]any{}
		for _, entry := range v.Map {
			element, err := p.evalValue(entry.Value, env)
			if err != nil {
				return nil, err
			}
			out[entry.Name] = element
		}
		return out, nil
	}
	return v.Literal, nil
}

// MaxTargets is the maximum number of targets of one step.
const MaxTargets = 50

// EvalTargets evaluates `target`. The default is each pod or container with a detection of its own.
func (p *Program) EvalTargets(s *Step, env EvalEnv) ([]Target, error) {
	incident := env.Incident()
	targets := incident.Targets
	if s.Target != nil {
		out, err := p.evalExpr(s.Target, env)
		if err != nil {
			return nil, fmt.Errorf("evaluate the target: %w", err)
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
					return nil, fmt.Errorf("evaluate the target: an element is %T, not a target", item)
				}
				targets = append(targets, t)
			}
		default:
			return nil, fmt.Errorf("evaluate the target: %T is not a target", out)
		}
	}
	if len(targets) > MaxTargets {
		return nil, fmt.Errorf("evaluate the target: it returns %d targets; the maximum is %d", len(targets), MaxTargets)
	}
	return targets, nil
}
