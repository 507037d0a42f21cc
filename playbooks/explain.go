package playbooks

import (
	"fmt"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// Explanation is what a playbook does, in plain words.
type Explanation struct {
	Playbook    string   `json:"playbook"`
	File        string   `json:"file"`
	Description string   `json:"description,omitempty"`
	Guide       string   `json:"guide,omitempty"`
	Handles     string   `json:"handles"`
	Takes       []string `json:"takes,omitempty"`
	Gives       []string `json:"gives,omitempty"`
	MaxPhase    int      `json:"max_phase"`
	Lines       []Line   `json:"steps"`
}

// Line is one line of an explanation: a step, what it was given, or what leads to those below it.
type Line struct {
	Depth int    `json:"depth"`
	Step  string `json:"step,omitempty"` // its id or path; empty on a line that is no step
	Line  int    `json:"line,omitempty"` // in the file
	Text  string `json:"text"`
	// Phases say what becomes of it in each of the three phases: "runs", "asks", "proposed"; empty on a line that is no step.
	Phases []string `json:"phases,omitempty"`
}

// What becomes of a step in a phase.
const (
	InPhaseRuns     = "runs"
	InPhaseAsks     = "asks"
	InPhaseProposed = "proposed"
	// InPhaseRunsOrAsks: it runs where the confidence is high, else the scope's approvers are asked.
	InPhaseRunsOrAsks = "runs/asks"
)

// Explain says what a playbook does, step by step and phase by phase.
func Explain(p *Program) Explanation {
	e := Explanation{Playbook: p.Name, File: p.File, Description: p.Description, Guide: p.Guide, Handles: p.handles(), MaxPhase: p.MaxPhase, Lines: []Line{}}
	for _, in := range p.Inputs {
		e.Takes = append(e.Takes, in.takes())
	}
	for _, o := range p.Outputs {
		e.Gives = append(e.Gives, o.Name+" = "+normal(o.Expr.Source))
	}
	x := &explainer{Explanation: &e}
	x.ceiling = p.MaxPhase
	x.steps(p, p.Steps, 0, false)
	if len(p.Finally) > 0 {
		x.add(Line{Text: "At the end, whatever happened:"})
		x.steps(p, p.Finally, 1, false)
	}
	return e
}

// handles says which incidents start the playbook.
func (p *Program) handles() string {
	m := p.Match
	if m == nil {
		return "no incident by itself: other playbooks call it"
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
		parts = append(parts, "where "+normal(m.When.Source))
	}
	text := "incidents " + strings.Join(parts, ", ")
	if m.Priority != nil {
		text += fmt.Sprintf("; priority %d", *m.Priority)
	}
	if m.Exclusive {
		text += "; no playbook that comes after it starts beside it"
	}
	return text
}

type explainer struct {
	*Explanation
	deep    int
	ceiling int // the lowest on the way
}

func (x *explainer) add(l Line) { x.Lines = append(x.Lines, l) }

func (x *explainer) steps(p *Program, steps []Step, depth int, inApproval bool) {
	for i := range steps {
		x.step(p, &steps[i], depth, inApproval)
	}
}

func (x *explainer) step(p *Program, s *Step, depth int, inApproval bool) {
	text := x.does(p, s)
	if s.If != nil {
		text = "If " + normal(s.If.Source) + ": " + lower(text)
	}
	x.add(Line{Depth: depth, Step: s.Name(), Line: s.Pos.Line, Text: text, Phases: x.phases(p, s, inApproval)})
	for _, text := range details(s) {
		x.add(Line{Depth: depth + 1, Text: text})
	}
	switch {
	case s.Approval != nil:
		x.steps(p, s.Approval.Steps, depth+1, true)
	case s.Parallel != nil:
		x.steps(p, s.Parallel, depth+1, inApproval)
	case s.ForEach != nil:
		x.steps(p, s.ForEach.Steps, depth+1, inApproval)
	case s.Call != nil && p.Callees[s.Call.Playbook] != nil && x.deep < maxCallDeep:
		callee, ceiling := p.Callees[s.Call.Playbook], x.ceiling
		x.deep, x.ceiling = x.deep+1, min(ceiling, callee.MaxPhase)
		x.steps(callee, callee.Steps, depth+1, inApproval)
		x.deep, x.ceiling = x.deep-1, ceiling
	}
	for _, then := range []struct {
		text  string
		steps []Step
	}{{"If that fails or is refused:", s.OnFailure}, {"If people say no, or nobody answers:", s.OnDenied}} {
		if len(then.steps) > 0 {
			x.add(Line{Depth: depth + 1, Text: then.text})
			x.steps(p, then.steps, depth+2, inApproval)
		}
	}
}

// does says what a step does.
func (x *explainer) does(p *Program, s *Step) string {
	switch {
	case s.Approval != nil:
		return "Asks " + asked(s.Approval) + ": " + s.Approval.Title + "; with a yes:"
	case s.Parallel != nil:
		return "At once" + within(s) + ":"
	case s.ForEach != nil:
		text := fmt.Sprintf("For each %s of %s", s.ForEach.As, normal(s.ForEach.List.Source))
		if s.ForEach.Concurrency > 1 {
			text += fmt.Sprintf(", %d at once", s.ForEach.Concurrency)
		}
		return text + within(s) + ":"
	case s.Call != nil:
		return "Does what the playbook " + s.Call.Playbook + " does" + within(s) + ":"
	case s.Wait != nil && s.Wait.Until != nil:
		return fmt.Sprintf("Waits until %s, at most %s", normal(s.Wait.Until.Source), duration.Format(s.Wait.Timeout))
	case s.Wait != nil:
		return "Waits for " + duration.Format(s.Wait.For)
	case s.Set != nil:
		var names []string
		for _, a := range s.Set {
			names = append(names, a.Name)
		}
		return "Remembers " + strings.Join(names, ", ")
	case s.Stop != nil:
		return "Stops here, with the outcome " + string(s.Stop.Outcome)
	}
	spec := p.catalogue[s.Action]
	text := spec.Name + ": " + lower(strings.TrimSuffix(spec.Doc, "."))
	if s.Target != nil {
		text += "; on " + normal(s.Target.Source)
	}
	if s.For > 0 {
		text += "; undone after " + duration.Format(s.For)
	} else if s.Verb == VerbContain {
		text += "; cannot be undone"
	}
	return text
}

func within(s *Step) string {
	if s.Timeout == 0 {
		return ""
	}
	return ", within " + duration.Format(s.Timeout)
}

// asked says who is asked, and for how long.
func asked(a *Approval) string {
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
		text += fmt.Sprintf(", and after %s also %s", duration.Format(a.Escalate.After), strings.Join(append(append([]string{}, a.Escalate.Groups...), a.Escalate.Users...), ", "))
	}
	return fmt.Sprintf("%s (%s, then it is a no)", text, duration.Format(max(a.Timeout, time.Second)))
}

// lower begins a sentence inside of another, but for names that are written in capitals.
func lower(s string) string {
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'a' && s[1] <= 'z' {
		return string(s[0]+'a'-'A') + s[1:]
	}
	return s
}

// phases say what becomes of a step in each phase.
func (x *explainer) phases(p *Program, s *Step, inApproval bool) []string {
	out := make([]string, 3)
	for i := range out {
		out[i] = inPhase(p, s, min(i+1, x.ceiling), inApproval)
	}
	return out
}

func inPhase(p *Program, s *Step, phase int, inApproval bool) string {
	class := p.catalogue[s.Action].Class
	if s.Approval != nil {
		class = widest(p, s.Approval.Steps, ClassObserve, 0)
	}
	switch {
	case class == ClassContain && phase < 2, class == ClassDisrupt && phase < 3:
		return InPhaseProposed
	case s.Approval != nil:
		return InPhaseAsks
	case inApproval || class == ClassObserve || s.Action == "":
		return InPhaseRuns
	default:
		return InPhaseRunsOrAsks
	}
}

// widest is the least class of what an approval permits: it is asked where a yes would let anything of it run.
func widest(p *Program, steps []Step, least Class, deep int) Class {
	rank := map[Class]int{ClassObserve: 0, ClassContain: 1, ClassDisrupt: 2}
	take := func(c Class) {
		if c != ClassObserve && c != "" && (least == ClassObserve || rank[c] < rank[least]) {
			least = c
		}
	}
	walk(steps, func(s *Step) {
		take(p.catalogue[s.Action].Class)
		if s.Call != nil && p.Callees[s.Call.Playbook] != nil && deep < maxCallDeep {
			take(widest(p.Callees[s.Call.Playbook], p.Callees[s.Call.Playbook].Steps, ClassObserve, deep+1))
		}
	})
	return least
}
