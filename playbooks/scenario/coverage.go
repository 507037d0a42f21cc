package scenario

import (
	"stanch/playbooks"
)

// Coverage is how much of a playbook tests go through.
type Coverage struct {
	Playbook string  `json:"playbook"`
	File     string  `json:"file"`
	Points   int     `json:"points"`
	Covered  int     `json:"covered"`
	Missing  []Point `json:"missing"`
}

// Percent is how much of it is covered.
func (c Coverage) Percent() float64 {
	if c.Points == 0 {
		return 100
	}
	return 100 * float64(c.Covered) / float64(c.Points)
}

// Point is a way that a run can take.
type Point struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Step   string `json:"step"`
	What   string `json:"what"`
}

// ifFalse is how the interpreter says that a step's condition did not hold.
const ifFalse = "`if` is false"

// Cover says which ways through a playbook the runs took: each step, each condition both ways, each approval granted
// and denied, each `on_failure` and `on_denied`. peers are all the playbooks of the runs: what they call counts.
func Cover(p *playbooks.Program, peers []*playbooks.Program, runs []Happened) Coverage {
	came := map[string][]Ran{}
	for _, run := range runs {
		for _, r := range run.Steps {
			for _, peer := range peers {
				if peer.Name != r.Playbook {
					continue
				}
				if in, s := Resolve(peer, r.Step); s != nil && in.File == p.File {
					came[s.Name()] = append(came[s.Name()], r)
				}
				break
			}
		}
	}
	c := Coverage{Playbook: p.Name, File: p.File, Missing: []Point{}}
	p.Walk(func(s *playbooks.Step) { c.step(s, came) })
	return c
}

func (c *Coverage) point(s *playbooks.Step, what string, covered bool) {
	c.Points++
	if covered {
		c.Covered++
		return
	}
	c.Missing = append(c.Missing, Point{Line: s.Pos.Line, Column: s.Pos.Column, Step: s.Name(), What: what})
}

func (c *Coverage) step(s *playbooks.Step, came map[string][]Ran) {
	ran, skipped := reached(blocks(s), came), false
	granted, denied := false, false
	for _, r := range came[s.Name()] {
		if r.Outcome == playbooks.OutcomeSkipped && r.Reason == ifFalse {
			skipped = true
			continue
		}
		ran = true
		granted = granted || r.Outcome == playbooks.OutcomeChanged
		denied = denied || r.Outcome == playbooks.OutcomeDenied
	}
	if s.If == nil {
		c.point(s, "the step does not run", ran)
	} else {
		c.point(s, "`if` is never true", ran)
		c.point(s, "`if` is never false", skipped)
	}
	if s.Approval != nil {
		c.point(s, "it is never granted", granted)
		c.point(s, "it is never denied", denied)
	}
	if len(s.OnFailure) > 0 {
		c.point(s, "`on_failure` does not run", reached(s.OnFailure, came))
	}
	if len(s.OnDenied) > 0 {
		c.point(s, "`on_denied` does not run", reached(s.OnDenied, came))
	}
}

// blocks are the steps that run where the step itself does.
func blocks(s *playbooks.Step) []playbooks.Step {
	var out []playbooks.Step
	for _, b := range s.Blocks() {
		if b.Kind == "parallel" || b.Kind == "steps" {
			out = append(out, b.Steps...)
		}
	}
	return out
}

func reached(steps []playbooks.Step, came map[string][]Ran) bool {
	for i := range steps {
		if len(came[steps[i].Name()]) > 0 || reached(blocks(&steps[i]), came) {
			return true
		}
	}
	return false
}
