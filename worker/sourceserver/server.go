// Package sourceserver receives detections of other sensors, and the API server's audit log, over HTTP with a token for
// each source.
//
// It decodes, limits and redacts; package ingest checks and accepts. A response says exactly what to send again.
package sourceserver

import (
	"context"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"stanch/sensors/gatewayrpc"
	"stanch/sensors/integrations"
	"stanch/sensors/redact"
	"stanch/worker/auditevents"
	"stanch/worker/config"
	"stanch/worker/ingest"
)

// HealthSink receives sensors' reports about themselves: lost events and signs of life.
type HealthSink interface {
	OnSourceHealth(ctx context.Context, h integrations.SensorHealth)
	// OnSourceMessage is called when a source sent something readable.
	OnSourceMessage(source string)
}

// Server receives detections of other sensors over HTTP, with a token for each source. It is safe for concurrent
// use.
type Server struct {
	Ingester *ingest.Ingester
	Log      *slog.Logger
	// Slack handles signed clicks at /slack/interactions; nil disables it.
	Slack http.Handler
	// HealthSink receives sensors' reports about themselves; with nil they are only logged.
	HealthSink HealthSink
	// AuditEvents evaluates the audit log of Kubernetes at /v1/kubernetes-audit; nil disables it.
	AuditEvents *auditevents.ClusterEvents
	sources     map[string]*sourceState
}

// sourceState is one sender with a token.
type sourceState struct {
	name, kind, token string
	limiter           *rate.Limiter
	counts            struct{ accepted, telemetry, health, dropped, refused, limited, later atomic.Uint64 }
}

// Counts are the counters of one source since the start.
type Counts struct {
	Accepted    uint64 `json:"accepted"`
	Telemetry   uint64 `json:"telemetry"` // records that are not alerts
	Health      uint64 `json:"health"`    // reports of the sensor about itself
	Dropped     uint64 `json:"dropped"`   // events that the sensor reports as lost; cumulative reports are not added up
	Refused     uint64 `json:"refused"`
	RateLimited uint64 `json:"rate_limited"` // requests above the rate limit
	// requests that must be repeated, because Temporal or the cluster was unavailable
	RetryLater uint64 `json:"retry_later"`
}

// Limits of one request and of each source's rate.
const (
	maxSourceBodyBytes = 4 << 20
	maxSourceRecords   = 1000
	// minTokenLength is the minimum length of a token.
	minTokenLength = 16
	// sourceBurstSeconds is how many seconds' worth of records a source may send at once after a pause.
	sourceBurstSeconds = 10
)

// New reads the sources' tokens. It returns an error for a token that is shorter than 16 characters or used
// by two sources.
func New(intake *ingest.Ingester, sources []config.Source, log *slog.Logger) (*Server, error) {
	f := &Server{Ingester: intake, Log: log, sources: map[string]*sourceState{}}
	owners := map[string]string{}
	for _, s := range sources {
		raw, err := os.ReadFile(s.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("load source %s: %w", s.Name, err)
		}
		token := strings.TrimSpace(string(raw))
		if len(token) < minTokenLength {
			return nil, fmt.Errorf("load source %s: the token in %s is too short; use at least %d characters", s.Name,
				s.TokenFile,
				minTokenLength)
		}
		if other, taken := owners[token]; taken {
			return nil, fmt.Errorf("source %s: its token is also the token of %s; give each source its own token", s.Name, other)
		}
		owners[token] = s.Name
		perSecond := s.EffectiveRate()
		f.sources[s.Name] = &sourceState{
			name: s.Name, kind: s.Kind, token: token,
			limiter: rate.NewLimiter(rate.Limit(perSecond), max(sourceBurstSeconds*perSecond, maxSourceRecords)),
		}
	}
	return f, nil
}

// HTTPServer returns a server for POST /v1/KIND for each kind of sensor, and POST /v1/detections for detections in
// Stanch's own format.
func (f *Server) HTTPServer() *http.Server {
	mux := http.NewServeMux()
	for _, kind := range integrations.SourceKinds() {
		mux.HandleFunc("POST /v1/"+kind, f.handleRecords(endpoint{
			kind: kind, maxBodyBytes: maxSourceBodyBytes, decodeRecord: integrations.DecoderForKind(kind),
			splitRecords: func(body []byte) ([]integrations.RawRecord, error) {
				return integrations.SplitRecords(body, maxSourceRecords)
			},
		}))
	}
	mux.HandleFunc("POST /v1/detections", f.handleRecords(endpoint{
		kind: config.SourceKindDetections, maxBodyBytes: gatewayrpc.MaxDetectionBytes,
		splitRecords: func(body []byte) ([]integrations.RawRecord, error) {
			return []integrations.RawRecord{{Line: 1, Raw: body}}, nil
		},
		decodeRecord: func(raw []byte) (integrations.DecodedRecord, error) {
			d, err := ingest.DecodeDetection(raw)
			return integrations.DecodedRecord{Alert: &d}, err
		},
	}))
	if f.AuditEvents != nil {
		mux.HandleFunc("POST /v1/"+config.SourceKindKubernetesAudit, f.handleAuditLog)
	}
	if f.Slack != nil {
		mux.Handle("/slack/interactions", f.Slack)
	}
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second,
		WriteTimeout: 2 * time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// CountsBySource returns the counters by source.
func (f *Server) CountsBySource() map[string]Counts {
	out := map[string]Counts{}
	for name, s := range f.sources {
		c := &s.counts
		out[name] = Counts{
			Accepted: c.accepted.Load(), Telemetry: c.telemetry.Load(), Health: c.health.Load(), Dropped: c.dropped.Load(),
			Refused:     c.refused.Load(),
			RateLimited: c.limited.Load(), RetryLater: c.later.Load(),
		}
	}
	return out
}

// authenticateSource returns the source of a request's token, from a bearer token or the password of HTTP Basic; nil if
// it is unknown.
func (f *Server) authenticateSource(r *http.Request) *sourceState {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, password, basic := r.BasicAuth(); basic {
		given, ok = password, true // for senders that accept only a URL: http://falco:TOKEN@host/v1/falco
	}
	if !ok {
		return nil
	}
	var found *sourceState
	for _, s := range f.sources {
		if subtle.ConstantTimeCompare([]byte(s.token), []byte(given)) == 1 {
			found = s
		}
	}
	return found
}

// reportSourceHealth forwards a sensor's report about itself.
func (f *Server) reportSourceHealth(ctx context.Context, s *sourceState, h integrations.SensorHealth) {
	h.Source, h.Message = s.name, redact.Text(h.Message)
	s.counts.health.Add(1)
	if h.Dropped > 0 {
		if !h.DroppedIsCumulative {
			s.counts.dropped.Add(h.Dropped)
		}
		f.Log.Warn("a source lost events", "source", h.Source, "node", h.Node, "dropped", h.Dropped, "since_its_start",
			h.DroppedIsCumulative, "message", h.Message)
	} else {
		f.Log.Debug("a source reported its health", "source", h.Source, "node", h.Node, "message", h.Message)
	}
	if f.HealthSink != nil {
		f.HealthSink.OnSourceHealth(ctx, h)
	}
}
