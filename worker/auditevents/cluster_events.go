// Package auditevents evaluates rules on events that no node sees: requests in the API server's audit log, and calls in
// CloudTrail. It finds the pod that made or suffered a request.
//
// It trusts no name in an event that a caller can choose, such as the name of an assumed role's session.
package auditevents

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"stanch/sensors"
	"stanch/sensors/truncate"
	"stanch/worker/ingest"
)

// ClusterEvents evaluates the requests in an API server's audit log: it evaluates the rules, and finds the pods that a
// request is about. It is safe for concurrent use.
type ClusterEvents struct {
	RuleEvaluator *RuleEvaluator
	Ingester      *ingest.Ingester
	Log           *slog.Logger
}

// Evaluate returns the detections of one request from a source, each with its subject, and how many were refused. An
// error means that everything must be sent again.
func (f *ClusterEvents) Evaluate(ctx context.Context, source string, e sensors.Event) (out []sensors.Detection,
	refused int, err error,
) {
	if e.Audit.Stage == "RequestReceived" {
		return nil, 0, nil // it is sent again with its response
	}
	for _, d := range f.RuleEvaluator.Evaluate(e) {
		d.Source, d.Detected = source, time.Now().UTC()
		d.Reasons = append([]string{describeAuditEvent(e.Audit)}, d.Reasons...)
		ingest.RedactDetection(&d)
		about, err := f.attribute(ctx, d)
		if err != nil {
			return nil, 0, err
		}
		for _, d := range about {
			if err := f.Ingester.Check(ctx, &d, ""); err != nil {
				refused++
				f.Log.Warn("refused a detection about a request", "rule", d.Rule, "error", err)
				continue
			}
			out = append(out, d)
		}
	}
	return out, refused, nil
}

// attribute sets the subjects of a detection: the pod that the request was about, and the pod whose token it used, so
// that it joins their incidents; otherwise the account. A pod that is gone cannot be contained.
func (f *ClusterEvents) attribute(ctx context.Context, d sensors.Detection) ([]sensors.Detection, error) {
	a := d.Event.Audit
	var out []sensors.Detection
	var gone []string
	about := func(pod sensors.Pod, container, id string) error {
		one := d
		one.ID, one.Event.Container = id, sensors.Container{Name: container, Pod: pod}
		err := f.Ingester.CompletePod(ctx, &one)
		if later := (*ingest.TemporaryError)(nil); errors.As(err, &later) {
			return err
		}
		if err != nil {
			gone = append(gone, "It was about the pod "+truncate.Name(
				pod.Namespace+"/"+pod.Name)+", which cannot be contained: "+truncate.Reason(err.Error())+".")
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
	fmt.Fprintf(&b, "%s requested %s", truncate.Name(a.User), truncate.Name(a.Verb))
	if a.Resource == "" {
		fmt.Fprintf(&b, " %s", truncate.Name(a.Path))
	} else {
		fmt.Fprintf(&b, " %s", strings.TrimSuffix(a.Resource+"/"+a.Subresource, "/"))
	}
	if name := strings.Trim(a.Namespace+"/"+a.Name, "/"); name != "" {
		fmt.Fprintf(&b, " %s", truncate.Name(name))
	}
	if a.ImpersonatedUser != "" {
		fmt.Fprintf(&b, " as %s", truncate.Name(a.ImpersonatedUser))
	}
	if len(a.SourceIPs) > 0 {
		fmt.Fprintf(&b, " from %s", truncate.Name(a.SourceIPs[len(a.SourceIPs)-1]))
	}
	if a.UserAgent != "" {
		fmt.Fprintf(&b, " with %s", truncate.Name(a.UserAgent))
	}
	fmt.Fprintf(&b, "; the response was %d.", a.StatusCode)
	return b.String()
}
