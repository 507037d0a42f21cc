// Package health watches the watchers: it makes detections of what is wrong with the telemetry itself, so that a sensor
// that fell silent, lost events or lies about the time is an incident and not a gap that nobody sees.
//
// It refuses to judge by one replica's view alone: a node that dialled another gateway is not lost. It corrects nothing:
// times and counts stay as they were told. What one condition makes of it is one incident for its node, counted, which
// stays open for as long as the condition lasts and closes after it.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"stanch/sensors"
	"stanch/worker/gateway"
)

// Timing says when something is too long. The zero value means the defaults.
type Timing struct {
	CheckInterval time.Duration // how often it is looked; default 5 s
	LostAfter     time.Duration // how long a node may be away that vanished; default 60 s
	// StoppedAfter is how long a node may be away that said goodbye and should run: an upgrade takes its time. Default 5 min.
	StoppedAfter time.Duration
	MaxClockSkew time.Duration // how far apart clocks may be; default 5 s
	// OverRateAfter is for how long a node may send more than its rate; default 30 s.
	OverRateAfter time.Duration
	// RepeatInterval is how often a condition that lasts is told again, so that its incident stays open; default 5 min.
	RepeatInterval time.Duration
	// CertificateWarning is how long before its end a certificate should have been renewed; default 14 days.
	CertificateWarning time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{
		{&t.CheckInterval, 5 * time.Second},
		{&t.LostAfter, time.Minute},
		{&t.StoppedAfter, 5 * time.Minute},
		{&t.MaxClockSkew, 5 * time.Second},
		{&t.OverRateAfter, 30 * time.Second},
		{&t.RepeatInterval, 5 * time.Minute},
		{&t.CertificateWarning, 14 * 24 * time.Hour},
	} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
	}
	return t
}

// Ingester is where detections go: gateway.Ingester.
type Ingester interface {
	// Check returns why a detection will never be accepted, and completes its pod; from is the node whose word it is.
	Check(ctx context.Context, d *sensors.Detection, from string) error
	Accept(ctx context.Context, detections []sensors.Detection) error
}

// ClusterNodes tells which nodes should be watched. Without a cluster only nodes that were here are missed.
type ClusterNodes interface {
	// ExpectedNodes are the nodes on which a sensor should run, by name.
	ExpectedNodes(ctx context.Context) (map[string]NodeExpectation, error)
}

// ReplicaChecker tells whether another replica of the gateway holds a node's stream.
type ReplicaChecker interface {
	ServesNode(ctx context.Context, node string) (bool, error)
}

// CertificateAuthority tells when the installation's own certificate ends.
type CertificateAuthority interface {
	ExpiresAt() time.Time
}

// Options are the parts of a monitor. Only Intake is required.
type Options struct {
	Ingester             Ingester
	ClusterNodes         ClusterNodes
	ReplicaChecker       ReplicaChecker
	CertificateAuthority CertificateAuthority
	// NodeRegistry is used with a Cluster only.
	NodeRegistry NodeRegistry
	// StateFile remembers which nodes were here, over restarts; "" forgets them.
	StateFile string
	Timing    Timing
	Log       *slog.Logger
	// Now is the clock; nil is the machine's.
	Now func() time.Time
}

// Monitor makes detections of what it is told and of what it misses.
type Monitor struct {
	Options
	startedAt time.Time

	// Of the Memory; only Look uses them.
	registryNodes   map[string]time.Time // what it says
	registryReadAt  time.Time            // when it was asked last
	registryRetryAt time.Time            // until when it is not tried again to change it

	mu                sync.Mutex
	nodes             map[string]*nodeState
	sources           map[string]*sourceActivity
	repeatAfter       map[string]time.Time // until when a condition that was told is not told again, by its key
	pendingReports    []pendingReport
	pendingByReporter map[string]int // how many reports of whose words wait or are on their way
	droppedByNode     map[string]int // how many of a node's were given up since that was told
	droppedOwnReports int            // how many of the gateway's own had no room since the last look
}

var _ gateway.NodeMonitor = (*Monitor)(nil)

// pendingReport is a detection on its way, and whose word it is: "" is the gateway's own.
type pendingReport struct {
	detection  sensors.Detection
	sourceNode string
	reporter   string // under which it is counted in Monitor.pendingByReporter
}

// The bounds of what a monitor remembers. What nodes and other sensors say has less room than what the gateway itself
// notices, and each of them a room of its own: one that tells of a thousand gaps must not hide another's.
const (
	maxNodes              = 20_000
	maxPendingReports     = 2000
	maxPendingPerReporter = 40
	maxRepeatEntries      = 50_000
)

// NewMonitor makes a monitor. Run lets it look and report.
func NewMonitor(o Options) *Monitor {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Timing = o.Timing.withDefaults()
	m := &Monitor{Options: o, startedAt: o.Now(), nodes: map[string]*nodeState{}, sources: map[string]*sourceActivity{}, repeatAfter: map[string]time.Time{}, pendingByReporter: map[string]int{}, droppedByNode: map[string]int{}}
	if err := m.loadNodeRecords(); err != nil {
		o.Log.Warn("which nodes were here before is not known", "error", err)
	}
	return m
}

// Run looks and reports until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(m.Timing.CheckInterval)
	defer tick.Stop()
	for {
		m.CheckOnce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// CheckOnce looks once at everything, and reports what waits.
func (m *Monitor) CheckOnce(ctx context.Context) {
	m.reportMissingNodes(ctx)
	m.reportExpiringCertificates()
	m.reportSilentSources()
	m.reportOverflow()
	m.deliverReports(ctx)
}

// reportCondition makes a condition a detection, unless it was told a moment ago; then it is false.
func (m *Monitor) reportCondition(c telemetryCondition) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.Now()
	again := c.kind.repeatInterval
	if again == 0 || again <= time.Minute && m.Timing.RepeatInterval < again {
		again = m.Timing.RepeatInterval
	}
	key := c.dedupKey()
	if until, ok := m.repeatAfter[key]; ok && now.Before(until) {
		return false
	}
	if !m.hasCapacity(c, now) {
		return false // and not remembered as told: it is tried again
	}
	m.Log.Warn("the telemetry has a gap", "kind", c.kind.ruleName, "subject", c.subject.Name, "reasons", c.reasons)
	m.pendingByReporter[c.reporter()]++
	m.pendingReports = append(m.pendingReports, pendingReport{c.toDetection(now, again), c.sourceNode, c.reporter()})
	m.repeatAfter[key] = now.Add(again)
	return true
}

// hasCapacity tells whether a condition may wait with the others. The caller holds m.mu.
func (m *Monitor) hasCapacity(c telemetryCondition, now time.Time) bool {
	if len(m.repeatAfter) >= maxRepeatEntries {
		maps.DeleteFunc(m.repeatAfter, func(_ string, until time.Time) bool { return !now.Before(until) })
	}
	if c.causedBy == "" {
		if m.pendingByReporter[""] >= maxPendingReports {
			m.droppedOwnReports++
			return false
		}
		return true
	}
	full := m.pendingByReporter[c.reporter()] >= maxPendingPerReporter || len(m.repeatAfter) >= maxRepeatEntries
	if c.sourceNode != "" && !full {
		full = !m.nodeByName(c.sourceNode).blameLimiter.AllowN(now, 1)
	}
	if full && c.node != "" {
		m.droppedByNode[c.node]++
	}
	return !full
}

// reportOverflow tells which nodes told of more gaps than they have room for.
func (m *Monitor) reportOverflow() {
	m.mu.Lock()
	lost, late := maps.Clone(m.droppedByNode), m.droppedOwnReports
	m.droppedOwnReports = 0
	m.mu.Unlock()
	if late > 0 {
		m.Log.Warn("there are more gaps in the telemetry than can be reported now; the others are tried again", "others", late)
	}
	for _, name := range slices.Sorted(maps.Keys(lost)) {
		// The gateway's own word, so that it has room; there is one for each node.
		if m.reportCondition(telemetryCondition{kind: nodeOverRate, subject: newNodeSubject(name), node: name, count: lost[name], reasons: []string{
			fmt.Sprintf("Node %s told of more gaps in its telemetry than a node may: %d of them were left out.", name, lost[name]),
		}}) {
			m.mu.Lock()
			delete(m.droppedByNode, name)
			m.mu.Unlock()
		}
	}
}

// markResolved forgets that a condition was told: when it comes back it is told at once.
func (m *Monitor) markResolved(k conditionKind, subject sensors.Subject) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.repeatAfter, telemetryCondition{kind: k, subject: subject}.dedupKey())
}

// deliverReports gives what waits to its incidents, the gateway's own words first. What Temporal does not take now waits on.
func (m *Monitor) deliverReports(ctx context.Context) {
	m.mu.Lock()
	waiting := m.pendingReports
	m.pendingReports = nil
	m.mu.Unlock()
	slices.SortStableFunc(waiting, func(a, b pendingReport) int {
		switch {
		case a.reporter == "" && b.reporter != "":
			return -1
		case b.reporter == "" && a.reporter != "":
			return 1
		}
		return 0
	})
	for n, r := range waiting {
		err := m.Ingester.Check(ctx, &r.detection, r.sourceNode)
		if err == nil {
			limited, cancel := context.WithTimeout(ctx, 25*time.Second)
			err = m.Ingester.Accept(limited, []sensors.Detection{r.detection})
			cancel()
			if err != nil {
				m.Log.Warn("a gap in the telemetry cannot be reported now", "detection", r.detection.ID, "error", err)
				m.mu.Lock()
				m.pendingReports = append(waiting[n:], m.pendingReports...)
				m.mu.Unlock()
				return
			}
			m.forgetReport(r)
			continue
		}
		if temporary := (*gateway.TemporaryError)(nil); errors.As(err, &temporary) {
			m.mu.Lock()
			m.pendingReports = append(m.pendingReports, r)
			m.mu.Unlock()
			continue
		}
		m.Log.Warn("a gap in the telemetry is not reported", "detection", r.detection.ID, "reason", err)
		m.forgetReport(r)
	}
}

// forgetReport forgets a report that waits no longer.
func (m *Monitor) forgetReport(r pendingReport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pendingByReporter[r.reporter]--; m.pendingByReporter[r.reporter] <= 0 {
		delete(m.pendingByReporter, r.reporter)
	}
}
