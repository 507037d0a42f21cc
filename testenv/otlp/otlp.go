// Package otlp receives traces as a collector does: OTLP over HTTP, into memory.
//
// It refuses what is not OTLP, so that a test sees what a real collector would accept.
package otlp

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Receiver has the spans that were sent to URL.
type Receiver struct {
	URL string

	mu       sync.Mutex
	spans    []Span
	services map[string]bool
}

// Span is a span with its attributes as strings.
type Span struct {
	*tracepb.Span
	Attributes map[string]string
}

// SpanID and Parent are IDs as strings; a root's Parent is "".
func (s Span) SpanID() string { return hex.EncodeToString(s.GetSpanId()) }

// ParentID returns the ID of the parent.
func (s Span) ParentID() string { return hex.EncodeToString(s.GetParentSpanId()) }

// TraceIDText returns the ID of the trace.
func (s Span) TraceIDText() string { return hex.EncodeToString(s.GetTraceId()) }

// Start starts a receiver, and stops it when the test ends.
func Start(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{services: map[string]bool{}}
	server := httptest.NewServer(http.HandlerFunc(r.handleTraces))
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

func (r *Receiver) handleTraces(w http.ResponseWriter, q *http.Request) {
	raw, err := io.ReadAll(io.LimitReader(q.Body, 16<<20))
	var in collector.ExportTraceServiceRequest
	if err != nil || q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" ||
		proto.Unmarshal(raw, &in) != nil {
		http.Error(w, "this is no OTLP", http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range in.GetResourceSpans() {
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				r.services[a.GetValue().GetStringValue()] = true
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				texts := map[string]string{}
				for _, a := range s.GetAttributes() {
					texts[a.GetKey()] = a.GetValue().GetStringValue()
				}
				r.spans = append(r.spans, Span{s, texts})
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// Spans returns the received spans.
func (r *Receiver) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Span(nil), r.spans...)
}

// Services returns the service names of the senders.
func (r *Receiver) Services() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name := range r.services {
		out = append(out, name)
	}
	return out
}
