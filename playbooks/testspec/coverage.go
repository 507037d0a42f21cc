package testspec

import (
	"stanch/playbooks"
)

// Coverage is how much of a playbook its tests execute.
type Coverage struct {
	Playbook      string          `json:"playbook"`
	File          string          `json:"file"`
	TotalPoints   int             `json:"total_points"`
	CoveredPoints int             `json:"covered_points"`
	Uncovered     []CoveragePoint `json:"uncovered"`
}

// Percent returns the covered fraction as a percentage, 0 to 100.
func (c Coverage) Percent() float64 {
	if c.TotalPoints == 0 {
		return 100
	}
	return 100 * float64(c.CoveredPoints) / float64(c.TotalPoints)
}

// CoveragePoint is a path that a run can take.
type CoveragePoint struct {
	Line        int    `json:"line"`
	Column      int    `json:"column"`
	Step        string `json:"step"`
	Description string `json:"description"`
}

// ifFalseReason is the interpreter's reason for a step whose condition was false.
const ifFalseReason = "`if` is false"

// MeasureCoverage counts the paths of a playbook that the runs took, and lists the others: each step, each condition
// both true and false, each approval granted and denied, each `on_failure` and `on_denied`. peers are all playbooks of
// the runs; steps reached by their calls count.
func MeasureCoverage(p *playbooks.Program, peers []*playbooks.Program, runs []Result) Coverage {
	came := map[string][]StepRun{}
	for _, run := range runs {
		for _, r := range run.Steps {
			for _, peer := range peers {
				if peer.Name != r.Playbook {
					continue
				}
				if in, s := ResolveStep(peer, r.Step); s != nil && in.File == p.File {
					came[s.Name()] = append(came[s.Name()], r)
				}
				break
			}
		}
	}
	c := Coverage{Playbook: p.Name, File: p.File, Uncovered: []CoveragePoint{}}
	p.WalkSteps(func(s *playbooks.Step) { c.coverStep(s, came) })
	return c
}

func (c *Coverage) addPoint(s *playbooks.Step, what string, covered bool) {
	c.TotalPoints++
	if covered {
		c.CoveredPoints++
		return
	}
	c.Uncovered = append(c.Uncovered, CoveragePoint{
		Line: s.Pos.Line, Column: s.Pos.Column, Step: s.Name(),
		Description: what,
	})
}

func (c *Coverage) coverStep(s *playbooks.Step, came map[string][]StepRun) {
	ran, skipped := anyStepRan(unconditionalSteps(s), came), false
	granted, denied := false, false
	for _, r := range came[s.Name()] {
		if r.Outcome == playbooks.OutcomeSkipped && r.Reason == ifFalseReason {
			skipped = true
			continue
		}
		ran = true
		granted = granted || r.Outcome == playbooks.OutcomeSucceeded
		denied = denied || r.Outcome == playbooks.OutcomeDenied
	}
	if s.If == nil {
		c.addPoint(s, "the step never runs", ran)
	} else {
		c.addPoint(s, "`if` is never true", ran)
		c.addPoint(s, "`if` is never false", skipped)
	}
	if s.Approval != nil {
		c.addPoint(s, "the approval is never granted", granted)
		c.addPoint(s, "the approval is never denied", denied)
	}
	if len(s.OnFailure) > 0 {
		c.addPoint(s, "`on_failure` never runs", anyStepRan(s.OnFailure, came))
	}
	if len(s.OnDenied) > 0 {
		c.addPoint(s, "`on_denied` never runs", anyStepRan(s.OnDenied, came))
	}
}

// unconditionalSteps returns the nested steps that run whenever the step itself runs.
func unconditionalSteps(s *playbooks.Step) []playbooks.Step {
	var out []playbooks.Step
	for _, b := range s.Blocks() {
		if b.Kind == "parallel" || b.Kind == "steps" {
			out = append(out, b.Steps...)
		}
	}
	return out
}

func anyStepRan(steps []playbooks.Step, came map[string][]StepRun) bool {
	for i := range steps {
		if len(came[steps[i].Name()]) > 0 || anyStepRan(unconditionalSteps(&steps[i]), came) {
			return true
		}
	}
	return false
}
