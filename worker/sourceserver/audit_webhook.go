package sourceserver

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/sensors/truncate"
	"stanch/worker/config"
)

// maxAuditBurst is the maximum that one list of events takes from a source's rate, so that every accepted request can
// be paid for.
const maxAuditBurst = maxSourceRecords

// handleAuditLog handles requests of an API server's audit webhook. The API server drops events on any answer but 2xx
// or "later", and does not know 207. So readable events are accepted if others are not, and unreadable ones cause an
// incident of their own, because someone may create them to hide others.
func (f *Server) handleAuditLog(w http.ResponseWriter, r *http.Request) {
	s, body := f.authenticateAndRead(w, r, endpoint{
		kind:         config.SourceKindKubernetesAudit,
		maxBodyBytes: integrations.MaxAuditBytes,
	})
	if s == nil {
		return
	}
	events, err := integrations.DecodeKubernetesAudit(body)
	if err != nil {
		unread := f.countUndecodable(r.Context(), s, err)
		f.Log.Warn("parse audit events", "source", s.name, "events", unread, "error", truncate.Reason(err.Error()))
		if len(events) == 0 {
			writeIngestResponse(w, http.StatusBadRequest, ingestResponse{
				Status:  truncate.Reason(err.Error()),
				Refused: []refusedRecord{{Line: 1, Reason: truncate.Reason(err.Error())}},
			})
			return
		}
	}
	if f.HealthSink != nil {
		f.HealthSink.OnSourceMessage(s.name) // the source is alive, whatever it sends
	}
	if wait := s.reserveRate(min(len(events), maxAuditBurst)); wait > 0 {
		s.counts.limited.Add(1)
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		writeIngestResponse(w, http.StatusTooManyRequests,
			ingestResponse{Status: "the source exceeded its rate limit; resend the request later"})
		return
	}
	var alerts []sensors.Detection
	a := ingestResponse{Status: "accepted"}
	for _, e := range events {
		found, refused, err := f.AuditEvents.Evaluate(r.Context(), s.name, e)
		if err != nil {
			f.respondRetryLater(w, s, err)
			return
		}
		s.counts.refused.Add(uint64(refused))
		if len(found) == 0 {
			a.Telemetry++
		}
		alerts = append(alerts, found...)
	}
	if err := f.Ingester.AcceptChunks(r.Context(), alerts, nil); err != nil {
		f.respondRetryLater(w, s, err)
		return
	}
	a.Accepted = len(alerts)
	s.counts.accepted.Add(uint64(len(alerts)))
	s.counts.telemetry.Add(uint64(a.Telemetry))
	writeIngestResponse(w, http.StatusAccepted, a)
}

// countUndecodable counts and reports the unreadable events of a batch. A batch that cannot be split counts as one.
func (f *Server) countUndecodable(ctx context.Context, s *sourceState, err error) uint64 {
	n := uint64(1)
	if some := (*integrations.BatchDecodeError)(nil); errors.As(err, &some) {
		n = uint64(max(some.FailedCount, 1))
	}
	s.counts.refused.Add(n)
	if f.HealthSink != nil {
		f.HealthSink.OnSourceHealth(ctx, integrations.SensorHealth{
			Source: s.name, Time: time.Now().UTC(),
			UndecodableEvents: n, Message: truncate.Reason(err.Error()),
		})
	}
	return n
}

func (f *Server) respondRetryLater(w http.ResponseWriter, s *sourceState, err error) {
	f.Log.Error("accept audit events", "source", s.name, "error", err)
	s.counts.later.Add(1)
	w.Header().Set("Retry-After", strconv.Itoa(int(retryAfterDelay.Seconds())))
	writeIngestResponse(w, http.StatusServiceUnavailable, ingestResponse{Status: "send it again later"})
}
