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

// EvalEnv is the environment of a run's expressions: the incident as it was when the playbook matched, the inputs, and
// the steps so far. It is not safe for concurrent use; Clone gives each branch its own.
type EvalEnv struct {
	expressionValues map[string]any
	outcomes         map[string]Outcome // by step that has run
	assigned         map[string]bool    // names that were set in this branch
	allowMissing     bool
	assignedBytes    *int // total bytes of all values that the run has set, in every branch
}

// Limits of the values that a run computes. Without them, a short playbook can double a text until the worker runs out
// of memory, and again on the next worker that receives the workflow.
const (
	maxValueBytes        = 256 << 10 // of one value
	maxAssignedBytes     = 4 << 20   // of all values that one run sets
	maxRenderedTextBytes = 64 << 10  // of one rendered text
)

// NewEvalEnv returns the environment at the start of a run, in which no step has run. Inputs that are not given have
// their defaults. It returns an error for a missing or invalid input.
func (p *Program) NewEvalEnv(incident Incident, given map[string]any) (EvalEnv, error) {
	e := EvalEnv{
		expressionValues: map[string]any{"incident": incident}, outcomes: map[string]Outcome{},
		assigned: map[string]bool{}, assignedBytes: new(int),
	}
	p.WalkSteps(func(s *Step) {
		if s.ID != "" {
			e.expressionValues[s.ID] = newStepValue(p.stepOutputsType(s), reflect.Value{}, OutcomeSkipped, 0, nil)
		}
	})
	maps.Copy(e.expressionValues, p.assignedZeroValues)
	inputs, err := p.bindInputs(given, e)
	e.expressionValues["inputs"] = inputs
	return e, err
}

// AllowMissing returns an environment in which missing outputs are zero values, as in version 1 of the language.
func (e EvalEnv) AllowMissing() EvalEnv {
	e.allowMissing = true
	return e
}

// stepOutputsType returns the struct type of a step's outputs, or nil.
func (p *Program) stepOutputsType(s *Step) reflect.Type {
	if s.Call != nil {
		if callee := p.Callees[s.Call.Playbook]; callee != nil {
			return callee.outputsType
		}
		return nil
	}
	return p.catalog[s.Action].OutputType()
}

// StepEnd is how a step ended: on how many targets, and on which of them it failed.
type StepEnd struct {
	Outcome Outcome
	Outputs json.RawMessage
	Targets int
	Failed  []Target
}

// RecordOutcome records a step's outcome and its outputs (JSON, of the first target) for the expressions that follow.
func (p *Program) RecordOutcome(env EvalEnv, s *Step, ended StepEnd) error {
	outcome, outputs := ended.Outcome, ended.Outputs
	if s.ID == "" {
		return nil
	}
	t := p.stepOutputsType(s)
	var value reflect.Value
	if t != nil && len(outputs) > 0 && outcome.HasOutputs() {
		out := reflect.New(t)
		if err := json.Unmarshal(outputs, out.Interface()); err != nil {
			return fmt.Errorf("outputs of step %s: %w", s.Name(), err)
		}
		value = out.Elem()
	}
	env.expressionValues[s.ID] = newStepValue(t, value, outcome, ended.Targets, ended.Failed)
	env.outcomes[s.ID] = outcome
	return nil
}

// BindLoopElement sets the loop variable to an element of the list.
func (e EvalEnv) BindLoopElement(f *ForEach, element any) { e.expressionValues[f.Variable] = element }

// EvalAssignments evaluates the values of a `set` step and sets their names. If one fails, none is set.
func (p *Program) EvalAssignments(s *Step, env EvalEnv) error {
	got := map[string]any{}
	for _, a := range s.Assignments {
		v, err := p.evalValue(a.Value, env)
		if err != nil {
			return fmt.Errorf("`%s`: %w", a.Name, err)
		}
		value, err := convertValue(v, reflect.TypeOf(p.assignedZeroValues[a.Name]))
		if err != nil {
			return fmt.Errorf("`%s` %w", a.Name, err)
		}
		got[a.Name] = value.Interface()
		if *env.assignedBytes += expression.EstimateSize(got[a.Name], maxValueBytes); *env.assignedBytes > maxAssignedBytes {
			return fmt.Errorf("`%s`: the values that this run sets exceed %d bytes in total", a.Name, maxAssignedBytes)
		}
	}
	maps.Copy(env.expressionValues, got)
	for _, a := range s.Assignments {
		env.assigned[a.Name] = true
	}
	return nil
}

// EvalLoopItems evaluates the list of a loop. It returns an error if the result is not a list or an element has the
// wrong type. It does not check the length.
func (p *Program) EvalLoopItems(f *ForEach, env EvalEnv) ([]any, error) {
	out, err := p.evalExpr(f.List, env)
	if err != nil {
		return nil, err
	}
	list := reflect.ValueOf(out)
	if out == nil || list.Kind() != reflect.Slice {
		return nil, fmt.Errorf("`foreach` requires a list, not %T", out)
	}
	items := make([]any, list.Len())
	for i := range items {
		element, err := convertValue(list.Index(i).Interface(), p.loopElementTypes[f])
		if err != nil {
			return nil, fmt.Errorf("an element of the list %w", err)
		}
		items[i] = element.Interface()
	}
	return items, nil
}

// EvalInputs evaluates the arguments of a call, by input.
func (p *Program) EvalInputs(s *Step, env EvalEnv) (map[string]any, error) {
	given := map[string]any{}
	for _, arg := range s.Arguments {
		v, err := p.evalValue(arg.Value, env)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", arg.Name, err)
		}
		given[arg.Name] = v
	}
	return given, nil
}

// EvalOutputs evaluates the outputs of a finished playbook, as JSON.
func (p *Program) EvalOutputs(env EvalEnv) (json.RawMessage, error) {
	out := map[string]any{}
	for _, o := range p.Outputs {
		v, err := p.evalExpr(o.Expr, env)
		if err != nil {
			return nil, fmt.Errorf("output %s: %w", o.Name, err)
		}
		out[o.Name] = v
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("read the outputs of %s: %w", p.Name, err)
	}
	if len(raw) > maxValueBytes {
		return nil, fmt.Errorf("the outputs of %s are %d bytes; the maximum is %d", p.Name, len(raw), maxValueBytes)
	}
	return raw, nil
}

// EvalWait evaluates the condition of a `wait` on the incident's current state.
func (p *Program) EvalWait(w *Wait, env EvalEnv, live Incident) (bool, error) {
	inside := env.Clone()
	inside.expressionValues["live"] = live
	return p.EvalCondition(w.Until, inside)
}

// evalExpr evaluates an expression. Reading outputs of a step that has none is an error.
func (p *Program) evalExpr(e *Expr, env EvalEnv) (any, error) {
	for _, name := range p.stepsReadByExpr[e] {
		if o, ran := env.outcomes[name]; !env.allowMissing && (!ran || !o.HasOutputs()) {
			if !ran {
				o = OutcomeSkipped
			}
			return nil, &missingOutputsError{name, o}
		}
	}
	out, err := expression.Run(p.compiledExprs[e], env.expressionValues)
	if err != nil {
		return nil, err //nolint:wrapcheck // the error says so
	}
	if expression.EstimateSize(out, maxValueBytes) > maxValueBytes {
		return nil, fmt.Errorf("the value is larger than %d bytes", maxValueBytes)
	}
	return out, nil
}

// missingOutputsError means that an expression reads a step without outputs.
type missingOutputsError struct {
	step    string
	outcome Outcome
}

func (e *missingOutputsError) Error() string {
	return fmt.Sprintf("the outputs of step %s cannot be read: its outcome is %s", e.step, e.outcome)
}

// Clone returns a separate environment for a branch.
func (e EvalEnv) Clone() EvalEnv {
	values := make(map[string]any, len(e.expressionValues))
	maps.Copy(values, e.expressionValues)
	outcomes := make(map[string]Outcome, len(e.outcomes))
	maps.Copy(outcomes, e.outcomes)
	return EvalEnv{
		expressionValues: values, outcomes: outcomes, assigned: map[string]bool{}, allowMissing: e.allowMissing,
		assignedBytes: e.assignedBytes,
	}
}

// Merge copies what a finished branch recorded for the given step.
func (e EvalEnv) Merge(branch EvalEnv, s *Step) {
	walkSteps([]Step{*s}, func(inner *Step) {
		if o, ran := branch.outcomes[inner.ID]; ran && inner.ID != "" {
			e.expressionValues[inner.ID], e.outcomes[inner.ID] = branch.expressionValues[inner.ID], o
		}
		for _, a := range inner.Assignments {
			if branch.assigned[a.Name] {
				e.expressionValues[a.Name], e.assigned[a.Name] = branch.expressionValues[a.Name], true
			}
		}
	})
}

// Incident returns the snapshot of the incident that the run uses.
func (e EvalEnv) Incident() Incident { return e.expressionValues["incident"].(Incident) }

// EvalCondition evaluates a condition. A nil expression is true.
func (p *Program) EvalCondition(e *Expr, env EvalEnv) (bool, error) {
	if e == nil {
		return true, nil
	}
	out, err := p.evalExpr(e, env)
	if err != nil {
		return false, err
	}
	b, ok := out.(bool)
	if !ok {
		return false, fmt.Errorf("the condition returned %T, not true or false", out)
	}
	return b, nil
}

// RenderTemplate renders a text. Values are inserted as data and never parsed as a template.
func (p *Program) RenderTemplate(t *Template, env EvalEnv) (string, error) {
	if t == nil {
		return "", nil
	}
	var b strings.Builder
	for _, part := range t.Parts {
		if part.Expr == nil {
			b.WriteString(part.Literal)
			continue
		}
		out, err := p.evalExpr(part.Expr, env)
		if unread := (*missingOutputsError)(nil); errors.As(err, &unread) {
			// A message to people does not fail because a value for it is missing.
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
		if b.Len() > maxRenderedTextBytes {
			return "", fmt.Errorf("the text is longer than %d bytes", maxRenderedTextBytes)
		}
	}
	return b.String(), nil
}
