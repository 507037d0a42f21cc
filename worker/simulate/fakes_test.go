package simulate_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/worker/simulate"
)

func TestFakeReplacesRecordedResult(t *testing.T) {
	rec := loadRecording(t, "cryptominer")
	step := func(r simulate.Result, action string) simulate.StepResult {
		for _, s := range r.Steps {
			if s.Action == action {
				return s
			}
		}
		t.Fatalf("%s did not run", action)
		return simulate.StepResult{}
	}
	with := func(fake simulate.FakeFunc) simulate.Result {
		o := optionsWith(t)
		o.FakeResults = fake
		return runSimulation(t, rec, o)
	}
	only := func(op recording.Operation, action string, a recording.ActionResult) simulate.FakeFunc {
		return func(c simulate.FakeCall) (recording.ActionResult, bool) {
			return a, c.Operation == op && c.Request.Action == action
		}
	}
	plain := step(with(only("", "", recording.ActionResult{})), "process.snapshot")
	require.Equal(t, playbooks.OutcomeSucceeded, plain.Outcome, "actions without a fake use the recording")

	refused := with(only(recording.OperationPlan, "pod.isolate", recording.ActionResult{RefusalReason: "host network"}))
	require.Equal(t, playbooks.OutcomeRefused, step(refused, "pod.isolate").Outcome)
	require.NotEmpty(t, step(refused, "pod.freeze").Outcome, "on_failure runs")

	slow := step(with(only(recording.OperationObserve, "process.snapshot",
		recording.ActionResult{Outcome: playbooks.OutcomeSucceeded, DurationMS: 4000})), "process.snapshot")
	require.Equal(t, playbooks.OutcomeSucceeded, slow.Outcome)
	require.InDelta(t, 4000, slow.AtMS, 500, "on a busy machine the simulated clock advances")

	hung := with(only(recording.OperationObserve, "process.snapshot",
		recording.ActionResult{Outcome: playbooks.OutcomeSucceeded, DurationMS: 3_600_000}))
	require.Equal(t, playbooks.OutcomeFailed, step(hung, "process.snapshot").Outcome)
	require.Equal(t, playbooks.OutcomeChanged, step(hung, "pod.isolate").Outcome,
		"evidence that hangs does not stop a containment")

	tries := 0
	again := with(func(c simulate.FakeCall) (recording.ActionResult, bool) {
		if c.Operation != recording.OperationApply || c.Request.Action != "pod.isolate" {
			return recording.ActionResult{}, false
		}
		if tries++; c.Attempt <= 2 {
			return recording.ActionResult{FailureReason: "the API server is away"}, true
		}
		return recording.ActionResult{Outcome: playbooks.OutcomeChanged, DurationMS: 2000}, true
	})
	require.Equal(t, playbooks.OutcomeChanged, step(again, "pod.isolate").Outcome)
	require.Equal(t, 3, tries)
}
