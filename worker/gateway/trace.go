package gateway

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// maxTraced bounds how many detections of one batch are told one by one.
const maxTraced = 32

// traced begins the story that a batch of detections is, at the moment when the first of them came.
func (i *Intake) traced(ctx context.Context, batch []*item) (context.Context, trace.Span) {
	if i.Tracer == nil {
		return ctx, noop.Span{}
	}
	first := batch[0]
	ctx, span := i.Tracer.Start(ctx, "gateway.accept", trace.WithNewRoot(), trace.WithTimestamp(first.came), trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(append(first.told(), attribute.Int("stanch.detections", len(batch)))...))
	for _, it := range batch[1:min(len(batch), maxTraced)] {
		span.AddEvent("detection", trace.WithTimestamp(it.came), trace.WithAttributes(it.told()...))
	}
	return ctx, span
}

// told is what a trace tells of a detection: nothing of its event but when it was.
func (it *item) told() []attribute.KeyValue {
	d := it.detection
	text := func(key, value string) attribute.KeyValue {
		return attribute.String(key, strings.ToValidUTF8(clip(value), "?"))
	}
	return []attribute.KeyValue{
		text("stanch.rule", d.Rule), text("stanch.severity", string(d.Severity)), text("stanch.source", d.Source), text("stanch.node", d.Node), text("stanch.detection", d.ID),
		attribute.String("stanch.event_time", d.Time.UTC().Format(time.RFC3339Nano)), attribute.Float64("stanch.delay_seconds", it.came.Sub(d.Time).Seconds()),
	}
}
