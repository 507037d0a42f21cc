package simulate

import (
	"context"

	"stanch/activities"
	"stanch/worker/guards"
)

// heard is the real guards, judging by what the recording says of each decision, with what they say written down.
type heard struct {
	*guards.Chain
	window *guards.Window
	sim    *sim
}

var _ activities.Guards = (*heard)(nil)

// Decide lets the guards decide.
func (h *heard) Decide(ctx context.Context, q activities.GuardInput) (activities.GuardDecision, error) {
	in := h.sim.of(q)
	chain := *h.Chain
	chain.Switch, chain.Budget, chain.Targets = lever{in}, budget{h.window, in}, recorded{h.sim, in}
	if in != nil && in.ProtectedBy != nil && in.ProtectedBy.IsStanch {
		chain.Self = []string{q.Request.Target.UID}
	}
	d, err := chain.Decide(ctx, q)
	if err != nil {
		return d, err //nolint:wrapcheck // the activity says what was asked
	}
	s := h.sim
	s.learn(q.Request.Target)
	target := q.Request.Target.ID()
	one := Decision{Action: q.Request.Action, Target: target, Verdict: d.Verdict, Guard: d.Guard, Reason: d.Reason, Phase: d.Phase, AtMS: s.after(), Before: q.Enforce}
	s.mu.Lock()
	s.result.Decisions = append(s.result.Decisions, one)
	s.mu.Unlock()
	if s.news(one) {
		s.event("decision", "%s on %s: %s (guard %s: %s)", q.Request.Action, s.name(target), verdicts[d.Verdict], d.Guard, d.Reason)
	}
	return d, nil
}

// news tells whether a decision says something that the last one of the same action on the same target did not.
func (s *sim) news(d Decision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := d.Action + "\x00" + d.Target
	was, known := s.last[key]
	s.last[key] = d.Verdict
	return !known || was != d.Verdict
}

// verdicts are the guards' words as people say them.
var verdicts = map[activities.Verdict]string{
	activities.VerdictRun: "would run", activities.VerdictPropose: "would only be proposed", activities.VerdictAskApproval: "people would be asked", activities.VerdictRefuse: "would be refused",
}
