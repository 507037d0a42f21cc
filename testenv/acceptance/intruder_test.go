package acceptance

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/harness"
	"stanch/workflows"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// intruder is someone with full access to Temporal. key is a signing key of their own, never the authority's.
type intruder struct {
	client.Client
	t              *testing.T
	ownKey         attestation.SigningKey
	codecConverter converter.DataConverter // what the codec's key lets them read
}

// activityOrder is an activity that the intruder's own workflow asks Stanch's workers for.
type activityOrder struct {
	Queue    string           `json:"queue"`
	Activity string           `json:"activity"`
	Input    *json.RawMessage `json:"input"`
}

const intruderQueue = "intruder"

// intruderWorkflow is the intruder's own workflow: it makes Stanch's workers run any activity with any input.
func intruderWorkflow(ctx workflow.Context, o activityOrder) (json.RawMessage, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue: o.Queue, ScheduleToCloseTimeout: 15 * time.Second,
		RetryPolicy: &temporal.RetryPolicy{MaximumAttempts: 1},
	})
	var out json.RawMessage
	err := workflow.ExecuteActivity(ctx, o.Activity, o.Input).Get(ctx, &out)
	return out, err //nolint:wrapcheck // the test shows it
}

func newIntruder(t *testing.T, s *harness.Harness, withKey bool) *intruder {
	t.Helper()
	seed := make([]byte, 32)
	_, err := rand.Read(seed)
	require.NoError(t, err)
	key, err := attestation.NewSigningKey(seed)
	require.NoError(t, err)
	i := &intruder{Client: s.TemporalClient(t, withKey), t: t, ownKey: key, codecConverter: s.DataConverter(t)}
	w := sdkworker.New(i.Client, intruderQueue, sdkworker.Options{})
	w.RegisterWorkflowWithOptions(intruderWorkflow, workflow.RegisterOptions{Name: "Intrude"})
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)
	return i
}

func (i *intruder) timeoutContext() context.Context {
	ctx, cancel := context.WithTimeout(i.t.Context(), 30*time.Second)
	i.t.Cleanup(cancel)
	return ctx
}

// orderActivity runs an activity on Stanch's workers and gives what they answered.
func (i *intruder) orderActivity(name string, input any) (json.RawMessage, error) {
	i.t.Helper()
	raw, err := json.Marshal(input)
	require.NoError(i.t, err)
	message := json.RawMessage(raw)
	run, err := i.ExecuteWorkflow(i.timeoutContext(), client.StartWorkflowOptions{TaskQueue: intruderQueue}, "Intrude",
		activityOrder{Queue: workflows.TaskQueue, Activity: name, Input: &message})
	require.NoError(i.t, err)
	var out json.RawMessage
	err = run.Get(i.timeoutContext(), &out)
	i.t.Logf("%s: %s %v", name, truncate(string(out)), err)
	return out, err //nolint:wrapcheck // the test shows it
}

func truncate(s string) string { return s[:min(len(s), 400)] }

// startWorkflow starts one of Stanch's own workflow types and waits a moment for what it does.
func (i *intruder) startWorkflow(kind, id string, input any) {
	i.t.Helper()
	run, err := i.ExecuteWorkflow(i.timeoutContext(), client.StartWorkflowOptions{
		ID: id, TaskQueue: workflows.TaskQueue,
		WorkflowExecutionTimeout: 20 * time.Second,
	}, kind, input)
	if err != nil {
		i.t.Logf("start %s: %v", kind, err)
		return
	}
	ctx, cancel := context.WithTimeout(i.timeoutContext(), 3*time.Second)
	defer cancel()
	i.t.Logf("%s ended: %v", kind, run.Get(ctx, nil))
}

// signWithOwnKey signs with the intruder's own key.
func (i *intruder) signWithOwnKey(purpose attestation.PayloadType, body any) attestation.Envelope {
	i.t.Helper()
	s, err := i.ownKey.Sign(purpose, body)
	require.NoError(i.t, err)
	return s
}

// signWithForgedKeyID signs with the intruder's key and claims that it was the authority's.
func (i *intruder) signWithForgedKeyID(genuine attestation.Envelope, purpose attestation.PayloadType,
	body any,
) attestation.Envelope {
	s := i.signWithOwnKey(purpose, body)
	s.KeyID = genuine.KeyID
	return s
}

// readLease reads a lease's whole state, which the codec's key lets them.
func (i *intruder) readLease(target playbooks.Target) *lease.Machine {
	i.t.Helper()
	m := &lease.Machine{}
	value, err := i.QueryWorkflow(i.timeoutContext(), leaseWorkflowID(target), "", workflows.QueryLease)
	require.NoError(i.t, err)
	require.NoError(i.t, value.Get(m))
	return m
}

func leaseWorkflowID(target playbooks.Target) string {
	return workflows.NodeLeaseWorkflowID("local", target, playbooks.FacetNetwork)
}

// readAttestations are the genuine ones that a playbook was given, read from its history.
func (i *intruder) readAttestations(run string, target playbooks.Target) []attestation.Envelope {
	i.t.Helper()
	var in playbook.Input
	require.NoError(i.t, i.codecConverter.FromPayloads(&commonpb.Payloads{Payloads: i.readWorkflowInput(run)}, &in))
	require.NotEmpty(i.t, in.Attestations[target.ID()])
	return in.Attestations[target.ID()]
}

// readWorkflowInput is the payloads with which a workflow was started, as they are stored.
func (i *intruder) readWorkflowInput(id string) []*commonpb.Payload {
	i.t.Helper()
	history := i.GetWorkflowHistory(i.timeoutContext(), id, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	require.True(i.t, history.HasNext())
	e, err := history.Next()
	require.NoError(i.t, err)
	return e.GetWorkflowExecutionStartedEventAttributes().GetInput().GetPayloads()
}

// requestEvidenceReceipt gets a genuine receipt, which any caller of the activity gets.
func (i *intruder) requestEvidenceReceipt(r activities.Request) []attestation.Envelope {
	i.t.Helper()
	raw, err := i.orderActivity(activities.TypeRecordAttempt, r)
	require.NoError(i.t, err)
	var s attestation.Envelope
	require.NoError(i.t, json.Unmarshal(raw, &s))
	return []attestation.Envelope{s}
}

// answerTasksFalsely takes tasks from the queues of the node and of the workers, and says that all was done.
func (i *intruder) answerTasksFalsely(node string, d time.Duration) {
	i.t.Helper()
	var workers []sdkworker.Worker
	for _, queue := range []string{workflows.NodeTaskQueue(node), workflows.TaskQueue} {
		w := sdkworker.New(i.Client, queue, sdkworker.Options{DisableWorkflowWorker: true})
		for name, f := range map[string]any{
			"Apply": func(context.Context, activities.ApplyInput) (activities.ApplyResult, error) {
				return activities.ApplyResult{}, nil
			},
			"Verify": func(context.Context, activities.VerifyInput) (activities.VerifyResult, error) {
				return activities.VerifyResult{TargetGone: true}, nil
			},
			"Undo": func(context.Context, activities.UndoInput) (activities.UndoResult, error) {
				return activities.UndoResult{}, nil
			},
		} {
			w.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
		}
		require.NoError(i.t, w.Start())
		workers = append(workers, w)
	}
	time.Sleep(d)
	for _, w := range workers {
		w.Stop()
	}
}
