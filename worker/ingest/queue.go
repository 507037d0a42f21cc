package ingest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/codes"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/truncate"
	"stanch/workflows"
	"stanch/workflows/incident"
)

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
	if i.Persist != nil {
		if err := i.Persist(); err != nil {
			return &TemporaryError{fmt.Errorf("make %d detections of incident %s durable: %w", len(batch), key, err)}
		}
	}
	return nil
}

func (i *Ingester) hitFailpoint(point string) {
	if i.Failpoint != nil {
		i.Failpoint(point)
	}
}
