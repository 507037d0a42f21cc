package simulate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
)

const (
	resultNotRecorded = "assumed: the recording has no result"
	effectNotRecorded = "assumed: the recording has the plan but no effect"
)

// assumeResult returns a result for an operation that was not recorded, by the action's spec: an empty observation, a
// plan with the action's name, an unverified effect. It is marked in every report.
func (t *replayer) assumeResult(op recording.Operation, spec playbooks.ActionSpec,
	r activities.Request,
) recording.ActionResult {
	s := t.simulation
	what := fmt.Sprintf("%s of %s on %s", op, r.Action, r.Target)
	s.mu.Lock()
	first := !slices.Contains(s.result.AssumedResults, what)
	if first {
		s.result.AssumedResults = append(s.result.AssumedResults, what)
	}
	s.assumedActions[r.Action+"\x00"+r.Target.ID()] = true
	s.mu.Unlock()
	if first {
		s.addEvent("assumed", "%s: the recording has no result", what)
	}
	a := recording.ActionResult{
		Operation: op, Action: r.Action, Target: r.Target.ID(), Params: r.Params,
		Reason: resultNotRecorded,
	}
	if len(spec.Targets) > 0 && !slices.Contains(spec.Targets, r.Target.Kind) {
		a.RefusalReason = fmt.Sprintf("%s is not allowed on a %s", r.Action, r.Target.Kind)
		return a
	}
	switch op {
	case recording.OperationObserve:
		a.Outcome = playbooks.OutcomeSucceeded
		if out := spec.OutputType(); out != nil {
			if raw, err := json.Marshal(reflect.New(out).Interface()); err == nil {
				a.Outputs = raw
			}
		}
	case recording.OperationPlan:
		a.Changes = []string{fmt.Sprintf("%s on %s", r.Action, r.Target)}
		a.Warnings = []string{resultNotRecorded}
	case recording.OperationApply, recording.OperationVerify, recording.OperationUndo:
		a.Outcome = playbooks.OutcomeUnverified
	}
	return a
}
