package simulate

import (
	"context"

	"stanch/activities"
	"stanch/worker/guards"
)

// recordingGuards runs the real guards with the recorded inputs, and records their decisions.
type recordingGuards struct {
	*guards.GuardChain
	budgetWindow *guards.BudgetWindow
	simulation   *simulation
}

var _ activities.Guards = (*recordingGuards)(nil)

// Decide returns the guards' decision.
func (h *recordingGuards) Decide(ctx context.Context, q activities.GuardInput) (activities.GuardDecision, error) {
	in := h.simulation.inputsFor(q)
	chain := *h.GuardChain
	chain.KillSwitch, chain.Budget, chain.TargetResolver = recordedKillSwitch{in}, simulatedBudget{h.budgetWindow, in},
		recordedTargets{h.simulation, in}
	if in != nil && in.ProtectedBy != nil && in.ProtectedBy.IsStanch {
		chain.OwnPodUIDs = []string{q.Request.Target.UID}
	}
	d, err := chain.Decide(ctx, q)
	if err != nil {
		return d, err //nolint:wrapcheck // the activity adds context
	}
	s := h.simulation
	s.rememberTarget(q.Request.Target)
	target := q.Request.Target.ID()
	one := GuardDecision{
		Action: q.Request.Action, Target: target, Verdict: d.Verdict, Guard: d.Guard, Reason: d.Reason,
		Phase: d.Phase, AtMS: s.elapsedMS(), AtEnforcement: q.Enforce,
	}
	s.mu.Lock()
	s.result.Decisions = append(s.result.Decisions, one)
	s.mu.Unlock()
	if s.isNewDecision(one) {
		s.addEvent("decision", "%s on %s: %s (guard %s: %s)", q.Request.Action, s.targetName(target), VerdictTexts[d.Verdict],
			d.Guard, d.Reason)
	}
	return d, nil
}

// isNewDecision reports whether a decision differs from the last one of the same action on the same target.
func (s *simulation) isNewDecision(d GuardDecision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := d.Action + "\x00" + d.Target
	was, known := s.lastVerdicts[key]
	s.lastVerdicts[key] = d.Verdict
	return !known || was != d.Verdict
}

// VerdictTexts are the guards' verdicts in words.
var VerdictTexts = map[activities.Verdict]string{
	activities.VerdictRun: "would run", activities.VerdictPropose: "would only be proposed",
	activities.VerdictAskApproval: "would require approval", activities.VerdictRefuse: "would be refused",
}
