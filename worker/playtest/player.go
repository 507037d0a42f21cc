package playtest

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

// player answers for the actions of one test, and remembers what they were asked.
type player struct {
	test      *testspec.TestCase
	context   testspec.WorkloadContext
	catalogue playbooks.Catalog
	recorded  bool // what is not faked the recording answers

	mu     sync.Mutex
	names  map[string]playbooks.Target
	params map[string][]json.RawMessage // of each call, by action and target
	calls  map[string]int               // observations, or effects that took hold
	failed map[string]int               // attempts that were made to fail
}

func newPlayer(t *testspec.TestCase, catalogue playbooks.Catalog) *player {
	return &player{
		test: t, context: contextOf(t), catalogue: catalogue, recorded: t.RecordingFile.Name != "",
		names: map[string]playbooks.Target{}, params: map[string][]json.RawMessage{}, calls: map[string]int{}, failed: map[string]int{},
	}
}

func key(action, target string) string { return action + "\x00" + target }

// answer is simulate's Fakes.
func (p *player) answer(c simulate.Call) (recording.ActionResult, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := c.Request
	p.names[r.Target.ID()] = r.Target
	k := key(r.Action, r.Target.ID())
	own := len(r.Params) == 0 || string(r.Params) == "null" // the incident's own look at its workload is no step's
	call := p.calls[k] + 1
	switch c.Operation {
	case recording.OperationObserve:
		if own || c.Attempt > 1 {
			call = max(p.calls[k], 1)
			break
		}
		p.calls[k]++
		p.params[k] = append(p.params[k], r.Params)
	case recording.OperationPlan:
		// A plan is made anew before people are asked, and after: it is the same step's.
		if all := p.params[k]; len(all) == 0 || !bytes.Equal(all[len(all)-1], r.Params) {
			p.params[k] = append(all, r.Params)
		}
	default: // what was planned already
	}
	f := p.fake(r, call)
	if f == nil {
		if p.recorded && (r.Action != "workload" || p.test.IncidentContext == nil) {
			return recording.ActionResult{}, false
		}
		f = &testspec.FakeResult{Action: r.Action}
	}
	a := p.given(f, c, own)
	if c.Operation == recording.OperationApply && a.FailureReason == "" {
		p.calls[k]++
	}
	return a, true
}

// fake is the test's first answer that fits.
func (p *player) fake(r activities.Request, call int) *testspec.FakeResult {
	for _, f := range p.test.FakeResults {
		if f.Action == r.Action && (f.Target == "" || testspec.TargetMatchesName(f.Target, r.Target)) && (f.CallNumber == 0 || f.CallNumber == call) {
			return f
		}
	}
	return nil
}

// given makes the answer to one operation of what a test says of an action.
func (p *player) given(f *testspec.FakeResult, c simulate.Call, own bool) recording.ActionResult {
	outcome := cmp.Or(f.Outcome, playbooks.OutcomeChanged)
	a := recording.ActionResult{Operation: c.Operation, Action: f.Action, Target: c.Request.Target.ID(), AttemptNumber: c.Attempt, Params: c.Request.Params}
	refused := outcome == playbooks.OutcomeRefused
	if c.Operation == recording.OperationPlan {
		if refused {
			a.RefusalReason = cmp.Or(f.Reason, "the test says so")
		}
		a.Changes, a.NothingToDo = f.PlannedChanges, outcome == playbooks.OutcomeUnchanged
		if a.Changes == nil {
			a.Changes = []string{fmt.Sprintf("%s of %s", f.Action, c.Request.Target)}
		}
		return a
	}
	tried := fmt.Sprintf("%p\x00%s", f, c.Request.Target.ID())
	switch {
	case refused:
		a.RefusalReason = cmp.Or(f.Reason, "the test says so")
		return a
	case outcome == playbooks.OutcomeFailed:
		a.FailureReason = cmp.Or(f.Reason, "the test says so")
		return a
	case p.failed[tried] < f.FailureCount && !own:
		p.failed[tried]++
		a.FailureReason = cmp.Or(f.Reason, "the test says so")
		return a
	}
	a.Outcome, a.DurationMS = outcome, f.Delay.Milliseconds()
	if f.FailureCount == 0 {
		a.Reason = f.Reason
	}
	if c.Operation == recording.OperationObserve {
		a.Outputs = p.outputs(f)
	}
	return a
}

// outputs are those that the test gives, over what is known of the workload, over nothing.
func (p *player) outputs(f *testspec.FakeResult) json.RawMessage {
	t := p.catalogue[f.Action].OutputType()
	if t == nil {
		return nil
	}
	base := reflect.New(t).Interface()
	if f.Action == "workload" {
		base = p.workload()
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

// workload is what the test knows around the workload, as `enrich: workload` finds it.
func (p *player) workload() activities.WorkloadContext {
	c := p.context
	_, kind, name, _ := testspec.SplitWorkload(c.Workload)
	w := activities.WorkloadContext{
		Owner: activities.Owner{Kind: kind, Name: name, UID: cmp.Or(c.UID, "uid-"+name)}, Replicas: c.BlastRadius.Replicas, SameDigestPodCount: c.BlastRadius.SameDigestPodCount, SameDigestPodNames: c.BlastRadius.SameDigestPodNames,
		SameNodePodCount: c.BlastRadius.SameNodePodCount, DangerousPermissions: c.BlastRadius.DangerousPermissions, ServiceAccount: c.ServiceAccount, Image: c.Image, ImageDigest: c.ImageDigest, Labels: c.Labels, Missing: c.Missing,
	}
	for _, what := range c.Changes {
		w.Changes = append(w.Changes, playbooks.RecentChange{ChangedAt: opened(), Description: what})
	}
	return w
}

// told is what a step was asked with: the calls of an action on a target are those of its steps, in their order.
func (p *player) told() func(action, target string) json.RawMessage {
	next := map[string]int{}
	return func(action, target string) json.RawMessage {
		k := key(action, target)
		all := p.params[k]
		if len(all) == 0 {
			return nil
		}
		i := min(next[k], len(all)-1)
		next[k]++
		return slices.Clone(all[i])
	}
}
