package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
)

// outcomeInterceptor runs inside the tracing interceptor. It records which workflows have really ended, and the
// outcomes of activities.
type outcomeInterceptor struct{ interceptor.InterceptorBase }

// InterceptWorkflow implements interceptor.WorkerInterceptor.
func (*outcomeInterceptor) InterceptWorkflow(_ workflow.Context,
	next interceptor.WorkflowInboundInterceptor,
) interceptor.WorkflowInboundInterceptor {
	return &tracedWorkflow{interceptor.WorkflowInboundInterceptorBase{Next: next}}
}

// InterceptActivity implements interceptor.WorkerInterceptor.
func (*outcomeInterceptor) InterceptActivity(_ context.Context,
	next interceptor.ActivityInboundInterceptor,
) interceptor.ActivityInboundInterceptor {
	return &tracedActivity{interceptor.ActivityInboundInterceptorBase{Next: next}}
}

type tracedWorkflow struct {
	interceptor.WorkflowInboundInterceptorBase
}

// ExecuteWorkflow implements interceptor.WorkflowInboundInterceptor. An evicted workflow never returns, and a query of
// a closed workflow runs it again after its span was sent.
func (w *tracedWorkflow) ExecuteWorkflow(ctx workflow.Context, in *interceptor.ExecuteWorkflowInput) (any, error) {
	out, err := w.Next.ExecuteWorkflow(ctx, in)
	if s, ok := ctx.Value(spanContextKey{}).(*recordedSpan); ok && !workflow.IsReplaying(ctx) {
		s.done = true
	}
	return out, err //nolint:wrapcheck // the workflow's own error
}

type tracedActivity struct {
	interceptor.ActivityInboundInterceptorBase
}

// ExecuteActivity implements interceptor.ActivityInboundInterceptor.
func (a *tracedActivity) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	s := trace.SpanFromContext(ctx)
	for _, arg := range in.Args {
		if r, ok := requestFromArg(arg); ok {
			s.SetAttributes(textAttribute("stanch.incident", r.IncidentRef.ID), textAttribute("stanch.action", r.Action),
				textAttribute("stanch.target.kind", string(r.Target.Kind)))
			if r.LeaseID != "" {
				s.SetAttributes(textAttribute("stanch.lease", r.LeaseID))
			}
		}
	}
	out, err := a.Next.ExecuteActivity(ctx, in)
	s.SetAttributes(outcomeAttributes(out)...)
	return out, err //nolint:wrapcheck // the activity's own error
}

func requestFromArg(arg any) (activities.Request, bool) {
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

// outcomeAttributes returns the outcome as attributes. They contain no reasons, which may be attacker-controlled.
func outcomeAttributes(out any) []attribute.KeyValue {
	switch r := out.(type) {
	case activities.Result:
		return []attribute.KeyValue{textAttribute("stanch.outcome", string(r.Outcome))}
	case activities.PlanResult:
		return []attribute.KeyValue{
			textAttribute("stanch.verdict", string(r.Decision.Verdict)),
			textAttribute("stanch.guard", r.Decision.Guard),
		}
	case activities.ApplyResult:
		return []attribute.KeyValue{
			textAttribute("stanch.verdict", string(r.Decision.Verdict)),
			textAttribute("stanch.guard", r.Decision.Guard),
		}
	case activities.VerifyResult:
		return []attribute.KeyValue{attribute.Bool("stanch.in_force", r.InForce)}
	case activities.UndoResult:
		return []attribute.KeyValue{attribute.Bool("stanch.undone", r.Undone)}
	}
	return nil
}
