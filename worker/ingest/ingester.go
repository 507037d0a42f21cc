// Package ingest is the one way of a detection into an incident: check, complete from the API server, attest, send to
// Temporal in batches.
//
// It refuses a node's detection about a pod that does not run on the node, believes no sender what the API server knows
// better, and authenticates no sender; its callers do.
package ingest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/redact"
	"stanch/sensors/truncate"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/drills"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
)

// Limits of what is accepted.
const (
	maxDetectionBytes  = gatewayrpc.MaxDetectionBytes
	maxBatchDetections = 100
	// maxSignalBytes is the maximum size of a signal's detections: Temporal accepts at most two megabytes.
	maxSignalBytes      = 1 << 20
	maxQueuedDetections = 20_000
	maxClockAhead       = 2 * time.Minute
	maxActorBytes       = 2048
)

// TemporaryError means that a detection may be sent again.
type TemporaryError struct{ Err error }

// Error implements error.
func (e *TemporaryError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *TemporaryError) Unwrap() error { return e.Err }

// Ingester attests detections and sends them to their incidents in batches: a flood of detections causes few signals,
// and similar detections are counted. It is safe for concurrent use.
type Ingester struct {
	Temporal    client.Client
	Authority   *authority.Authority
	Config      *config.Config
	Kube        kubernetes.Interface // nil without a cluster
	LeaseTiming lease.Timing
	Log         *slog.Logger
	// DrillRegistry contains the registered targets of drills. With nil, nothing is in a drill's scope.
	DrillRegistry *drills.Registry
	// ChatEnabled means that incidents have a chat message.
	ChatEnabled bool
	// IncidentWorkflow is the workflow function.
	IncidentWorkflow any
	// OnAccepted is called for every detection that Temporal has accepted. It must not block. Nil does nothing.
	OnAccepted func(sensors.Detection)
	// Tracer traces accepted detections. Nil disables tracing.
	Tracer trace.Tracer
	// Failpoint is called at named points, so that tests can kill the process there. Nil does nothing.
	Failpoint func(point string)

	mu               sync.Mutex
	queuesByIncident map[string]*incidentQueue
	queuedCount      int
	counters         detectionCounters
	podCache         podCache
}

// incidentQueue contains the detections of one incident that wait for Temporal.
type incidentQueue struct {
	waiting  []*queuedDetection
	draining bool
}

type queuedDetection struct {
	detection     sensors.Detection
	manualRequest *attestation.ManualRequest // a person's request; nil for a detection
	sizeBytes     int
	results       []chan error
	receivedAt    time.Time
}

// countFittingSignal returns how many waiting detections fit into one signal: at least one.
func countFittingSignal(waiting []*queuedDetection) int {
	size := 0
	for n, it := range waiting[:min(len(waiting), maxBatchDetections)] {
		if size += it.sizeBytes; size > maxSignalBytes && n > 0 {
			return n
		}
	}
	return min(len(waiting), maxBatchDetections)
}

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

// Accept sends detections to their incidents, and returns when Temporal has all of them.
func (i *Ingester) Accept(ctx context.Context, detections []sensors.Detection) error {
	var waits []chan error
	for _, d := range detections {
		d.ManualRequest = nil
		wait, err := i.enqueue(d, nil)
		if err != nil {
			i.CountDetection(d, DetectionDeferred)
			return err
		}
		waits = append(waits, wait)
	}
	for n, wait := range waits {
		select {
		case err := <-wait:
			if err != nil {
				i.CountDetection(detections[n], DetectionDeferred)
				return err
			}
			i.CountDetection(detections[n], DetectionAccepted)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if i.OnAccepted != nil {
		for _, d := range detections {
			i.OnAccepted(d)
		}
	}
	return nil
}

// GroupingKey returns the grouping key of a detection: one incident for each workload. A detection whose pod or
// container only the sender claims is grouped with those of the same node only, so that one node's reports never affect
// how another's about the same target are handled.
func (i *Ingester) GroupingKey(d sensors.Detection) string {
	key := i.Config.Cluster + "/" + incident.WorkloadOfDetection(d).String()
	if incident.HasContainer(d) && !d.TargetConfirmed && d.Node != "" {
		key += "@" + d.Node
	}
	return key
}

// IngestManualRequest sends a person's request to the incident of its target, with its attestation.
func (i *Ingester) IngestManualRequest(ctx context.Context, d sensors.Detection,
	requested *attestation.ManualRequest,
) error {
	wait, err := i.enqueue(d, requested)
	if err != nil {
		return err
	}
	select {
	case err := <-wait:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *Ingester) enqueue(d sensors.Detection, requested *attestation.ManualRequest) (chan error, error) {
	key, wait := i.GroupingKey(d), make(chan error, 1)
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode detection %s: %w", truncate.Name(d.ID), err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.queuesByIncident == nil {
		i.queuesByIncident = map[string]*incidentQueue{}
	}
	q := i.queuesByIncident[key]
	if q == nil {
		q = &incidentQueue{}
		i.queuesByIncident[key] = q
	}
	// Similar detections that still wait are counted: ten thousand in a second cost one signal.
	for _, w := range q.waiting {
		if requested == nil && w.manualRequest == nil && isSameDetection(w.detection, d) {
			if w.detection.ID != d.ID {
				w.detection.Count = max(w.detection.Count, 1) + max(d.Count, 1)
			}
			w.results = append(w.results, wait)
			return wait, nil
		}
	}
	if i.queuedCount >= maxQueuedDetections {
		return nil, &TemporaryError{fmt.Errorf("%d detections are waiting for Temporal; send it again later", i.queuedCount)}
	}
	q.waiting = append(q.waiting, &queuedDetection{
		detection: d, manualRequest: requested, sizeBytes: len(raw),
		results: []chan error{wait}, receivedAt: time.Now(),
	})
	i.queuedCount++
	if !q.draining {
		q.draining = true
		go i.drainQueue(key, q)
	}
	return wait, nil
}

func isSameDetection(a, b sensors.Detection) bool {
	return a.Rule == b.Rule && a.Source == b.Source && a.Event.Container.ID == b.Event.Container.ID &&
		a.Event.Container.Pod.UID == b.Event.Container.Pod.UID &&
		a.Event.Actor == b.Event.Actor && a.Event.Subject == b.Event.Subject && a.Event.Kind == b.Event.Kind &&
		a.Event.Syscall == b.Event.Syscall && a.Event.Process.Exe == b.Event.Process.Exe &&
		a.Event.Network == b.Event.Network && a.Event.File == b.Event.File && slices.Equal(a.Event.Process.Args,
		b.Event.Process.Args)
}

// drainQueue sends an incident its waiting detections until there are none.
func (i *Ingester) drainQueue(key string, q *incidentQueue) {
	for {
		i.mu.Lock()
		n := countFittingSignal(q.waiting)
		if n == 0 {
			q.draining = false
			delete(i.queuesByIncident, key)
			i.mu.Unlock()
			return
		}
		batch := q.waiting[:n]
		q.waiting = slices.Clone(q.waiting[n:])
		i.queuedCount -= n
		i.mu.Unlock()
		err := i.signalIncident(key, batch)
		for _, it := range batch {
			for _, done := range it.results {
				done <- err
			}
		}
	}
}

// signalIncident starts or signals the incident with attested detections.
func (i *Ingester) signalIncident(key string, batch []*queuedDetection) error {
	now := time.Now()
	first := batch[0].detection
	scope, phase, drill := i.ScopeOfDetection(first)
	inDrill := drill != nil
	attested := make([]incident.AttestedDetection, 0, len(batch))
	for _, it := range batch {
		d := it.detection
		d.Reasons = d.Reasons[:min(len(d.Reasons), 10)]
		signed, err := i.SignAttestation(d, now, it.manualRequest)
		if err != nil {
			return err
		}
		attested = append(attested, incident.AttestedDetection{Detection: d, Attestation: signed})
	}
	i.hitFailpoint("intake/attested")
	id := "INC-" + ulid.MustNew(ulid.Timestamp(now), rand.Reader).String()
	in := incident.Input{
		ID: id, GroupingKey: key, Cluster: i.Config.Cluster, Scope: scope, Phase: phase, Drill: inDrill,
		IdleTimeout: time.Duration(i.Config.IdleTimeout), LeaseTiming: i.LeaseTiming, ChatEnabled: i.ChatEnabled,
		ConfigHash: i.Config.Hash(),
	}
	if inDrill {
		in.IdleTimeout = 30 * time.Second
	}
	options := client.StartWorkflowOptions{
		ID:                    workflows.IncidentWorkflowID(key),
		TaskQueue:             workflows.TaskQueue,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword(workflows.IncidentSearchAttribute).ValueSet(id),
		),
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ctx, span := i.startBatchSpan(ctx, batch)
	defer span.End()
	if _, err := i.Temporal.SignalWithStartWorkflow(ctx, workflows.IncidentWorkflowID(key), workflows.SignalDetections,
		attested, options, i.IncidentWorkflow, in); err != nil {
		span.SetStatus(codes.Error, "")
		return &TemporaryError{fmt.Errorf("send %d detections to incident %s: %w", len(batch), key, err)}
	}
	i.hitFailpoint("intake/given")
	return nil
}

// SignAttestation signs that a detection was accepted or, with requested, that a person requested something.
func (i *Ingester) SignAttestation(d sensors.Detection, now time.Time,
	requested *attestation.ManualRequest,
) (attestation.Envelope, error) {
	scope, _, drill := i.ScopeOfDetection(d)
	signed, err := i.Authority.Sign(attestation.PayloadTypeAttestation, incident.NewAttestation(d, incident.Acceptance{
		Scope: scope, Drill: drill, ManualRequest: requested, TargetConfirmed: d.TargetConfirmed, At: now,
	}))
	if err != nil {
		return signed, fmt.Errorf("attest detection %s: %w", d.ID, err)
	}
	return signed, nil
}

func (i *Ingester) hitFailpoint(point string) {
	if i.Failpoint != nil {
		i.Failpoint(point)
	}
}

// ScopeOfDetection returns the scope of a detection's target, and the drill that registered it; nil outside of drills.
func (i *Ingester) ScopeOfDetection(d sensors.Detection) (name string, phase int,
	drill *attestation.DrillRegistration,
) {
	if drill := i.DrillRegistry.RegistrationFor(d, incident.TargetOfDetection(d).ID()); drill != nil {
		return config.DrillScope, 3, drill
	}
	s := i.Config.ScopeForNamespace(d.Event.Container.Pod.Namespace)
	return s.Name, s.Phase, nil
}

// maxChunkBytes is the maximum size of what AcceptChunks sends to Temporal at once, in bytes as received.
const maxChunkBytes = 512 << 10

// AcceptChunks sends detections to their incidents in chunks, because the size of a signal is limited. sizes are the
// bytes of each as received; nil takes an equal share of a chunk for each.
func (i *Ingester) AcceptChunks(ctx context.Context, detections []sensors.Detection, sizes []int) error {
	size := func(n int) int {
		if sizes == nil {
			return maxChunkBytes / maxBatchDetections
		}
		return sizes[n]
	}
	for from := 0; from < len(detections); {
		to, bytes := from, 0
		for to < len(detections) && to-from < maxBatchDetections && (to == from || bytes+size(to) <= maxChunkBytes) {
			bytes += size(to)
			to++
		}
		if err := i.Accept(ctx, detections[from:to]); err != nil {
			return err
		}
		from = to
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
