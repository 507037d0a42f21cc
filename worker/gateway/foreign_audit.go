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

// maxAuditBurst bounds how much of a source's rate one list of events takes: what fits into a request has to be payable.
const maxAuditBurst = maxForeignLines

// takeAudit takes what an API server's webhook sends. The API server gives up what is answered with anything but 2xx or
// "later", and knows no 207: so the rest is taken of what cannot all be read, and that some could not is an incident of its
// own. Who can make requests that nobody can read does so to hide others.
func (f *Foreign) takeAudit(w http.ResponseWriter, r *http.Request) {
	s, body := f.admit(w, r, door{kind: config.ForeignAudit, most: integrations.MaxAuditBytes})
	if s == nil {
		return
	}
	events, err := integrations.DecodeKubernetesAudit(body)
	if err != nil {
		unread := f.unread(r.Context(), s, err)
		f.Log.Warn("audit events cannot be read", "source", s.name, "events", unread, "error", clipReason(err.Error()))
		if len(events) == 0 {
			say(w, http.StatusBadRequest, answer{Status: clipReason(err.Error()), Refused: []refused{{Line: 1, Reason: clipReason(err.Error())}}})
			return
		}
	}
	if f.Health != nil {
		f.Health.ForeignSpoke(s.name) // it lives, whatever comes of what it says, and also where it says nothing
	}
	if wait := s.reserve(min(len(events), maxAuditBurst)); wait > 0 {
		s.counts.limited.Add(1)
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		say(w, http.StatusTooManyRequests, answer{Status: "the source sends more than its rate: send it again later"})
		return
	}
	var alerts []sensors.Detection
	a := answer{Status: "accepted"}
	for _, e := range events {
		found, err := f.requested(r.Context(), s, e)
		if err != nil {
			f.later(w, s, err)
			return
		}
		if len(found) == 0 {
			a.Telemetry++
		}
		alerts = append(alerts, found...)
	}
	sizes := make([]int, len(alerts))
	for i := range sizes {
		sizes[i] = maxChunk / maxBatch
	}
	if err := f.accept(r.Context(), alerts, sizes); err != nil {
		f.later(w, s, err)
		return
	}
	a.Accepted = len(alerts)
	s.counts.accepted.Add(uint64(len(alerts)))
	s.counts.telemetry.Add(uint64(a.Telemetry)) //nolint:gosec // a count
	say(w, http.StatusAccepted, a)
}

// unread counts what of a batch cannot be read, and has it told. A batch of which nothing can be taken apart counts as one.
func (f *Foreign) unread(ctx context.Context, s *source, err error) uint64 {
	n := uint64(1)
	if some := (*integrations.BatchDecodeError)(nil); errors.As(err, &some) {
		n = uint64(max(some.FailedCount, 1)) //nolint:gosec // a count
	}
	s.counts.refused.Add(n)
	if f.Health != nil {
		f.Health.ForeignHealth(ctx, integrations.SensorHealth{Source: s.name, Time: time.Now().UTC(), UndecodableEvents: n, Message: clipReason(err.Error())})
	}
	return n
}

func (f *Foreign) later(w http.ResponseWriter, s *source, err error) {
	f.Log.Error("audit events cannot be taken now", "source", s.name, "error", err)
	s.counts.later.Add(1)
	w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
	say(w, http.StatusServiceUnavailable, answer{Status: "send it again later"})
}

// requested are the detections of one request, each about what it concerns. The error says that all has to be sent again.
func (f *Foreign) requested(ctx context.Context, s *source, e sensors.Event) ([]sensors.Detection, error) {
	if e.Audit.Stage == "RequestReceived" {
		return nil, nil // it comes again with its answer
	}
	var out []sensors.Detection
	for _, d := range f.Judge.Detections(e) {
		d.Source, d.Detected = s.name, time.Now().UTC()
		d.Reasons = append([]string{told(e.Audit)}, d.Reasons...)
		withoutSecrets(&d)
		about, err := f.concerns(ctx, d)
		if err != nil {
			return nil, err
		}
		for _, d := range about {
			if err := f.Intake.Check(ctx, &d, ""); err != nil {
				s.counts.refused.Add(1)
				f.Log.Warn("a request's detection cannot be taken", "rule", d.Rule, "error", err)
				continue
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// concerns says what a detection is about: the pod that the request was about, and the pod whose token it was made with,
// so that it joins their incidents; where there is neither, the account. A pod that has gone meanwhile is not one to hold.
func (f *Foreign) concerns(ctx context.Context, d sensors.Detection) ([]sensors.Detection, error) {
	a := d.Event.Audit
	var out []sensors.Detection
	var gone []string
	about := func(pod sensors.Pod, container, id string) error {
		one := d
		one.ID, one.Event.Container = id, sensors.Container{Name: container, Pod: pod}
		err := f.Intake.complete(ctx, &one)
		if later := (*TemporaryError)(nil); errors.As(err, &later) {
			return err
		}
		if err != nil {
			gone = append(gone, "It was about the pod "+clip(pod.Namespace+"/"+pod.Name)+", which cannot be held: "+clipReason(err.Error())+".")
			return nil
		}
		out = append(out, one)
		return nil
	}
	target := d.Event.Container.Pod
	if target.Name != "" && a.StatusCode < 400 {
		if err := about(sensors.Pod{Namespace: target.Namespace, Name: target.Name, UID: target.UID}, a.Exec.Container, d.ID); err != nil {
			return nil, err
		}
	}
	if from := (sensors.Pod{Namespace: a.ServiceAccount.Namespace, Name: a.FromPod, UID: a.FromPodUID}); from.Name != "" && from.Namespace != "" &&
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
		d.Event.Subject = sensors.Subject{Kind: "ServiceAccount", Namespace: a.ServiceAccount.Namespace, Name: a.ServiceAccount.Name}
	}
	return []sensors.Detection{d}, nil
}

// told says who did what, from where, in a sentence.
func told(a sensors.Audit) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s asked to %s", clip(a.User), clip(a.Verb))
	if a.Resource == "" {
		fmt.Fprintf(&b, " %s", clip(a.Path))
	} else {
		fmt.Fprintf(&b, " %s", strings.TrimSuffix(a.Resource+"/"+a.Subresource, "/"))
	}
	if name := strings.Trim(a.Namespace+"/"+a.Name, "/"); name != "" {
		fmt.Fprintf(&b, " %s", clip(name))
	}
	if a.ImpersonatedUser != "" {
		fmt.Fprintf(&b, " as %s", clip(a.ImpersonatedUser))
	}
	if len(a.SourceIPs) > 0 {
		fmt.Fprintf(&b, " from %s", clip(a.SourceIPs[len(a.SourceIPs)-1]))
	}
	if a.UserAgent != "" {
		fmt.Fprintf(&b, " with %s", clip(a.UserAgent))
	}
	fmt.Fprintf(&b, "; the answer was %d.", a.StatusCode)
	return b.String()
}
