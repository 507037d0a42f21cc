package playbooks

import (
	"fmt"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// Explanation describes what a playbook does in each phase.
type Explanation struct {
	Playbook     string            `json:"playbook"`
	File         string            `json:"file"`
	Description  string            `json:"description,omitempty"`
	Guide        string            `json:"guide,omitempty"`
	MatchSummary string            `json:"match_summary"`
	Inputs       []string          `json:"inputs,omitempty"`
	Outputs      []string          `json:"outputs,omitempty"`
	MaxPhase     int               `json:"max_phase"`
	Lines        []ExplanationLine `json:"lines"`
}

// ExplanationLine is one line of an explanation: a step, one of its parameters, or the condition of the lines below it.
type ExplanationLine struct {
	Depth      int    `json:"depth"`
	Step       string `json:"step,omitempty"` // its id or path; "" if the line is not a step
	SourceLine int    `json:"line,omitempty"` // in the file; 0 if the line is not a step
	Text       string `json:"text"`
	// PhaseBehaviors has what happens to the step in each of the three phases; empty if the line is not a step.
	PhaseBehaviors []string `json:"phase_behaviors,omitempty"`
}

// What happens to a step in a phase.
const (
	PhaseBehaviorRuns         = "runs"
	PhaseBehaviorAsksApproval = "asks"
	PhaseBehaviorProposed     = "proposed"
	// PhaseBehaviorRunsOrAsksApproval means that the step runs if the confidence is high; otherwise the scope's
	// approvers are asked.
	PhaseBehaviorRunsOrAsksApproval = "runs/asks"
)

// Explain describes what a playbook does, step by step and phase by phase.
func Explain(p *Program) Explanation {
	e := Explanation{
		Playbook: p.Name, File: p.File, Description: p.Description, Guide: p.ResponderGuide,
		MatchSummary: p.describeMatch(), MaxPhase: p.MaxPhase, Lines: []ExplanationLine{},
	}
	for _, in := range p.Inputs {
		e.Inputs = append(e.Inputs, in.describe())
	}
	for _, o := range p.Outputs {
		e.Outputs = append(e.Outputs, o.Name+" = "+normalizeSpaces(o.Expr.Source))
	}
	x := &explainer{Explanation: &e}
	x.phaseCeiling = p.MaxPhase
	x.explainSteps(p, p.Steps, 0, false)
	if len(p.Finally) > 0 {
		x.addLine(ExplanationLine{Text: "At the end, always:"})
		x.explainSteps(p, p.Finally, 1, false)
	}
	return e
}

// describeMatch describes the incidents that start the playbook.
func (p *Program) describeMatch() string {
	m := p.Match
	if m == nil {
		return "no incident; other playbooks call it"
	}
	var parts []string
	if len(m.Objectives) > 0 {
		var names []string
		for _, o := range m.Objectives {
			names = append(names, o.Text)
		}
		parts = append(parts, "whose objective is "+strings.Join(names, " or "))
	}
	if m.Severity.Text != "" {
		parts = append(parts, "at least "+m.Severity.Text)
	}
	if m.When != nil {
		parts = append(parts, "where "+normalizeSpaces(m.When.Source))
	}
	text := "incidents " + strings.Join(parts, ", ")
	if m.Priority != nil {
		text += fmt.Sprintf("; priority %d", *m.Priority)
	}
	if m.Exclusive {
		text += "; exclusive: no lower-priority playbook starts"
	}
	return text
}

// explainer builds an explanation.
type explainer struct {
	*Explanation
	callDepth    int
	phaseCeiling int // lowest maximum phase of the calling playbooks
}

func (x *explainer) addLine(l ExplanationLine) { x.Lines = append(x.Lines, l) }

func (x *explainer) explainSteps(p *Program, steps []Step, depth int, inApproval bool) {
	for i := range steps {
		x.explainStep(p, &steps[i], depth, inApproval)
	}
}

func (x *explainer) explainStep(p *Program, s *Step, depth int, inApproval bool) {
	text := x.describeStep(p, s)
	if s.If != nil {
		text = "If " + normalizeSpaces(s.If.Source) + ": " + lowerFirst(text)
	}
	x.addLine(ExplanationLine{
		Depth: depth, Step: s.Name(), SourceLine: s.Pos.Line, Text: text,
		PhaseBehaviors: x.phaseBehaviors(p, s, inApproval),
	})
	for _, text := range describeStepDetails(s) {
		x.addLine(ExplanationLine{Depth: depth + 1, Text: text})
	}
	switch {
	case s.Approval != nil:
		x.explainSteps(p, s.Approval.Steps, depth+1, true)
	case s.Parallel != nil:
		x.explainSteps(p, s.Parallel, depth+1, inApproval)
	case s.ForEach != nil:
		x.explainSteps(p, s.ForEach.Steps, depth+1, inApproval)
	case s.Call != nil && p.Callees[s.Call.Playbook] != nil && x.callDepth < maxCallDepth:
		callee, ceiling := p.Callees[s.Call.Playbook], x.phaseCeiling
		x.callDepth, x.phaseCeiling = x.callDepth+1, min(ceiling, callee.MaxPhase)
		x.explainSteps(callee, callee.Steps, depth+1, inApproval)
		x.callDepth, x.phaseCeiling = x.callDepth-1, ceiling
	}
	for _, then := range []struct {
		text  string
		steps []Step
	}{{"If it fails or is refused:", s.OnFailure}, {"If it is denied or times out:", s.OnDenied}} {
		if len(then.steps) > 0 {
			x.addLine(ExplanationLine{Depth: depth + 1, Text: then.text})
			x.explainSteps(p, then.steps, depth+2, inApproval)
		}
	}
}

// describeStep describes what a step does.
func (x *explainer) describeStep(p *Program, s *Step) string {
	switch {
	case s.Approval != nil:
		return "Asks " + describeApprovers(s.Approval) + ": " + s.Approval.Title + "; if approved:"
	case s.Parallel != nil:
		return "In parallel" + describeTimeout(s) + ":"
	case s.ForEach != nil:
		text := fmt.Sprintf("For each %s of %s", s.ForEach.Variable, normalizeSpaces(s.ForEach.List.Source))
		if s.ForEach.Concurrency > 1 {
			text += fmt.Sprintf(", %d in parallel", s.ForEach.Concurrency)
		}
		return text + describeTimeout(s) + ":"
	case s.Call != nil:
		return "Calls the playbook " + s.Call.Playbook + describeTimeout(s) + ":"
	case s.Wait != nil && s.Wait.Until != nil:
		return fmt.Sprintf("Waits until %s, at most %s", normalizeSpaces(s.Wait.Until.Source),
			duration.Format(s.Wait.Timeout))
	case s.Wait != nil:
		return "Waits for " + duration.Format(s.Wait.Duration)
	case s.Assignments != nil:
		var names []string
		for _, a := range s.Assignments {
			names = append(names, a.Name)
		}
		return "Sets " + strings.Join(names, ", ")
	case s.Stop != nil:
		return "Stops with the outcome " + string(s.Stop.Outcome)
	}
	spec := p.catalog[s.Action]
	text := spec.Name + ": " + lowerFirst(strings.TrimSuffix(spec.Doc, "."))
	if s.Target != nil {
		text += "; on " + normalizeSpaces(s.Target.Source)
	}
	if s.LeaseDuration > 0 {
		text += "; undone after " + duration.Format(s.LeaseDuration)
	} else if s.Verb == VerbContain {
		text += "; cannot be undone"
	}
	return text
}

// describeTimeout returns ", within DURATION"; "" without a timeout.
func describeTimeout(s *Step) string {
	if s.Timeout == 0 {
		return ""
	}
	return ", within " + duration.Format(s.Timeout)
}

// describeApprovers returns who is asked, and for how long.
func describeApprovers(a *Approval) string {
	var who []string
	for _, g := range a.Groups {
		who = append(who, "the group "+g)
	}
	who = append(who, a.Users...)
	text := strings.Join(who, " and ")
	if a.Quorum > 1 {
		text = fmt.Sprintf("%d of %s", a.Quorum, text)
	}
	if a.Escalate != nil {
		text += fmt.Sprintf(", and after %s also %s", duration.Format(a.Escalate.After),
			strings.Join(append(append([]string{}, a.Escalate.Groups...), a.Escalate.Users...), ", "))
	}
	return fmt.Sprintf("%s (denied after %s)", text, duration.Format(max(a.Timeout, time.Second)))
}

// lowerFirst returns s with its first letter in lower case, unless the first word is all capitals.
func lowerFirst(s string) string {
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'a' && s[1] <= 'z' {
		return string(s[0]+'a'-'A') + s[1:]
	}
	return s
}

// phaseBehaviors returns what happens to a step in each of the three phases.
func (x *explainer) phaseBehaviors(p *Program, s *Step, inApproval bool) []string {
	out := make([]string, 3)
	for i := range out {
		out[i] = phaseBehavior(p, s, min(i+1, x.phaseCeiling), inApproval)
	}
	return out
}

func phaseBehavior(p *Program, s *Step, phase int, inApproval bool) string {
	class := p.catalog[s.Action].Class
	if s.Approval != nil {
		class = lowestClass(p, s.Approval.Steps, ClassObserve, 0)
	}
	switch {
	case class == ClassContain && phase < 2, class == ClassDisrupt && phase < 3:
		return PhaseBehaviorProposed
	case s.Approval != nil:
		return PhaseBehaviorAsksApproval
	case inApproval || class == ClassObserve || s.Action == "":
		return PhaseBehaviorRuns
	default:
		return PhaseBehaviorRunsOrAsksApproval
	}
}

// lowestClass returns the lowest class among the actions that an approval permits. The approval is requested in every
// phase in which it would let any of them run.
func lowestClass(p *Program, steps []Step, least Class, deep int) Class {
	rank := map[Class]int{ClassObserve: 0, ClassContain: 1, ClassDisrupt: 2}
	take := func(c Class) {
		if c != ClassObserve && c != "" && (least == ClassObserve || rank[c] < rank[least]) {
			least = c
		}
	}
	walkSteps(steps, func(s *Step) {
		take(p.catalog[s.Action].Class)
		if s.Call != nil && p.Callees[s.Call.Playbook] != nil && deep < maxCallDepth {
			take(lowestClass(p.Callees[s.Call.Playbook], p.Callees[s.Call.Playbook].Steps, ClassObserve, deep+1))
		}
	})
	return least
}
