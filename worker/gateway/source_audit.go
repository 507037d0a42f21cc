package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/worker/config"
)

// maxAuditBurst is the maximum that one list of events takes from a source's rate, so that every accepted request can
// be paid for.
const maxAuditBurst = maxSourceRecords

// handleAuditLog handles requests of an API server's audit webhook. The API server drops events on any answer but 2xx
// or "later", and does not know 207. So readable events are accepted if others are not, and unreadable ones cause an
// incident of their own, because someone may create them to hide others.
func (f *SourceServer) handleAuditLog(w http.ResponseWriter, r *http.Request) {
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
		f.Log.Warn("parse audit events", "source", s.name, "events", unread, "error", truncateReason(err.Error()))
		if len(events) == 0 {
			writeIngestResponse(w, http.StatusBadRequest, ingestResponse{
				Status:  truncateReason(err.Error()),
				Refused: []refusedRecord{{Line: 1, Reason: truncateReason(err.Error())}},
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
		found, err := f.evaluateAuditEvent(r.Context(), s, e)
		if err != nil {
			f.respondRetryLater(w, s, err)
			return
		}
		if len(found) == 0 {
			a.Telemetry++
		}
		alerts = append(alerts, found...)
	}
	sizes := make([]int, len(alerts))
	for i := range sizes {
		sizes[i] = maxChunkBytes / maxBatchDetections
	}
	if err := f.acceptAlerts(r.Context(), alerts, sizes); err != nil {
		f.respondRetryLater(w, s, err)
		return
	}
	a.Accepted = len(alerts)
	s.counts.accepted.Add(uint64(len(alerts)))
	s.counts.telemetry.Add(uint64(a.Telemetry))
	writeIngestResponse(w, http.StatusAccepted, a)
}

// countUndecodable counts and reports the unreadable events of a batch. A batch that cannot be split counts as one.
func (f *SourceServer) countUndecodable(ctx context.Context, s *sourceState, err error) uint64 {
	n := uint64(1)
	if some := (*integrations.BatchDecodeError)(nil); errors.As(err, &some) {
		n = uint64(max(some.FailedCount, 1))
	}
	s.counts.refused.Add(n)
	if f.HealthSink != nil {
		f.HealthSink.OnSourceHealth(ctx, integrations.SensorHealth{
			Source: s.name, Time: time.Now().UTC(),
			UndecodableEvents: n, Message: truncateReason(err.Error()),
		})
	}
	return n
}

func (f *SourceServer) respondRetryLater(w http.ResponseWriter, s *sourceState, err error) {
	f.Log.Error("accept audit events", "source", s.name, "error", err)
	s.counts.later.Add(1)
	w.Header().Set("Retry-After", strconv.Itoa(int(retryAfterDelay.Seconds())))
	writeIngestResponse(w, http.StatusServiceUnavailable, ingestResponse{Status: "send it again later"})
}

// evaluateAuditEvent returns the detections of one request, each with its subject. An error means that everything must
// be sent again.
func (f *SourceServer) evaluateAuditEvent(ctx context.Context, s *sourceState, e sensors.Event) ([]sensors.Detection,
	error,
) {
	if e.Audit.Stage == "RequestReceived" {
		return nil, nil // it is sent again with its response
	}
	var out []sensors.Detection
	for _, d := range f.RuleEvaluator.Evaluate(e) {
		d.Source, d.Detected = s.name, time.Now().UTC()
		d.Reasons = append([]string{describeAuditEvent(e.Audit)}, d.Reasons...)
		redactDetection(&d)
		about, err := f.attribute(ctx, d)
		if err != nil {
			return nil, err
		}
		for _, d := range about {
			if err := f.Ingester.Check(ctx, &d, ""); err != nil {
				s.counts.refused.Add(1)
				f.Log.Warn("refused a detection about a request", "rule", d.Rule, "error", err)
				continue
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// attribute sets the subjects of a detection: the pod that the request was about, and the pod whose token it used, so
// that it joins their incidents; otherwise the account. A pod that is gone cannot be contained.
func (f *SourceServer) attribute(ctx context.Context, d sensors.Detection) ([]sensors.Detection, error) {
	a := d.Event.Audit
	var out []sensors.Detection
	var gone []string
	about := func(pod sensors.Pod, container, id string) error {
		one := d
		one.ID, one.Event.Container = id, sensors.Container{Name: container, Pod: pod}
		err := f.Ingester.completePod(ctx, &one)
		if later := (*TemporaryError)(nil); errors.As(err, &later) {
			return err
		}
		if err != nil {
			gone = append(gone, "It was about the pod "+truncateText(
				pod.Namespace+"/"+pod.Name)+", which cannot be contained: "+truncateReason(err.Error())+".")
			return nil
		}
		out = append(out, one)
		return nil
	}
	target := d.Event.Container.Pod
	if target.Name != "" && a.StatusCode < 400 {
		if err := about(sensors.Pod{Namespace: target.Namespace, Name: target.Name, UID: target.UID}, a.Exec.Container,
			d.ID); err != nil {
			return nil, err
		}
	}
	if from := (sensors.Pod{Namespace: a.ServiceAccount.Namespace, Name: a.FromPod, UID: a.FromPodUID}); from.Name != "" &&
		from.Namespace != "" &&
		(from.Namespace != target.Namespace || from.Name != target.Name) {
		if err := about(from, "", d.ID+"-from"); err != nil {
			return nil, err
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	d.Event.Container = sensors.Container{}
	d.Reasons = append(d.Reasons, gone...)
	d.Event.Subject = sensors.Subject{Kind: "User", Name: a.User}
	if a.ServiceAccount.Name != "" {
		d.Event.Subject = sensors.Subject{
			Kind: "ServiceAccount", Namespace: a.ServiceAccount.Namespace,
			Name: a.ServiceAccount.Name,
		}
	}
	return []sensors.Detection{d}, nil
}

// describeAuditEvent returns who did what, and from where, in one sentence.
func describeAuditEvent(a sensors.Audit) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s requested %s", truncateText(a.User), truncateText(a.Verb))
	if a.Resource == "" {
		fmt.Fprintf(&b, " %s", truncateText(a.Path))
	} else {
		fmt.Fprintf(&b, " %s", strings.TrimSuffix(a.Resource+"/"+a.Subresource, "/"))
	}
	if name := strings.Trim(a.Namespace+"/"+a.Name, "/"); name != "" {
		fmt.Fprintf(&b, " %s", truncateText(name))
	}
	if a.ImpersonatedUser != "" {
		fmt.Fprintf(&b, " as %s", truncateText(a.ImpersonatedUser))
	}
	if len(a.SourceIPs) > 0 {
		fmt.Fprintf(&b, " from %s", truncateText(a.SourceIPs[len(a.SourceIPs)-1]))
	}
	if a.UserAgent != "" {
		fmt.Fprintf(&b, " with %s", truncateText(a.UserAgent))
	}
	fmt.Fprintf(&b, "; the response was %d.", a.StatusCode)
	return b.String()
}
