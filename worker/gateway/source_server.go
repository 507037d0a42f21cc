package gateway

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

	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/sensors/redact"
	"stanch/worker/config"
)

// SourceHealthSink is told what other sensors say about themselves: that they lost events, or that they live.
type SourceHealthSink interface {
	OnSourceHealth(ctx context.Context, h integrations.SensorHealth)
	// OnSourceMessage: the source said something that could be read.
	OnSourceMessage(source string)
}

// SourceServer takes detections of other sensors over HTTP, with a token for each source.
type SourceServer struct {
	Ingester *Ingester
	Log      *slog.Logger
	// Slack takes signed clicks at /slack/interactions; nil takes none.
	Slack *SlackInteractions
	// HealthSink is told what sensors say about themselves; nil only logs it.
	HealthSink SourceHealthSink
	// RuleEvaluator takes the audit log of Kubernetes at /v1/kubernetes-audit; nil takes none.
	RuleEvaluator *RuleEvaluator
	sources       map[string]*sourceState
}

// sourceState is one sender with a token.
type sourceState struct {
	name, kind, token string
	limiter           *rate.Limiter
	counts            struct{ accepted, telemetry, health, dropped, refused, limited, later atomic.Uint64 }
}

// SourceCounts is what came from one source since the start.
type SourceCounts struct {
	Accepted    uint64 `json:"accepted"`
	Telemetry   uint64 `json:"telemetry"` // records that were no alerts
	Health      uint64 `json:"health"`    // words of the sensor about itself
	Dropped     uint64 `json:"dropped"`   // events that the sensor says it lost; what counts from its start is not added up
	Refused     uint64 `json:"refused"`
	RateLimited uint64 `json:"rate_limited"` // requests that came too fast
	RetryLater  uint64 `json:"retry_later"`  // requests that were told to come again, because Temporal or the cluster was away
}

// The bounds of one request and of what a source may send.
const (
	maxSourceBodyBytes = 4 << 20
	maxSourceRecords   = 1000
	// minTokenLength is the shortest token that is taken.
	minTokenLength = 16
	// sourceBurstSeconds is for how long a source may have been silent and send at once what it kept meanwhile.
	sourceBurstSeconds = 10
)

// NewSourceServer reads the sources' tokens. A token shorter than 16 characters, or that two sources have, is refused.
func NewSourceServer(intake *Ingester, sources []config.Source, log *slog.Logger) (*SourceServer, error) {
	f := &SourceServer{Ingester: intake, Log: log, sources: map[string]*sourceState{}}
	owners := map[string]string{}
	for _, s := range sources {
		raw, err := os.ReadFile(s.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", s.Name, err)
		}
		token := strings.TrimSpace(string(raw))
		if len(token) < minTokenLength {
			return nil, fmt.Errorf("source %s: the token in %s has fewer than %d characters", s.Name, s.TokenFile, minTokenLength)
		}
		if other, taken := owners[token]; taken {
			return nil, fmt.Errorf("source %s: it has the token of %s: give each a token of its own, or nobody can tell who sent what", s.Name, other)
		}
		owners[token] = s.Name
		perSecond := s.EffectiveRate()
		f.sources[s.Name] = &sourceState{name: s.Name, kind: s.Kind, token: token, limiter: rate.NewLimiter(rate.Limit(perSecond), max(sourceBurstSeconds*perSecond, maxSourceRecords))}
	}
	return f, nil
}

// HTTPServer serves POST /v1/KIND for each kind of sensor, and POST /v1/detections for detections in Stanch's own words.
func (f *SourceServer) HTTPServer() *http.Server {
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
		kind: config.SourceKindDetections, maxBodyBytes: maxDetectionBytes,
		splitRecords: func(body []byte) ([]integrations.RawRecord, error) {
			return []integrations.RawRecord{{Line: 1, Raw: body}}, nil
		},
		decodeRecord: func(raw []byte) (integrations.DecodedRecord, error) {
			d, err := DecodeDetection(raw)
			return integrations.DecodedRecord{Alert: &d}, err
		},
	}))
	if f.RuleEvaluator != nil {
		mux.HandleFunc("POST /v1/"+config.SourceKindKubernetesAudit, f.handleAuditLog)
	}
	if f.Slack != nil {
		mux.Handle("/slack/interactions", f.Slack)
	}
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}

// CountsBySource tells what came from each source.
func (f *SourceServer) CountsBySource() map[string]SourceCounts {
	out := map[string]SourceCounts{}
	for name, s := range f.sources {
		c := &s.counts
		out[name] = SourceCounts{
			Accepted: c.accepted.Load(), Telemetry: c.telemetry.Load(), Health: c.health.Load(), Dropped: c.dropped.Load(), Refused: c.refused.Load(),
			RateLimited: c.limited.Load(), RetryLater: c.later.Load(),
		}
	}
	return out
}

// authenticateSource is who has the token of a request, as a bearer token or as the password of HTTP Basic; nil is nobody.
func (f *SourceServer) authenticateSource(r *http.Request) *sourceState {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, password, basic := r.BasicAuth(); basic {
		given, ok = password, true // senders that take a URL alone: http://falco:TOKEN@host/v1/falco
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

// redactDetection does for detections of other sensors what the node does for its own.
func redactDetection(d *sensors.Detection) {
	e := &d.Event
	e.Process.Args = redact.Args(e.Process.Args)
	for i := range e.Process.Ancestors {
		e.Process.Ancestors[i].Args = redact.Args(e.Process.Ancestors[i].Args)
	}
	e.Audit.Exec.Command = redact.Args(e.Audit.Exec.Command)
	e.Syscall.Detail = redact.Text(e.Syscall.Detail)
	for i := range d.Reasons {
		d.Reasons[i] = redact.Text(d.Reasons[i])
	}
	d.Title = redact.Text(d.Title)
}

// reportSourceHealth hands on what a sensor says about itself.
func (f *SourceServer) reportSourceHealth(ctx context.Context, s *sourceState, h integrations.SensorHealth) {
	h.Source, h.Message = s.name, redact.Text(h.Message)
	s.counts.health.Add(1)
	if h.Dropped > 0 {
		if !h.DroppedIsCumulative {
			s.counts.dropped.Add(h.Dropped)
		}
		f.Log.Warn("a foreign sensor lost events", "source", h.Source, "node", h.Node, "dropped", h.Dropped, "since_its_start", h.DroppedIsCumulative, "message", h.Message)
	} else {
		f.Log.Debug("a foreign sensor speaks of itself", "source", h.Source, "node", h.Node, "message", h.Message)
	}
	if f.HealthSink != nil {
		f.HealthSink.OnSourceHealth(ctx, h)
	}
}
