// Package tracing sends OpenTelemetry traces of the path from a detection to its lease: the gateway's acceptance, the
// incident, its playbooks, their actions, and the lease.
//
// It does nothing unless the standard environment variables name a receiver. It never sends attacker-controlled text as
// a span's name or an error (only kinds and outcomes; ids are truncated), and never delays a workflow or changes its
// decisions: it adds only a header to Temporal's calls, which replays do not compare.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
)

// Traces sends spans. A nil *Traces sends none. It is safe for concurrent use.
type Traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// Limits of one span.
const (
	maxAttributeBytes = 256
	maxSpanAttributes = 32
	maxSpanEvents     = 128
)

// Open returns traces for the receiver in OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT; nil
// without one. The exporter and the SDK read the other standard variables.
func Open(ctx context.Context, version string, log *slog.Logger) (*Traces, error) {
	if !IsEnabled() {
		return nil, nil //nolint:nilnil // nil disables tracing
	}
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	var exporter sdktrace.SpanExporter
	var err error
	switch protocol {
	case "", "http/protobuf":
		exporter, err = otlptracehttp.New(ctx)
	case "grpc":
		exporter, err = otlptracegrpc.New(ctx)
	default:
		return nil, fmt.Errorf("unknown OTEL_EXPORTER_OTLP_PROTOCOL %q; use http/protobuf or grpc", protocol)
	}
	if err != nil {
		return nil, fmt.Errorf("create the trace exporter: %w; set OTEL_EXPORTER_OTLP_ENDPOINT to a URL such as "+
			"http://127.0.0.1:4318", err)
	}
	// The process's arguments and the host's name are not sent unless OTEL_RESOURCE_ATTRIBUTES contains them.
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "stanch"),
		attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	return NewTraces(sdktrace.WithBatcher(&nonblockingExporter{SpanExporter: exporter, log: log}),
		sdktrace.WithResource(res)), nil
}

// IsEnabled reports whether the standard variables name a receiver.
func IsEnabled() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// NewTraces returns traces with a tracer provider that has these options.
func NewTraces(o ...sdktrace.TracerProviderOption) *Traces {
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit, limits.AttributeCountLimit, limits.EventCountLimit = maxAttributeBytes,
		maxSpanAttributes, maxSpanEvents
	provider := sdktrace.NewTracerProvider(append([]sdktrace.TracerProviderOption{
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithIDGenerator(deterministicIDGenerator{}),
	}, o...)...)
	return &Traces{provider: provider, tracer: provider.Tracer("stanch")}
}

// Tracer returns the tracer; nil if t is nil.
func (t *Traces) Tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.tracer
}

// WithTracing returns a client's options with tracing, which also applies to the workers of the client.
func (t *Traces) WithTracing(o client.Options) client.Options {
	if t != nil {
		o.Interceptors = append(o.Interceptors, interceptor.NewTracingInterceptor(temporalTracer{otelTracer: t.tracer}),
			&outcomeInterceptor{})
	}
	return o
}

// shutdownTimeout limits sending the remaining spans at the end.
const shutdownTimeout = 3 * time.Second

// Close sends the remaining spans, for at most shutdownTimeout, and stops.
func (t *Traces) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // the exporter already logged what could not be sent
}

// nonblockingExporter is an exporter whose receiver may be unavailable: it logs that once a minute, and affects nothing
// else.
type nonblockingExporter struct {
	sdktrace.SpanExporter
	log        *slog.Logger
	lastLogged atomic.Int64
}

// ExportSpans implements sdktrace.SpanExporter.
func (c *nonblockingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	now, last := time.Now().Unix(), c.lastLogged.Load()
	if err != nil && now-last >= 60 && c.lastLogged.CompareAndSwap(last, now) {
		c.log.Warn("traces are lost: the collector rejects them", "spans", len(spans), "error", err)
	}
	return nil
}
