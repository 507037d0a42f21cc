package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"stanch/sensors"
	"stanch/sensors/redact"
	"stanch/sensors/truncate"
	"stanch/workflows/incident"
)

// TemporaryError means that a detection may be sent again.
type TemporaryError struct{ Err error }

// Error implements error.
func (e *TemporaryError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *TemporaryError) Unwrap() error { return e.Err }

// DecodeDetection parses one detection strictly. It returns an error if the detection is too large or malformed.
func DecodeDetection(raw []byte) (sensors.Detection, error) {
	var d sensors.Detection
	if len(raw) > maxDetectionBytes {
		return d, fmt.Errorf("the detection is %d bytes; the maximum is %d", len(raw), maxDetectionBytes)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return d, fmt.Errorf("parse the detection: %w", err)
	}
	return d, nil
}

// Check returns why a detection will never be accepted, or a *TemporaryError if that is unknown now, and completes its
// pod from the API server. from is the node that sent it, "" for another source.
func (i *Ingester) Check(ctx context.Context, d *sensors.Detection, from string) error {
	err := i.checkDetection(ctx, d, from)
	var later *TemporaryError
	switch {
	case errors.As(err, &later):
		i.CountDetection(*d, DetectionDeferred)
	case err != nil:
		i.CountDetection(*d, DetectionRefused)
	}
	return err
}

func (i *Ingester) checkDetection(ctx context.Context, d *sensors.Detection, from string) error {
	if d.ManualRequest != nil || d.Rule == sensors.RuleManualRequest || d.Objective == sensors.ObjectiveManualRequest ||
		d.Event.Kind == sensors.KindManualRequest || strings.HasPrefix(d.Event.Actor, sensors.ActorPersonPrefix) {
		return errors.New("invalid detection: only a person can make a manual request, not a sensor")
	}
	if from == "" {
		i.dropUnverifiablePod(d)
	}
	if err := checkNames(*d); err != nil {
		return err
	}
	switch {
	case d.ID == "" || len(d.ID) > 200:
		return errors.New("invalid detection: its id is missing or too long")
	case d.Rule == "" || len(d.Rule) > 200 || d.Title == "" || len(d.Title) > 500:
		return errors.New("invalid detection: its rule or its title is missing or too long")
	case d.Severity.Rank() < 0:
		return fmt.Errorf("invalid detection: unknown severity %q", truncate.Name(string(d.Severity)))
	case d.Confidence < 0 || d.Confidence > 1:
		return fmt.Errorf("invalid detection: confidence %v; use 0 to 1", d.Confidence)
	case len(d.Objective) == 0 || len(d.Objective) > 64:
		return errors.New("invalid detection: its objective is missing or too long")
	case d.Time.After(time.Now().Add(maxClockAhead)):
		return fmt.Errorf("invalid detection: its time %s is in the future; correct the node's clock",
			d.Time.Format(time.RFC3339))
	case len(d.Event.Actor) > maxActorBytes:
		return fmt.Errorf("invalid detection: its actor is %d bytes; the maximum is %d", len(d.Event.Actor),
			maxActorBytes)
	case d.Event.Actor != "" && from != "":
		return errors.New("invalid detection: it has an actor, which is not allowed from a node")
	case d.Event.Subject != (sensors.Subject{}) && from != "":
		return errors.New("invalid detection: it has a subject other than a container, which is not allowed from a node")
	}
	if !d.TargetConfirmed { // otherwise the look-up was only for its subject
		if err := i.verifyPodIdentity(ctx, d, from); err != nil {
			return err
		}
	}
	if !incident.HasContainer(*d) && (from != "" || d.Event.Subject.Kind == "" || d.Event.Subject.Name == "") {
		return errors.New("invalid detection: it has neither a container nor a pod")
	}
	return nil
}

// RedactDetection redacts detections of other sensors as the node redacts its own.
func RedactDetection(d *sensors.Detection) {
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
