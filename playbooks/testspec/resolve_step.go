package testspec

import (
	"strconv"
	"strings"

	"stanch/playbooks"
)

// ResolveStep finds a step by the name that a report gives it, with the loops and calls that it stands in before it:
// "each[2]/sub/isolate". The step is nil where there is none.
func ResolveStep(p *playbooks.Program, name string) (*playbooks.Program, *playbooks.Step) {
	in, s, _ := resolveStep(p, name)
	return in, s
}

// StepOrder is where a step stands, for putting those that came at one time into the order of the file: its place in each
// playbook and round that leads to it.
func StepOrder(p *playbooks.Program, name string) []int {
	_, _, order := resolveStep(p, name)
	return order
}

func resolveStep(p *playbooks.Program, name string) (in *playbooks.Program, s *playbooks.Step, order []int) {
	for part := range strings.SplitSeq(name, "/") {
		if s != nil && s.Call != nil {
			if p = p.Callees[s.Call.Playbook]; p == nil {
				return nil, nil, order
			}
		}
		round := 0
		found, place := findStepByName(p, part)
		if i := strings.LastIndexByte(part, '['); found == nil && i > 0 && strings.HasSuffix(part, "]") {
			if found, place = findStepByName(p, part[:i]); found != nil {
				round, _ = strconv.Atoi(part[i+1 : len(part)-1])
				round++
			}
		}
		if s = found; s == nil {
			return p, nil, order
		}
		order = append(order, place, round)
	}
	return p, s, order
}

// findStepByName gives a step of a playbook itself and its place, from 1.
func findStepByName(p *playbooks.Program, name string) (found *playbooks.Step, place int) {
	n := 0
	p.WalkSteps(func(s *playbooks.Step) {
		if n++; found == nil && s.Name() == name {
			found, place = s, n
		}
	})
	return found, place
}
