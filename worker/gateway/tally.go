package gateway

import (
	"cmp"
	"slices"
	"sync"

	"stanch/sensors"
	"stanch/worker/config"
)

// Outcome is what became of a detection at the gateway.
type Outcome string

// What becomes of a detection.
const (
	OutcomeAccepted Outcome = "accepted" // Temporal has it
	OutcomeRefused  Outcome = "refused"  // it will never be taken
	OutcomeLater    Outcome = "later"    // it was not taken now: its sender keeps it and sends it again
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
	Outcome  Outcome
}

// DetectionCount is how many came of a kind since the start.
type DetectionCount struct {
	DetectionKind
	N uint64
}

type tally struct {
	mu sync.Mutex
	by map[DetectionKind]uint64
}

func (i *Intake) count(d sensors.Detection, o Outcome) {
	kind := DetectionKind{Source: d.Source, Severity: d.Severity, Outcome: o}
	if kind.Source != SourceStanch && (i.Config == nil || !slices.ContainsFunc(i.Config.Foreign, func(f config.Foreign) bool { return f.Name == d.Source })) {
		kind.Source = otherSource
	}
	if kind.Severity.Rank() < 0 {
		kind.Severity = unknownSeverity
	}
	t := &i.counts
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[DetectionKind]uint64{}
	}
	t.by[kind]++
}

// Counts tells what became of the detections since the start.
func (i *Intake) Counts() []DetectionCount {
	t := &i.counts
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []DetectionCount
	for kind, n := range t.by {
		out = append(out, DetectionCount{DetectionKind: kind, N: n})
	}
	slices.SortFunc(out, func(a, b DetectionCount) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Outcome, b.Outcome))
	})
	return out
}

// Queued is how many detections wait for Temporal.
func (i *Intake) Queued() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.queued
}
