package tracing

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

// temporalTracer creates spans for the SDK's tracing interceptor. The SDK's own OpenTelemetry module is not used: it
// sends the text of errors, which may be attacker-controlled, and gives a workflow's span a new id at every replay, so
// that earlier child spans lose their parent after a restart.
type temporalTracer struct {
	interceptor.BaseTracer
	otelTracer trace.Tracer
}

type spanContextKey struct{}

// runWorkflowOperation is the interceptor's name of a workflow's own span.
const runWorkflowOperation = "RunWorkflow"

// Options implements interceptor.Tracer. An unreadable header must not stop a workflow, because whoever can start one
// could write it. Signals, queries and updates are not traced: they are many and say little.
func (t temporalTracer) Options() interceptor.TracerOptions {
	return interceptor.TracerOptions{
		SpanContextKey: spanContextKey{}, HeaderKey: "_tracer-data", DisableSignalTracing: true, DisableQueryTracing: true,
		DisableUpdateTracing: true, AllowInvalidParentSpans: true,
	}
}

// UnmarshalSpan implements interceptor.Tracer.
func (t temporalTracer) UnmarshalSpan(m map[string]string) (interceptor.TracerSpanRef, error) {
	c := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier(m)))
	if !c.IsValid() {
		return nil, nil //nolint:nilnil // it has no parent
	}
	return c, nil
}

// MarshalSpan implements interceptor.Tracer.
func (t temporalTracer) MarshalSpan(s interceptor.TracerSpan) (map[string]string, error) {
	m := propagation.MapCarrier{}
	if s, ok := s.(*recordedSpan); ok {
		propagation.TraceContext{}.Inject(trace.ContextWithSpan(context.Background(), s.Span), m)
	}
	return m, nil
}

// SpanFromContext implements interceptor.Tracer.
func (t temporalTracer) SpanFromContext(ctx context.Context) interceptor.TracerSpan {
	s := trace.SpanFromContext(ctx)
	if !s.SpanContext().IsValid() {
		return nil
	}
	return &recordedSpan{Span: s}
}

// ContextWithSpan implements interceptor.Tracer.
func (t temporalTracer) ContextWithSpan(ctx context.Context, s interceptor.TracerSpan) context.Context {
	if s, ok := s.(*recordedSpan); ok {
		return trace.ContextWithSpan(ctx, s.Span)
	}
	return ctx
}

// StartSpan implements interceptor.Tracer.
func (t temporalTracer) StartSpan(o *interceptor.TracerStartSpanOptions) (interceptor.TracerSpan, error) {
	ctx := context.Background()
	switch parent := o.Parent.(type) {
	case trace.SpanContext:
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	case *recordedSpan:
		ctx = trace.ContextWithSpanContext(ctx, parent.SpanContext())
	}
	if o.IdempotencyKey != "" {
		ctx = context.WithValue(ctx, spanIDContextKey{}, o.IdempotencyKey)
	}
	kind := trace.SpanKindServer
	if o.ToHeader {
		kind = trace.SpanKindClient
	}
	at := o.Time
	if at.IsZero() {
		at = time.Now()
	}
	attributes := make([]attribute.KeyValue, 0, len(o.Tags))
	for k, v := range o.Tags {
		attributes = append(attributes, textAttribute(k, v))
	}
	_, s := t.otelTracer.Start(ctx, spanName(o), trace.WithTimestamp(at), trace.WithSpanKind(kind),
		trace.WithAttributes(attributes...))
	// A workflow's own span ends with the workflow, not when it is evicted from the cache.
	return &recordedSpan{Span: s, dropUnlessDone: o.Operation == runWorkflowOperation}, nil
}

// spanName returns a name of Stanch's own terms. Types of workflows and activities, which whoever starts one can
// invent, are used only if they look like Stanch's.
func spanName(o *interceptor.TracerStartSpanOptions) string {
	if len(o.Name) > 64 || strings.IndexFunc(o.Name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/", r)
	}) >= 0 {
		return o.Operation
	}
	return o.Operation + ":" + o.Name
}

// textAttribute returns a truncated attribute. Text that is not UTF-8 would make all spans of its batch invalid.
func textAttribute(key, value string) attribute.KeyValue {
	if len(value) > maxAttributeBytes {
		value = value[:maxAttributeBytes]
	}
	return attribute.String(key, strings.ToValidUTF8(value, "?"))
}

// recordedSpan is one span. A span with dropUnlessDone is dropped unless it was marked as done.
type recordedSpan struct {
	trace.Span
	dropUnlessDone, done bool
}

// Finish implements interceptor.TracerSpan. Only the kind of an error is recorded.
func (s *recordedSpan) Finish(o *interceptor.TracerFinishSpanOptions) {
	if s.dropUnlessDone && !s.done {
		return
	}
	var again *workflow.ContinueAsNewError
	if o.Error != nil && !errors.As(o.Error, &again) {
		kind := "error"
		var application *temporal.ApplicationError
		if errors.As(o.Error, &application) && application.Type() != "" {
			kind = application.Type()
		}
		s.SetAttributes(textAttribute("error.type", kind))
		s.SetStatus(codes.Error, "")
	}
	s.End()
}

type spanIDContextKey struct{}

// deterministicIDGenerator returns the same id for a workflow's span at every replay, and random ids for all others.
type deterministicIDGenerator struct{}

// NewIDs implements sdktrace.IDGenerator.
func (deterministicIDGenerator) NewIDs(ctx context.Context) (id trace.TraceID, s trace.SpanID) {
	sum := deterministicBytes(ctx)
	copy(id[:], sum[8:24])
	copy(s[:], sum[:8])
	return id, s
}

// NewSpanID implements sdktrace.IDGenerator.
func (deterministicIDGenerator) NewSpanID(ctx context.Context, _ trace.TraceID) (s trace.SpanID) {
	sum := deterministicBytes(ctx)
	copy(s[:], sum[:8])
	return s
}

// deterministicBytes returns bytes that are derived from the key in ctx, or random ones without a key.
func deterministicBytes(ctx context.Context) (out [sha256.Size]byte) {
	if key, ok := ctx.Value(spanIDContextKey{}).(string); ok {
		return sha256.Sum256([]byte(key))
	}
	_, _ = rand.Read(out[:]) // it never fails
	return out
}
