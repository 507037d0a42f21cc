package testspec

import (
	"strconv"
	"strings"

	"stanch/playbooks"
)

// ResolveStep returns a step by its name in a report, which includes loops and calls: "each[2]/sub/isolate". The step
// is nil if it does not exist.
func ResolveStep(p *playbooks.Program, name string) (*playbooks.Program, *playbooks.Step) {
	in, s, _ := resolveStep(p, name)
	return in, s
}

// StepOrder returns a sort key that puts steps that ended at the same time in file order: the position in each playbook
// and iteration that leads to the step.
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

// findStepByName returns a step of the playbook itself and its position, from 1.
func findStepByName(p *playbooks.Program, name string) (found *playbooks.Step, place int) {
	n := 0
	p.WalkSteps(func(s *playbooks.Step) {
		if n++; found == nil && s.Name() == name {
			found, place = s, n
		}
	})
	return found, place
}
