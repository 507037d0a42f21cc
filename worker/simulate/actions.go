package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors/attestation"
)

// tape is a recording's answers, each given in turn.
type tape struct {
	sim *sim
	mu  sync.Mutex
	// answers are by operation, action and target; next is the one to give.
	answers map[string][]recording.ActionResult
	next    map[string]int
	held    map[string]int // by action and target: the index of its effect, plus one
}

func key(op recording.Operation, action, target string) string {
	return string(op) + "\x00" + action + "\x00" + target
}

// actions are one for each of the catalogue, all of them reading the tape.
func (s *sim) actions() []activities.Action {
	t := &tape{sim: s, answers: map[string][]recording.ActionResult{}, next: map[string]int{}, held: map[string]int{}}
	s.tape = t
	for _, a := range s.rec.ActionResults {
		k := key(a.Operation, a.Action, a.Target)
		t.answers[k] = append(t.answers[k], a)
	}
	var out []activities.Action
	for _, spec := range s.specs {
		if spec.Verb == playbooks.VerbContain {
			out = append(out, &containing{tape: t, spec: spec})
		} else {
			out = append(out, &looking{tape: t, spec: spec})
		}
	}
	return out
}

// give is the next answer; the last one is given again.
func (t *tape) give(op recording.Operation, r activities.Request) (recording.ActionResult, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key(op, r.Action, r.Target.ID())
	all := t.answers[k]
	if len(all) == 0 {
		return recording.ActionResult{}, false
	}
	i := min(t.next[k], len(all)-1)
	t.next[k]++
	return all[i], true
}

// failure is a recorded failure, without what the activity around it says again.
func failure(a recording.ActionResult, prefixes ...string) error {
	text := a.FailureReason
	for _, p := range prefixes {
		text = strings.TrimPrefix(text, p)
	}
	return errors.New(text)
}

// looking answers for an action that changes nothing.
type looking struct {
	*tape
	spec playbooks.ActionSpec
}

var _ activities.Observer = (*looking)(nil)

// Spec is the real action's.
func (l *looking) Spec() playbooks.ActionSpec { return l.spec }

// Observe gives what was observed.
func (l *looking) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	if l.spec.Verb == playbooks.VerbNotify || l.spec.Verb == playbooks.VerbTicket {
		// Nobody is told; one that could not be told then could not be told now.
		a, _ := l.answer(ctx, recording.OperationObserve, r)
		switch {
		case a.RefusalReason != "":
			return activities.Observation{}, activities.Refusef("%s", a.RefusalReason)
		case a.FailureReason != "":
			return activities.Observation{}, failure(a, fmt.Sprintf("%s of %s: ", r.Action, r.Target))
		}
		l.sim.event("notification", "%s would tell: %s", r.Action, told(r.Params))
		return observed(a), nil
	}
	l.sim.learn(r.Target)
	a, ok := l.answer(ctx, recording.OperationObserve, r)
	if !ok {
		a = l.assume(recording.OperationObserve, l.spec, r)
	}
	switch {
	case a.RefusalReason != "":
		l.sim.event(string(l.spec.Verb), "%s on %s was refused: %s", r.Action, r.Target, a.RefusalReason)
		return activities.Observation{}, activities.Refusef("%s", a.RefusalReason)
	case a.FailureReason != "":
		l.sim.event(string(l.spec.Verb), "%s on %s failed: %s", r.Action, r.Target, a.FailureReason)
		return activities.Observation{}, failure(a, fmt.Sprintf("%s of %s: ", r.Action, r.Target))
	}
	if n := len(a.Artifacts); n > 0 {
		l.sim.event(string(l.spec.Verb), "%s on %s: %d pieces of evidence", r.Action, r.Target, n)
	} else {
		l.sim.event(string(l.spec.Verb), "%s on %s", r.Action, r.Target)
	}
	return observed(a), nil
}

func observed(a recording.ActionResult) activities.Observation {
	out := activities.Observation{MissingNote: a.Reason, Unchanged: a.Outcome == playbooks.OutcomeUnchanged}
	if len(a.Outputs) > 0 {
		out.Outputs = a.Outputs
	}
	return out
}

func told(params json.RawMessage) string {
	var p struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(params, &p) == nil && p.Text != "" {
		return p.Text
	}
	return string(params)
}

// containing answers for an action that changes something. It changes nothing but its own memory.
type containing struct {
	*tape
	spec playbooks.ActionSpec
}

var _ activities.Containment = (*containing)(nil)

// Spec is the real action's.
func (c *containing) Spec() playbooks.ActionSpec { return c.spec }

// Plan gives what was planned. A plan is asked for twice, when it is made and before its effect: the same is given.
func (c *containing) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	c.sim.learn(r.Target)
	a, ok := c.faked(ctx, recording.OperationPlan, r)
	if !ok {
		a, ok = c.planned(r)
	}
	if !ok {
		a = c.assume(recording.OperationPlan, c.spec, r)
	}
	switch {
	case a.RefusalReason != "":
		return activities.Plan{}, activities.Refusef("%s", a.RefusalReason)
	case a.FailureReason != "":
		return activities.Plan{}, failure(a, fmt.Sprintf("plan %s of %s: ", r.Action, r.Target))
	}
	plan := activities.Plan{Changes: a.Changes, Warnings: a.Warnings, PriorState: a.PriorState, NothingToDo: a.NothingToDo, AlreadyHeld: a.AlreadyHeld}
	if ok && !same(a.Params, r.Params) {
		plan.Warnings = append(plan.Warnings[:len(plan.Warnings):len(plan.Warnings)], "the recording's plan is for other parameters")
	}
	return plan, nil
}

// planned passes over failed attempts once and then stays with the first plan.
func (c *containing) planned(r activities.Request) (recording.ActionResult, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := key(recording.OperationPlan, r.Action, r.Target.ID())
	all := c.answers[k]
	if len(all) == 0 {
		return recording.ActionResult{}, false
	}
	i := min(c.next[k], len(all)-1)
	if all[i].FailureReason != "" {
		c.next[k]++
	}
	return all[i], true
}

func same(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return len(bytes.TrimSpace(a)) == len(bytes.TrimSpace(b))
	}
	p, errA := json.Marshal(x)
	q, errB := json.Marshal(y)
	return errA == nil && errB == nil && bytes.Equal(p, q)
}

// Apply gives the effect that was recorded. Where there is a plan and no effect, since nobody let it happen, the effect
// is assumed, and said to be.
func (c *containing) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	a, ok := c.answer(ctx, recording.OperationApply, r)
	assumed := false
	if !ok || a.GuardDecision != nil && a.GuardDecision.Verdict != string(activities.VerdictRun) && a.RefusalReason == "" {
		assumed = true
		if _, planned := c.planned(r); !planned {
			a = c.assume(recording.OperationApply, c.spec, r)
		} else {
			a = recording.ActionResult{Outcome: playbooks.OutcomeUnverified, Reason: noEffect}
		}
	}
	switch {
	case a.RefusalReason != "":
		c.sim.event("effect", "%s on %s was refused: %s", r.Action, r.Target, a.RefusalReason)
		return activities.Effect{}, activities.Refusef("%s", a.RefusalReason)
	case a.FailureReason != "":
		c.sim.event("effect", "%s on %s failed: %s", r.Action, r.Target, a.FailureReason)
		return activities.Effect{}, failure(a, fmt.Sprintf("apply %s to %s: ", r.Action, r.Target))
	}
	c.took(r, a, assumed)
	return activities.Effect{Outcome: a.Outcome, Reason: a.Reason, AppliedAt: c.sim.env.Now()}, nil
}

func (c *containing) took(r activities.Request, a recording.ActionResult, assumed bool) {
	k := r.Action + "\x00" + r.Target.ID()
	at := c.sim.after()
	c.mu.Lock()
	again := c.held[k] > 0
	c.mu.Unlock()
	if again {
		c.sim.event("effect", "%s on %s would be applied again", r.Action, r.Target)
		return
	}
	c.sim.mu.Lock()
	c.sim.result.Effects = append(c.sim.result.Effects, Effect{Action: r.Action, Target: r.Target.ID(), Params: string(r.Params), Outcome: a.Outcome, FromMS: at, Assumed: assumed})
	n := len(c.sim.result.Effects)
	c.sim.mu.Unlock()
	c.mu.Lock()
	c.held[k] = n
	c.mu.Unlock()
	note := ""
	if a.Reason != "" {
		note = " (" + a.Reason + ")"
	}
	c.sim.event("effect", "%s on %s would take hold%s", r.Action, r.Target, note)
	c.sim.releases(r)
}

// Verify says whether the effect is in force: as it was observed, as long as it holds.
func (c *containing) Verify(_ context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	c.mu.Lock()
	held := c.held[r.Action+"\x00"+r.Target.ID()] > 0
	left := c.next[key(recording.OperationVerify, r.Action, r.Target.ID())] < len(c.answers[key(recording.OperationVerify, r.Action, r.Target.ID())])
	c.mu.Unlock()
	if !held || !left {
		return held, "", nil
	}
	a, _ := c.give(recording.OperationVerify, r)
	switch {
	case a.FailureReason != "":
		return false, "", failure(a, fmt.Sprintf("verify %s of %s: ", r.Action, r.Target))
	case a.TargetGone:
		c.sim.event("verification", "%s is gone", r.Target)
		return false, "", activities.ErrTargetGone
	case !a.InForce:
		c.sim.event("verification", "%s on %s is no longer in force: %s", r.Action, r.Target, a.VerifyDetail)
	}
	return a.InForce, a.VerifyDetail, nil
}

// Undo takes the effect back, after whatever hindered that in the recording.
func (c *containing) Undo(_ context.Context, r activities.Request, _ json.RawMessage, _ *attestation.Envelope) (*activities.Drift, error) {
	c.mu.Lock()
	k := key(recording.OperationUndo, r.Action, r.Target.ID())
	left := c.next[k] < len(c.answers[k])
	c.mu.Unlock()
	if left {
		switch a, _ := c.give(recording.OperationUndo, r); {
		case a.FailureReason != "":
			c.sim.event("undo", "undoing %s on %s failed: %s", r.Action, r.Target, a.FailureReason)
			return nil, failure(a, fmt.Sprintf("undo %s of %s: ", r.Action, r.Target))
		case a.Drift != "":
			c.sim.event("undo", "undoing %s on %s: somebody else changed it since: %s", r.Action, r.Target, a.Drift)
			return &activities.Drift{Detail: a.Drift}, nil
		}
	}
	at := c.sim.after()
	c.mu.Lock()
	n := c.held[r.Action+"\x00"+r.Target.ID()]
	c.held[r.Action+"\x00"+r.Target.ID()] = 0
	c.mu.Unlock()
	if n > 0 {
		c.sim.mu.Lock()
		c.sim.result.Effects[n-1].ToMS = at
		c.sim.mu.Unlock()
	}
	c.sim.event("undo", "%s on %s would be undone", r.Action, r.Target)
	return nil, nil //nolint:nilnil // no drift is an answer
}
