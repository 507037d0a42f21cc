// Package ingest is the one way of a detection into an incident: check, complete from the API server, attest, send to
// Temporal in batches.
//
// It refuses a node's detection about a pod that does not run on the node, believes no sender what the API server knows
// better, and authenticates no sender; its callers do.
package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/client"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/drills"
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
	// Persist makes durable what Temporal has, before anything is acknowledged. Nil means that Temporal's own
	// acknowledgment survives a power loss.
	Persist func() error
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

// ScopeOfDetection returns the scope of a detection's target, and the drill that registered it; nil outside of drills.
func (i *Ingester) ScopeOfDetection(d sensors.Detection) (name string, phase int,
	drill *attestation.DrillRegistration,
) {
	if drill := i.DrillRegistry.RegistrationFor(d, incident.TargetOfDetection(d).ID()); drill != nil {
		return config.DrillScope, i.DrillRegistry.CurrentPhase(), drill
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
