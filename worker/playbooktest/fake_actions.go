package playbooktest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/playbooks/testspec"
	"stanch/worker/simulate"
)

// fakeActions returns the fake results of one test, and records the calls.
type fakeActions struct {
	test                *testspec.TestCase
	context             testspec.WorkloadContext
	catalog             playbooks.Catalog
	fallBackToRecording bool // use the recording for what is not faked

	mu             sync.Mutex
	targetsByID    map[string]playbooks.Target
	paramsByCall   map[string][]json.RawMessage // parameters of each call, by action and target
	callCounts     map[string]int               // completed observations and applied effects
	failedAttempts map[string]int               // attempts that failed on purpose
}

func newFakeActions(t *testspec.TestCase, catalog playbooks.Catalog) *fakeActions {
	return &fakeActions{
		test: t, context: contextWithDefaults(t), catalog: catalog, fallBackToRecording: t.RecordingFile.Name != "",
		targetsByID: map[string]playbooks.Target{}, paramsByCall: map[string][]json.RawMessage{},
		callCounts: map[string]int{}, failedAttempts: map[string]int{},
	}
}

func callKey(action, target string) string { return action + "\x00" + target }

// actionResult is the simulate.FakeFunc of the test.
func (p *fakeActions) actionResult(c simulate.FakeCall) (recording.ActionResult, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := c.Request
	p.targetsByID[r.Target.ID()] = r.Target
	k := callKey(r.Action, r.Target.ID())
	own := len(r.Params) == 0 || string(r.Params) == "null" // the incident's own enrichment belongs to no step
	call := p.callCounts[k] + 1
	switch c.Operation {
	case recording.OperationObserve:
		if own || c.Attempt > 1 {
			call = max(p.callCounts[k], 1)
			break
		}
		p.callCounts[k]++
		p.paramsByCall[k] = append(p.paramsByCall[k], r.Params)
	case recording.OperationPlan:
		// A plan is made before and after the approval: both belong to the same step.
		if all := p.paramsByCall[k]; len(all) == 0 || !bytes.Equal(all[len(all)-1], r.Params) {
			p.paramsByCall[k] = append(all, r.Params)
		}
	default: // already planned
	}
	f := p.matchingFake(r, call)
	if f == nil {
		if p.fallBackToRecording && (r.Action != "workload" || p.test.IncidentContext == nil) {
			return recording.ActionResult{}, false
		}
		f = &testspec.FakeResult{Action: r.Action}
	}
	a := p.resultFromFake(f, c, own)
	if c.Operation == recording.OperationApply && a.FailureReason == "" {
		p.callCounts[k]++
	}
	return a, true
}

// matchingFake returns the test's first fake result that matches.
func (p *fakeActions) matchingFake(r activities.Request, call int) *testspec.FakeResult {
	for _, f := range p.test.FakeResults {
		if f.Action == r.Action && (f.Target == "" || testspec.TargetMatchesName(f.Target, r.Target)) &&
			(f.CallNumber == 0 || f.CallNumber == call) {
			return f
		}
	}
	return nil
}

// resultFromFake returns the result of one operation by the test's fake result of the action.
func (p *fakeActions) resultFromFake(f *testspec.FakeResult, c simulate.FakeCall, own bool) recording.ActionResult {
	outcome := f.Outcome
	if outcome == "" {
		outcome = playbooks.OutcomeChanged
		if c.Operation == recording.OperationObserve {
			outcome = playbooks.OutcomeSucceeded
		}
	}
	a := recording.ActionResult{
		Operation: c.Operation, Action: f.Action, Target: c.Request.Target.ID(),
		AttemptNumber: c.Attempt, Params: c.Request.Params,
	}
	refused := outcome == playbooks.OutcomeRefused
	if c.Operation == recording.OperationPlan {
		if refused {
			a.RefusalReason = cmp.Or(f.Reason, "as set by the test")
		}
		a.Changes, a.NothingToDo = f.PlannedChanges, outcome == playbooks.OutcomeUnchanged
		if a.Changes == nil {
			a.Changes = []string{fmt.Sprintf("%s on %s", f.Action, c.Request.Target)}
		}
		return a
	}
	tried := fmt.Sprintf("%p\x00%s", f, c.Request.Target.ID())
	switch {
	case refused:
		a.RefusalReason = cmp.Or(f.Reason, "as set by the test")
		return a
	case outcome == playbooks.OutcomeFailed:
		a.FailureReason = cmp.Or(f.Reason, "as set by the test")
		return a
	case p.failedAttempts[tried] < f.FailureCount && !own:
		p.failedAttempts[tried]++
		a.FailureReason = cmp.Or(f.Reason, "as set by the test")
		return a
	}
	a.Outcome, a.DurationMS = outcome, f.Delay.Milliseconds()
	if f.FailureCount == 0 {
		a.Reason = f.Reason
	}
	if c.Operation == recording.OperationObserve {
		a.Outputs = p.fakeOutputs(f)
	}
	return a
}

// fakeOutputs returns the outputs of the fake result, with the workload's context as defaults.
func (p *fakeActions) fakeOutputs(f *testspec.FakeResult) json.RawMessage {
	t := p.catalog[f.Action].OutputType()
	if t == nil {
		return nil
	}
	base := reflect.New(t).Interface()
	if f.Action == "workload" {
		base = p.workloadContext()
	}
	raw, err := json.Marshal(base)
	if err != nil || f.Outputs.JSON == nil {
		return raw
	}
	values, given := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if json.Unmarshal(raw, &values) != nil || json.Unmarshal(f.Outputs.JSON, &given) != nil {
		return raw
	}
	maps.Copy(values, given)
	merged, err := json.Marshal(values)
	if err != nil {
		return raw
	}
	return merged
}

// workloadContext returns the test's context as the output of `enrich: workload`.
func (p *fakeActions) workloadContext() activities.WorkloadContext {
	c := p.context
	_, kind, name, _ := testspec.SplitWorkload(c.Workload)
	w := activities.WorkloadContext{
		Owner: activities.Owner{Kind: kind, Name: name, UID: cmp.Or(c.UID, "uid-"+name)}, Replicas: c.BlastRadius.Replicas,
		SameDigestPodCount: c.BlastRadius.SameDigestPodCount, SameDigestPodNames: c.BlastRadius.SameDigestPodNames,
		SameNodePodCount: c.BlastRadius.SameNodePodCount, DangerousPermissions: c.BlastRadius.DangerousPermissions,
		ServiceAccount: c.ServiceAccount, Image: c.Image, ImageDigest: c.ImageDigest, Labels: c.Labels, Missing: c.Missing,
	}
	for _, what := range c.Changes {
		w.Changes = append(w.Changes, playbooks.RecentChange{ChangedAt: incidentOpenedAt(), Description: what})
	}
	return w
}

// paramsByStep returns a function that returns the parameters of each step: the calls of an action on a target belong
// to its steps in order.
func (p *fakeActions) paramsByStep() func(action, target string) json.RawMessage {
	next := map[string]int{}
	return func(action, target string) json.RawMessage {
		k := callKey(action, target)
		all := p.paramsByCall[k]
		if len(all) == 0 {
			return nil
		}
		i := min(next[k], len(all)-1)
		next[k]++
		return slices.Clone(all[i])
	}
}
