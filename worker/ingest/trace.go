package ingest

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"stanch/sensors/truncate"
)

// maxTracedDetections is the maximum number of detections of one batch that are traced individually.
const maxTracedDetections = 32

// startBatchSpan starts the trace of a batch of detections, at the time of the first of them.
func (i *Ingester) startBatchSpan(ctx context.Context, batch []*queuedDetection) (context.Context, trace.Span) {
	if i.Tracer == nil {
		return ctx, noop.Span{}
	}
	first := batch[0]
	ctx, span := i.Tracer.Start(ctx, "gateway.accept", trace.WithNewRoot(), trace.WithTimestamp(first.receivedAt),
		trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(append(first.traceAttributes(), attribute.Int("stanch.detections", len(batch)))...))
	for _, it := range batch[1:min(len(batch), maxTracedDetections)] {
		span.AddEvent("detection", trace.WithTimestamp(it.receivedAt), trace.WithAttributes(it.traceAttributes()...))
	}
	return ctx, span
}

// traceAttributes returns the trace attributes of a detection. Of its event, they contain only the time.
func (it *queuedDetection) traceAttributes() []attribute.KeyValue {
	d := it.detection
	text := func(key, value string) attribute.KeyValue {
		return attribute.String(key, strings.ToValidUTF8(truncate.Name(value), "?"))
	}
	return []attribute.KeyValue{
		text("stanch.rule", d.Rule), text("stanch.severity", string(d.Severity)), text("stanch.source", d.Source),
		text("stanch.node", d.Node), text("stanch.detection", d.ID),
		attribute.String("stanch.event_time", d.Time.UTC().Format(time.RFC3339Nano)),
		attribute.Float64("stanch.delay_seconds", it.receivedAt.Sub(d.Time).Seconds()),
	}
}
