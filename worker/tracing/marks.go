package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
)

// marks runs inside of the tracing interceptor: it says which workflows have really ended, and what activities did.
type marks struct{ interceptor.InterceptorBase }

// InterceptWorkflow implements interceptor.WorkerInterceptor.
func (*marks) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	return &markedWorkflow{interceptor.WorkflowInboundInterceptorBase{Next: next}}
}

// InterceptActivity implements interceptor.WorkerInterceptor.
func (*marks) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &markedActivity{interceptor.ActivityInboundInterceptorBase{Next: next}}
}

type markedWorkflow struct {
	interceptor.WorkflowInboundInterceptorBase
}

// ExecuteWorkflow implements interceptor.WorkflowInboundInterceptor. What is put out of memory never returns, and what a
// query of a closed workflow runs again was told before.
func (w *markedWorkflow) ExecuteWorkflow(ctx workflow.Context, in *interceptor.ExecuteWorkflowInput) (any, error) {
	out, err := w.Next.ExecuteWorkflow(ctx, in)
	if s, ok := ctx.Value(spanKey{}).(*span); ok && !workflow.IsReplaying(ctx) {
		s.done = true
	}
	return out, err //nolint:wrapcheck // it is the workflow's own
}

type markedActivity struct {
	interceptor.ActivityInboundInterceptorBase
}

// ExecuteActivity implements interceptor.ActivityInboundInterceptor.
func (a *markedActivity) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	s := trace.SpanFromContext(ctx)
	for _, arg := range in.Args {
		if r, ok := request(arg); ok {
			s.SetAttributes(text("stanch.incident", r.IncidentRef.ID), text("stanch.action", r.Action), text("stanch.target.kind", string(r.Target.Kind)))
			if r.LeaseID != "" {
				s.SetAttributes(text("stanch.lease", r.LeaseID))
			}
		}
	}
	out, err := a.Next.ExecuteActivity(ctx, in)
	s.SetAttributes(outcome(out)...)
	return out, err //nolint:wrapcheck // it is the activity's own
}

func request(arg any) (activities.Request, bool) {
	switch in := arg.(type) {
	case activities.ObserveInput:
		return in.Request, true
	case activities.PlanInput:
		return in.Request, true
	case activities.ApplyInput:
		return in.Request, true
	case activities.VerifyInput:
		return in.Request, true
	case activities.UndoInput:
		return in.Request, true
	case activities.Request:
		return in, true
	}
	return activities.Request{}, false
}

// outcome is what became of it, in the program's own words: no reason, in which others' words may be.
func outcome(out any) []attribute.KeyValue {
	switch r := out.(type) {
	case activities.Result:
		return []attribute.KeyValue{text("stanch.outcome", string(r.Outcome))}
	case activities.PlanResult:
		return []attribute.KeyValue{text("stanch.verdict", string(r.Decision.Verdict)), text("stanch.guard", r.Decision.Guard)}
	case activities.ApplyResult:
		return []attribute.KeyValue{text("stanch.verdict", string(r.Decision.Verdict)), text("stanch.guard", r.Decision.Guard)}
	case activities.VerifyResult:
		return []attribute.KeyValue{attribute.Bool("stanch.in_force", r.InForce)}
	case activities.UndoResult:
		return []attribute.KeyValue{attribute.Bool("stanch.undone", r.Undone)}
	}
	return nil
}
