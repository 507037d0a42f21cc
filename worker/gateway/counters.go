package gateway

import (
	"cmp"
	"slices"
	"sync"

	"stanch/sensors"
	"stanch/worker/config"
)

// DetectionOutcome is what became of a detection at the gateway.
type DetectionOutcome string

// What becomes of a detection.
const (
	DetectionAccepted DetectionOutcome = "accepted" // Temporal has it
	DetectionRefused  DetectionOutcome = "refused"  // it will never be taken
	DetectionDeferred DetectionOutcome = "later"    // it was not taken now: its sender keeps it and sends it again
)

// SourceStanch is the source of what Stanch's own sensor and its health monitor detect.
const SourceStanch = "stanch"

// otherSource stands for every source that the configuration does not name: what a sender wrote makes no new one.
const otherSource = "other"

// unknownSeverity stands for every severity that there is not.
const unknownSeverity sensors.Severity = "unknown"

// DetectionKind is what detections are told apart by when they are counted.
type DetectionKind struct {
	Source   string
	Severity sensors.Severity
	Outcome  DetectionOutcome
}

// DetectionCount is how many came of a kind since the start.
type DetectionCount struct {
	DetectionKind
	Count uint64
}

type detectionCounters struct {
	mu     sync.Mutex
	byKind map[DetectionKind]uint64
}

func (i *Ingester) countDetection(d sensors.Detection, o DetectionOutcome) {
	kind := DetectionKind{Source: d.Source, Severity: d.Severity, Outcome: o}
	if kind.Source != SourceStanch && (i.Config == nil || !slices.ContainsFunc(i.Config.Sources, func(f config.Source) bool { return f.Name == d.Source })) {
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

// DetectionCounts tells what became of the detections since the start.
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

// QueuedDetections is how many detections wait for Temporal.
func (i *Ingester) QueuedDetections() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.queuedCount
}
