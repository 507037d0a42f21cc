package simulate

import (
	"cmp"
	"slices"

	"stanch/playbooks"
	"stanch/playbooks/testspec"
)

// sortEvents sorts simultaneous events into a deterministic order.
func (s *simulation) sortEvents() {
	slices.SortStableFunc(s.result.Events, func(a, b TimelineEvent) int { return cmp.Compare(a.AtMS, b.AtMS) })
	looks := func(e TimelineEvent) bool {
		return e.Kind == string(playbooks.VerbEvidence) || e.Kind == string(playbooks.VerbEnrich)
	}
	for i := 0; i < len(s.result.Events); {
		j := i + 1
		for looks(s.result.Events[i]) && j < len(s.result.Events) && looks(s.result.Events[j]) &&
			s.result.Events[j].AtMS == s.result.Events[i].AtMS {
			j++
		}
		slices.SortFunc(s.result.Events[i:j], func(a, b TimelineEvent) int { return cmp.Compare(a.Text, b.Text) })
		i = j
	}
	places := map[string][]int{} // of steps, by name with loops and calls
	place := func(of StepResult) []int {
		key := of.Playbook + "\x00" + of.Step
		if _, known := places[key]; !known && s.runningPrograms[of.Playbook] != nil {
			places[key] = testspec.StepOrder(s.runningPrograms[of.Playbook], of.Step)
		}
		return places[key]
	}
	slices.SortStableFunc(s.result.Steps, func(a, b StepResult) int {
		return cmp.Or(
			cmp.Compare(slices.Index(s.result.Playbooks, a.Playbook), slices.Index(s.result.Playbooks, b.Playbook)),
			slices.Compare(place(a), place(b)),
			cmp.Compare(a.AtMS, b.AtMS), cmp.Compare(a.RunNumber, b.RunNumber), cmp.Compare(a.Target, b.Target),
		)
	})
	slices.SortStableFunc(s.result.Effects, func(a, b ContainmentEffect) int {
		return cmp.Or(cmp.Compare(a.AppliedAtMS, b.AppliedAtMS), cmp.Compare(a.Action, b.Action),
			cmp.Compare(a.Target, b.Target))
	})
	slices.SortStableFunc(s.result.Decisions, func(a, b GuardDecision) int {
		return cmp.Or(cmp.Compare(a.AtMS, b.AtMS), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Target, b.Target))
	})
	slices.SortStableFunc(s.result.ApprovalRequests, func(a, b ApprovalRequest) int {
		return cmp.Or(cmp.Compare(a.AskedAtMS, b.AskedAtMS), cmp.Compare(a.Playbook, b.Playbook),
			cmp.Compare(a.RunNumber, b.RunNumber), cmp.Compare(a.Title, b.Title))
	})
}
