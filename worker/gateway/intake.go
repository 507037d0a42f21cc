package gateway

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
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/attestation"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
)

// Bounds of what is accepted.
const (
	maxDetection = gatewayrpc.MaxDetectionBytes
	maxBatch     = 100
	// maxSignal bounds what one signal brings, in bytes of its detections: Temporal takes two megabytes, and never one more.
	maxSignal = 1 << 20
	maxQueue  = 20_000
	maxFuture = 2 * time.Minute
	maxActor  = 2048
)

// TemporaryError says that a detection may be sent again.
type TemporaryError struct{ Err error }

func (e *TemporaryError) Error() string { return e.Err.Error() }
func (e *TemporaryError) Unwrap() error { return e.Err }

// Intake attests detections and gives them to their incidents, in batches: however many arrive in a second, an
// incident gets few signals, and what is alike is counted.
type Intake struct {
	Temporal  client.Client
	Authority *authority.Authority
	Config    *config.Config
	Kube      kubernetes.Interface // nil without a cluster
	Timing    lease.Timing
	Log       *slog.Logger
	// Drills are the registered targets of drills. Nil: nothing is in a drill's scope.
	Drills *Drills
	// Thread: incidents are shown in a chat.
	Thread bool
	// Incident is the workflow function.
	Incident any
	// Exported is told every detection that Temporal has. It must not wait. Nil does nothing.
	Exported func(sensors.Detection)
	// Tracer tells of what is accepted. Nil tells nobody.
	Tracer trace.Tracer
	// At is called at named points, so that tests can kill the process there. Nil does nothing.
	At func(point string)

	mu     sync.Mutex
	queues map[string]*queue
	queued int
	counts tally
	pods   podCache
}

// queue is the detections of one incident that wait for Temporal.
type queue struct {
	waiting []*item
	running bool
}

type item struct {
	detection sensors.Detection
	requested *attestation.ManualRequest // what a person asked for; nil of what was detected
	size      int
	done      []chan error
	came      time.Time
}

// fits is how many of what waits go into one signal: at least one.
func fits(waiting []*item) int {
	size := 0
	for n, it := range waiting[:min(len(waiting), maxBatch)] {
		if size += it.size; size > maxSignal && n > 0 {
			return n
		}
	}
	return min(len(waiting), maxBatch)
}

// DecodeDetection reads one detection strictly: what is too large or not of the shape is refused.
func DecodeDetection(raw []byte) (sensors.Detection, error) {
	var d sensors.Detection
	if len(raw) > maxDetection {
		return d, fmt.Errorf("the detection has %d bytes, at most %d are accepted", len(raw), maxDetection)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return d, fmt.Errorf("the detection cannot be read: %w", err)
	}
	return d, nil
}

// Check returns why a detection will never be accepted, or a *TemporaryError if it cannot be told now, and completes its
// pod from the API server. from is the node that sent it, "" for another source.
func (i *Intake) Check(ctx context.Context, d *sensors.Detection, from string) error {
	err := i.check(ctx, d, from)
	var later *TemporaryError
	switch {
	case errors.As(err, &later):
		i.count(*d, OutcomeLater)
	case err != nil:
		i.count(*d, OutcomeRefused)
	}
	return err
}

func (i *Intake) check(ctx context.Context, d *sensors.Detection, from string) error {
	if d.ManualRequest != nil || d.Rule == sensors.RuleManualRequest || d.Objective == sensors.ObjectiveManualRequest || d.Event.Kind == sensors.KindManualRequest || strings.HasPrefix(d.Event.Actor, sensors.ActorPersonPrefix) {
		return errors.New("it is a person's request, which no sensor makes")
	}
	if from == "" {
		i.label(d)
	}
	if err := checkNames(*d); err != nil {
		return err
	}
	switch {
	case d.ID == "" || len(d.ID) > 200:
		return errors.New("it has no id, or one that is too long")
	case d.Rule == "" || len(d.Rule) > 200 || d.Title == "" || len(d.Title) > 500:
		return errors.New("it has no rule or no title, or one that is too long")
	case d.Severity.Rank() < 0:
		return fmt.Errorf("the severity %q is unknown", clip(string(d.Severity)))
	case d.Confidence < 0 || d.Confidence > 1:
		return fmt.Errorf("the confidence %v is not from 0 to 1", d.Confidence)
	case len(d.Objective) == 0 || len(d.Objective) > 64:
		return errors.New("it has no objective")
	case d.Time.After(time.Now().Add(maxFuture)):
		return fmt.Errorf("its time %s lies in the future; set the node's clock", d.Time.Format(time.RFC3339))
	case len(d.Event.Actor) > maxActor:
		return fmt.Errorf("its actor has %d bytes, at most %d are accepted", len(d.Event.Actor), maxActor)
	case d.Event.Actor != "" && from != "":
		return errors.New("it names an actor, which a node does not know")
	case d.Event.Subject != (sensors.Subject{}) && from != "":
		return errors.New("it is about something that is not the node's to tell of")
	}
	if !d.TargetConfirmed { // else it was looked up to find out what it is about
		if err := i.identify(ctx, d, from); err != nil {
			return err
		}
	}
	if !incident.HasContainer(*d) && (from != "" || d.Event.Subject.Kind == "" || d.Event.Subject.Name == "") {
		return errors.New("it names neither a container nor a pod")
	}
	return nil
}

// Accept gives detections to their incidents and returns when Temporal has all of them.
func (i *Intake) Accept(ctx context.Context, detections []sensors.Detection) error {
	var waits []chan error
	for _, d := range detections {
		d.ManualRequest = nil
		wait, err := i.enqueue(d, nil)
		if err != nil {
			i.count(d, OutcomeLater)
			return err
		}
		waits = append(waits, wait)
	}
	for n, wait := range waits {
		select {
		case err := <-wait:
			if err != nil {
				i.count(detections[n], OutcomeLater)
				return err
			}
			i.count(detections[n], OutcomeAccepted)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if i.Exported != nil {
		for _, d := range detections {
			i.Exported(d)
		}
	}
	return nil
}

// Key is the grouping key of a detection: one incident for each workload. Whose pod or container it is may be a sender's
// word alone. Such a detection groups with those of the same node only: what one node says must never stand in the way of
// what another's says of the same target.
func (i *Intake) Key(d sensors.Detection) string {
	key := i.Config.Cluster + "/" + incident.WorkloadOfDetection(d).String()
	if incident.HasContainer(d) && !d.TargetConfirmed && d.Node != "" {
		key += "@" + d.Node
	}
	return key
}

// request gives a person's request to the incident of its target, attested as what it is.
func (i *Intake) request(ctx context.Context, d sensors.Detection, requested *attestation.ManualRequest) error {
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

func (i *Intake) enqueue(d sensors.Detection, requested *attestation.ManualRequest) (chan error, error) {
	key, wait := i.Key(d), make(chan error, 1)
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode detection %s: %w", clip(d.ID), err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.queues == nil {
		i.queues = map[string]*queue{}
	}
	q := i.queues[key]
	if q == nil {
		q = &queue{}
		i.queues[key] = q
	}
	// What is alike and still waits is counted: ten thousand in a second cost one signal.
	for _, w := range q.waiting {
		if requested == nil && w.requested == nil && alike(w.detection, d) {
			if w.detection.ID != d.ID {
				w.detection.Count = max(w.detection.Count, 1) + max(d.Count, 1)
			}
			w.done = append(w.done, wait)
			return wait, nil
		}
	}
	if i.queued >= maxQueue {
		return nil, &TemporaryError{fmt.Errorf("%d detections wait for Temporal: send it again later", i.queued)}
	}
	q.waiting = append(q.waiting, &item{detection: d, requested: requested, size: len(raw), done: []chan error{wait}, came: time.Now()})
	i.queued++
	if !q.running {
		q.running = true
		go i.drain(key, q)
	}
	return wait, nil
}

func alike(a, b sensors.Detection) bool {
	return a.Rule == b.Rule && a.Source == b.Source && a.Event.Container.ID == b.Event.Container.ID && a.Event.Container.Pod.UID == b.Event.Container.Pod.UID &&
		a.Event.Actor == b.Event.Actor && a.Event.Subject == b.Event.Subject && a.Event.Kind == b.Event.Kind && a.Event.Syscall == b.Event.Syscall && a.Event.Process.Exe == b.Event.Process.Exe && a.Event.Network == b.Event.Network && a.Event.File == b.Event.File && slices.Equal(a.Event.Process.Args, b.Event.Process.Args)
}

// drain gives an incident what waits for it until nothing does.
func (i *Intake) drain(key string, q *queue) {
	for {
		i.mu.Lock()
		n := fits(q.waiting)
		if n == 0 {
			q.running = false
			delete(i.queues, key)
			i.mu.Unlock()
			return
		}
		batch := q.waiting[:n]
		q.waiting = slices.Clone(q.waiting[n:])
		i.queued -= n
		i.mu.Unlock()
		err := i.signal(key, batch)
		for _, it := range batch {
			for _, done := range it.done {
				done <- err
			}
		}
	}
}

// signal starts or signals the incident with what is attested.
func (i *Intake) signal(key string, batch []*item) error {
	now := time.Now()
	first := batch[0].detection
	scope, phase, drill := i.scope(first)
	inDrill := drill != nil
	attested := make([]incident.AttestedDetection, 0, len(batch))
	for _, it := range batch {
		d := it.detection
		d.Reasons = d.Reasons[:min(len(d.Reasons), 10)]
		signed, err := i.attest(d, now, it.requested)
		if err != nil {
			return err
		}
		attested = append(attested, incident.AttestedDetection{Detection: d, Attestation: signed})
	}
	i.at("intake/attested")
	id := "INC-" + ulid.MustNew(ulid.Timestamp(now), rand.Reader).String()
	in := incident.Input{ID: id, GroupingKey: key, Cluster: i.Config.Cluster, Scope: scope, Phase: phase, Drill: inDrill, IdleTimeout: time.Duration(i.Config.Quiet), LeaseTiming: i.Timing, ChatEnabled: i.Thread, ConfigHash: i.Config.Hash()}
	if inDrill {
		in.IdleTimeout = 30 * time.Second
	}
	options := client.StartWorkflowOptions{
		ID: workflows.IncidentWorkflowID(key), TaskQueue: workflows.TaskQueue,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workflows.IncidentSearchAttribute).ValueSet(id)),
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ctx, span := i.traced(ctx, batch)
	defer span.End()
	if _, err := i.Temporal.SignalWithStartWorkflow(ctx, workflows.IncidentWorkflowID(key), workflows.SignalDetections, attested, options, i.Incident, in); err != nil {
		span.SetStatus(codes.Error, "")
		return &TemporaryError{fmt.Errorf("give %d detections to incident %s: %w", len(batch), key, err)}
	}
	i.at("intake/given")
	return nil
}

// attest signs that a detection was accepted or, with requested, that a person asked.
func (i *Intake) attest(d sensors.Detection, now time.Time, requested *attestation.ManualRequest) (attestation.Envelope, error) {
	scope, _, drill := i.scope(d)
	signed, err := i.Authority.Sign(attestation.PayloadTypeAttestation, attestation.Attestation{
		DetectionID: d.ID, DetectionHash: attestation.HashJSON(d), TargetID: incident.TargetOfDetection(d).ID(), Rule: d.Rule, Objective: string(d.Objective),
		Severity: string(d.Severity), Confidence: d.Confidence, Node: d.Node, Namespace: d.Event.Container.Pod.Namespace,
		Workload: incident.WorkloadOfDetection(d).String(), Scope: scope, Drill: drill, AcceptedAt: now, TargetConfirmed: d.TargetConfirmed, ManualRequest: requested,
	})
	if err != nil {
		return signed, fmt.Errorf("attest detection %s: %w", d.ID, err)
	}
	return signed, nil
}

func (i *Intake) at(point string) {
	if i.At != nil {
		i.At(point)
	}
}

// scope returns the scope of a detection's target, and the drill that registered it; nil outside of drills.
func (i *Intake) scope(d sensors.Detection) (name string, phase int, drill *attestation.DrillRegistration) {
	if drill := i.Drills.Of(d, incident.TargetOfDetection(d).ID()); drill != nil {
		return config.DrillScope, 3, drill
	}
	s := i.Config.ScopeOf(d.Event.Container.Pod.Namespace)
	return s.Name, s.Phase, nil
}

func clip(s string) string {
	if r := []rune(s); len(r) > 80 {
		return string(r[:80]) + "…"
	}
	return s
}
