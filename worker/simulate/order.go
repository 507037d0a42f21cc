package simulate

import (
	"cmp"
	"slices"

	"stanch/playbooks"
	"stanch/playbooks/testspec"
)

// order puts what happened at once into one order, which chance does not choose.
func (s *sim) order() {
	slices.SortStableFunc(s.result.Events, func(a, b Event) int { return cmp.Compare(a.AtMS, b.AtMS) })
	looks := func(e Event) bool {
		return e.Kind == string(playbooks.VerbEvidence) || e.Kind == string(playbooks.VerbEnrich)
	}
	for i := 0; i < len(s.result.Events); {
		j := i + 1
		for looks(s.result.Events[i]) && j < len(s.result.Events) && looks(s.result.Events[j]) && s.result.Events[j].AtMS == s.result.Events[i].AtMS {
			j++
		}
		slices.SortFunc(s.result.Events[i:j], func(a, b Event) int { return cmp.Compare(a.What, b.What) })
		i = j
	}
	places := map[string][]int{} // of steps, with the loops and calls that they stand in
	place := func(of Step) []int {
		key := of.Playbook + "\x00" + of.Step
		if _, known := places[key]; !known && s.running[of.Playbook] != nil {
			places[key] = testspec.StepOrder(s.running[of.Playbook], of.Step)
		}
		return places[key]
	}
	slices.SortStableFunc(s.result.Steps, func(a, b Step) int {
		return cmp.Or(
			cmp.Compare(slices.Index(s.result.Playbooks, a.Playbook), slices.Index(s.result.Playbooks, b.Playbook)), slices.Compare(place(a), place(b)),
			cmp.Compare(a.AtMS, b.AtMS), cmp.Compare(a.Run, b.Run), cmp.Compare(a.Target, b.Target),
		)
	})
	slices.SortStableFunc(s.result.Effects, func(a, b Effect) int {
		return cmp.Or(cmp.Compare(a.FromMS, b.FromMS), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Target, b.Target))
	})
	slices.SortStableFunc(s.result.Decisions, func(a, b Decision) int {
		return cmp.Or(cmp.Compare(a.AtMS, b.AtMS), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Target, b.Target))
	})
	slices.SortStableFunc(s.result.Questions, func(a, b Asked) int {
		return cmp.Or(cmp.Compare(a.AtMS, b.AtMS), cmp.Compare(a.Playbook, b.Playbook), cmp.Compare(a.Run, b.Run), cmp.Compare(a.Title, b.Title))
	})
}
