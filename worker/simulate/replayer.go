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

// replayer returns a recording's results, one after the other.
type replayer struct {
	simulation *simulation
	mu         sync.Mutex
	// resultsByKey are the results by operation, action and target; nextIndex is the next one to return.
	resultsByKey map[string][]recording.ActionResult
	nextIndex    map[string]int
	effectIndex  map[string]int // by action and target: the index of its effect, plus one
}

func resultKey(op recording.Operation, action, target string) string {
	return string(op) + "\x00" + action + "\x00" + target
}

// newActions returns one replaying action for each action of the catalog.
func (s *simulation) newActions() []activities.Action {
	t := &replayer{
		simulation: s, resultsByKey: map[string][]recording.ActionResult{}, nextIndex: map[string]int{},
		effectIndex: map[string]int{},
	}
	s.replayer = t
	for _, a := range s.recording.ActionResults {
		k := resultKey(a.Operation, a.Action, a.Target)
		t.resultsByKey[k] = append(t.resultsByKey[k], a)
	}
	var out []activities.Action
	for _, spec := range s.actionSpecs {
		if spec.Verb == playbooks.VerbContain {
			out = append(out, &fakeContainment{replayer: t, spec: spec})
		} else {
			out = append(out, &fakeObserver{replayer: t, spec: spec})
		}
	}
	return out
}

// nextResult returns the next result; the last one is repeated.
func (t *replayer) nextResult(op recording.Operation, r activities.Request) (recording.ActionResult, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := resultKey(op, r.Action, r.Target.ID())
	all := t.resultsByKey[k]
	if len(all) == 0 {
		return recording.ActionResult{}, false
	}
	i := min(t.nextIndex[k], len(all)-1)
	t.nextIndex[k]++
	return all[i], true
}

// recordedFailure returns a recorded failure without the prefixes that the activity adds again.
func recordedFailure(a recording.ActionResult, prefixes ...string) error {
	text := a.FailureReason
	for _, p := range prefixes {
		text = strings.TrimPrefix(text, p)
	}
	return errors.New(text)
}

// fakeObserver replays an action without side effects.
type fakeObserver struct {
	*replayer
	spec playbooks.ActionSpec
}

var _ activities.Observer = (*fakeObserver)(nil)

// Spec returns the real action's spec.
func (l *fakeObserver) Spec() playbooks.ActionSpec { return l.spec }

// Observe returns the recorded observation.
func (l *fakeObserver) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	if l.spec.Verb == playbooks.VerbNotify || l.spec.Verb == playbooks.VerbTicket {
		// Nobody is notified; a notification that failed in the recording fails again.
		a, _ := l.resultFor(ctx, recording.OperationObserve, r)
		switch {
		case a.RefusalReason != "":
			return activities.Observation{}, activities.Refusef("%s", a.RefusalReason)
		case a.FailureReason != "":
			return activities.Observation{}, recordedFailure(a, fmt.Sprintf("%s on %s: ", r.Action, r.Target))
		}
		l.simulation.addEvent("notification", "%s would send: %s", r.Action, notificationText(r.Params))
		return toObservation(a), nil
	}
	l.simulation.rememberTarget(r.Target)
	a, ok := l.resultFor(ctx, recording.OperationObserve, r)
	if !ok {
		a = l.assumeResult(recording.OperationObserve, l.spec, r)
	}
	switch {
	case a.RefusalReason != "":
		l.simulation.addEvent(string(l.spec.Verb), "%s on %s was refused: %s", r.Action, r.Target, a.RefusalReason)
		return activities.Observation{}, activities.Refusef("%s", a.RefusalReason)
	case a.FailureReason != "":
		l.simulation.addEvent(string(l.spec.Verb), "%s on %s failed: %s", r.Action, r.Target, a.FailureReason)
		return activities.Observation{}, recordedFailure(a, fmt.Sprintf("%s on %s: ", r.Action, r.Target))
	}
	if n := len(a.Artifacts); n > 0 {
		l.simulation.addEvent(string(l.spec.Verb), "%s on %s: %d evidence artifacts", r.Action, r.Target, n)
	} else {
		l.simulation.addEvent(string(l.spec.Verb), "%s on %s", r.Action, r.Target)
	}
	return toObservation(a), nil
}

func toObservation(a recording.ActionResult) activities.Observation {
	out := activities.Observation{MissingNote: a.Reason, Unchanged: a.Outcome == playbooks.OutcomeUnchanged}
	if len(a.Outputs) > 0 {
		out.Outputs = a.Outputs
	}
	return out
}

func notificationText(params json.RawMessage) string {
	var p struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(params, &p) == nil && p.Text != "" {
		return p.Text
	}
	return string(params)
}

// fakeContainment replays a containment. It changes only its own state.
type fakeContainment struct {
	*replayer
	spec playbooks.ActionSpec
}

var _ activities.Containment = (*fakeContainment)(nil)

// Spec returns the real action's spec.
func (c *fakeContainment) Spec() playbooks.ActionSpec { return c.spec }

// Plan returns the recorded plan. A plan is requested twice, at first and before its effect, with the same result.
func (c *fakeContainment) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	c.simulation.rememberTarget(r.Target)
	a, ok := c.fakedResult(ctx, recording.OperationPlan, r)
	if !ok {
		a, ok = c.recordedPlan(r)
	}
	if !ok {
		a = c.assumeResult(recording.OperationPlan, c.spec, r)
	}
	switch {
	case a.RefusalReason != "":
		return activities.Plan{}, activities.Refusef("%s", a.RefusalReason)
	case a.FailureReason != "":
		return activities.Plan{}, recordedFailure(a, fmt.Sprintf("plan %s on %s: ", r.Action, r.Target))
	}
	plan := activities.Plan{
		Changes: a.Changes, Warnings: a.Warnings, PriorState: a.PriorState, NothingToDo: a.NothingToDo,
		AlreadyHeld: a.AlreadyHeld,
	}
	if ok && !isSameJSON(a.Params, r.Params) {
		plan.Warnings = append(plan.Warnings[:len(plan.Warnings):len(plan.Warnings)],
			"the recorded plan has different parameters")
	}
	return plan, nil
}

// recordedPlan skips failed attempts once, and then keeps returning the first plan.
func (c *fakeContainment) recordedPlan(r activities.Request) (recording.ActionResult, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := resultKey(recording.OperationPlan, r.Action, r.Target.ID())
	all := c.resultsByKey[k]
	if len(all) == 0 {
		return recording.ActionResult{}, false
	}
	i := min(c.nextIndex[k], len(all)-1)
	if all[i].FailureReason != "" {
		c.nextIndex[k]++
	}
	return all[i], true
}

func isSameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return len(bytes.TrimSpace(a)) == len(bytes.TrimSpace(b))
	}
	p, errA := json.Marshal(x)
	q, errB := json.Marshal(y)
	return errA == nil && errB == nil && bytes.Equal(p, q)
}

// Apply returns the recorded effect. If there is a plan without an effect, because nobody permitted it, the effect is
// assumed and marked.
func (c *fakeContainment) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	a, ok := c.resultFor(ctx, recording.OperationApply, r)
	assumed := false
	if !ok || a.GuardDecision != nil && a.GuardDecision.Verdict != string(activities.VerdictRun) && a.RefusalReason == "" {
		assumed = true
		if _, planned := c.recordedPlan(r); !planned {
			a = c.assumeResult(recording.OperationApply, c.spec, r)
		} else {
			a = recording.ActionResult{Outcome: playbooks.OutcomeUnverified, Reason: effectNotRecorded}
		}
	}
	switch {
	case a.RefusalReason != "":
		c.simulation.addEvent("effect", "%s on %s was refused: %s", r.Action, r.Target, a.RefusalReason)
		return activities.Effect{}, activities.Refusef("%s", a.RefusalReason)
	case a.FailureReason != "":
		c.simulation.addEvent("effect", "%s on %s failed: %s", r.Action, r.Target, a.FailureReason)
		return activities.Effect{}, recordedFailure(a, fmt.Sprintf("apply %s to %s: ", r.Action, r.Target))
	}
	c.rememberEffect(r, a, assumed)
	return activities.Effect{Outcome: a.Outcome, Reason: a.Reason, AppliedAt: c.simulation.testEnvironment.Now()}, nil
}

func (c *fakeContainment) rememberEffect(r activities.Request, a recording.ActionResult, assumed bool) {
	k := r.Action + "\x00" + r.Target.ID()
	at := c.simulation.elapsedMS()
	c.mu.Lock()
	again := c.effectIndex[k] > 0
	c.mu.Unlock()
	if again {
		c.simulation.addEvent("effect", "%s on %s would be applied again", r.Action, r.Target)
		return
	}
	c.simulation.mu.Lock()
	c.simulation.result.Effects = append(c.simulation.result.Effects, ContainmentEffect{
		Action: r.Action,
		Target: r.Target.ID(), Params: string(r.Params), Outcome: a.Outcome, AppliedAtMS: at, Assumed: assumed,
	})
	n := len(c.simulation.result.Effects)
	c.simulation.mu.Unlock()
	c.mu.Lock()
	c.effectIndex[k] = n
	c.mu.Unlock()
	note := ""
	if a.Reason != "" {
		note = " (" + a.Reason + ")"
	}
	c.simulation.addEvent("effect", "%s on %s would be applied%s", r.Action, r.Target, note)
	c.simulation.scheduleLeaseChanges(r)
}

// Verify returns the recorded verification while the effect lasts.
func (c *fakeContainment) Verify(_ context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	c.mu.Lock()
	held := c.effectIndex[r.Action+"\x00"+r.Target.ID()] > 0
	left := c.nextIndex[resultKey(recording.OperationVerify, r.Action,
		r.Target.ID())] < len(c.resultsByKey[resultKey(recording.OperationVerify, r.Action, r.Target.ID())])
	c.mu.Unlock()
	if !held || !left {
		return held, "", nil
	}
	a, _ := c.nextResult(recording.OperationVerify, r)
	switch {
	case a.FailureReason != "":
		return false, "", recordedFailure(a, fmt.Sprintf("verify %s on %s: ", r.Action, r.Target))
	case a.TargetGone:
		c.simulation.addEvent("verification", "%s no longer exists", r.Target)
		return false, "", activities.ErrTargetGone
	case !a.InForce:
		c.simulation.addEvent("verification", "%s on %s is no longer in force: %s", r.Action, r.Target, a.VerifyDetail)
	}
	return a.InForce, a.VerifyDetail, nil
}

// Undo undoes the effect, after the recorded failures.
func (c *fakeContainment) Undo(_ context.Context, r activities.Request, _ json.RawMessage,
	_ *attestation.Envelope,
) (*activities.Drift, error) {
	c.mu.Lock()
	k := resultKey(recording.OperationUndo, r.Action, r.Target.ID())
	left := c.nextIndex[k] < len(c.resultsByKey[k])
	c.mu.Unlock()
	if left {
		switch a, _ := c.nextResult(recording.OperationUndo, r); {
		case a.FailureReason != "":
			c.simulation.addEvent("undo", "undoing %s on %s failed: %s", r.Action, r.Target, a.FailureReason)
			return nil, recordedFailure(a, fmt.Sprintf("undo %s on %s: ", r.Action, r.Target))
		case a.Drift != "":
			c.simulation.addEvent("undo", "undoing %s on %s: another writer changed it: %s", r.Action, r.Target, a.Drift)
			return &activities.Drift{Detail: a.Drift}, nil
		}
	}
	at := c.simulation.elapsedMS()
	c.mu.Lock()
	n := c.effectIndex[r.Action+"\x00"+r.Target.ID()]
	c.effectIndex[r.Action+"\x00"+r.Target.ID()] = 0
	c.mu.Unlock()
	if n > 0 {
		c.simulation.mu.Lock()
		c.simulation.result.Effects[n-1].UndoneAtMS = at
		c.simulation.mu.Unlock()
	}
	c.simulation.addEvent("undo", "%s on %s would be undone", r.Action, r.Target)
	return nil, nil //nolint:nilnil // nil means no drift
}
