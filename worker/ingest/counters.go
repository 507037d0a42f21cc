package ingest

import (
	"cmp"
	"slices"
	"sync"

	"stanch/sensors"
	"stanch/worker/config"
)

// DetectionOutcome is the result of a detection at the gateway.
type DetectionOutcome string

// The results of a detection.
const (
	DetectionAccepted DetectionOutcome = "accepted" // Temporal has it
	DetectionRefused  DetectionOutcome = "refused"  // it will never be accepted
	DetectionDeferred DetectionOutcome = "later"    // not accepted now: the sender keeps it and sends it again
)

// SourceStanch is the source of detections by Stanch's own sensor and health monitor.
const SourceStanch = "stanch"

// otherSource replaces every source that the configuration does not name, so that senders cannot create counters.
const otherSource = "other"

// unknownSeverity replaces every unknown severity.
const unknownSeverity sensors.Severity = "unknown"

// DetectionKind is the key of the counters.
type DetectionKind struct {
	Source   string
	Severity sensors.Severity
	Outcome  DetectionOutcome
}

// DetectionCount is the number of detections of a kind since the start.
type DetectionCount struct {
	DetectionKind
	Count uint64
}

type detectionCounters struct {
	mu     sync.Mutex
	byKind map[DetectionKind]uint64
}

// CountDetection counts a detection whose outcome the caller decided.
func (i *Ingester) CountDetection(d sensors.Detection, o DetectionOutcome) {
	kind := DetectionKind{Source: d.Source, Severity: d.Severity, Outcome: o}
	if kind.Source != SourceStanch && (i.Config == nil || !slices.ContainsFunc(i.Config.Sources,
		func(f config.Source) bool { return f.Name == d.Source })) {
		kind.Source = otherSource
	}
	if kind.Severity.Rank() < 0 {
		kind.Severity = unknownSeverity
	}
	t := &i.counters
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKind == nil {
		t.byKind = map[DetectionKind]uint64{}
	}
	t.byKind[kind]++
}

// DetectionCounts returns the number of detections since the start, by kind and outcome.
func (i *Ingester) DetectionCounts() []DetectionCount {
	t := &i.counters
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []DetectionCount
	for kind, n := range t.byKind {
		out = append(out, DetectionCount{DetectionKind: kind, Count: n})
	}
	slices.SortFunc(out, func(a, b DetectionCount) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Outcome, b.Outcome))
	})
	return out
}

// QueuedDetections returns the number of detections that wait for Temporal.
func (i *Ingester) QueuedDetections() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.queuedCount
}
