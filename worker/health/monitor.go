// Package health monitors the telemetry itself: a sensor that is silent, loses events or has a wrong clock becomes an
// incident instead of an unnoticed gap.
//
// It never decides by the view of one replica only: a node that is connected to another gateway is not lost. It
// corrects nothing: times and counts stay as they were reported. Each condition is one incident of its node, which
// stays open while the condition lasts.
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
	"stanch/worker/ingest"
	"stanch/worker/nodeserver"
)

// Timing contains the time limits. The zero value means the defaults.
type Timing struct {
	CheckInterval time.Duration // time between checks; default 5 s
	LostAfter     time.Duration // limit for a node whose connection broke; default 60 s
	// StoppedAfter is the limit for a node that shut down regularly and should run, because upgrades take time. Default
	// 5 min.
	StoppedAfter time.Duration
	MaxClockSkew time.Duration // maximum difference of clocks; default 5 s
	// OverRateAfter is how long a node may exceed its rate; default 30 s.
	OverRateAfter time.Duration
	// RepeatInterval is how often a lasting condition is reported, so that its incident stays open; default 5 min.
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

// Ingester receives the detections: gateway.Ingester.
type Ingester interface {
	// Check returns why a detection will never be accepted, and completes its pod; from is the reporting node.
	Check(ctx context.Context, d *sensors.Detection, from string) error
	Accept(ctx context.Context, detections []sensors.Detection) error
}

// ClusterNodes returns the nodes that should have a sensor. Without a cluster, only nodes that were connected before
// can be missing.
type ClusterNodes interface {
	// ExpectedNodes returns the nodes that should have a sensor, by name.
	ExpectedNodes(ctx context.Context) (map[string]NodeExpectation, error)
}

// ReplicaChecker reports whether another replica of the gateway has a node's stream.
type ReplicaChecker interface {
	ServesNode(ctx context.Context, node string) (bool, error)
}

// CertificateAuthority returns the end of the installation's own certificate.
type CertificateAuthority interface {
	ExpiresAt() time.Time
}

// Options are the dependencies of a monitor. Only Ingester is required.
type Options struct {
	Ingester             Ingester
	ClusterNodes         ClusterNodes
	ReplicaChecker       ReplicaChecker
	CertificateAuthority CertificateAuthority
	// NodeRegistry is used only with ClusterNodes.
	NodeRegistry NodeRegistry
	// StateFile stores the connected nodes across restarts; "" stores nothing.
	StateFile string
	Timing    Timing
	Log       *slog.Logger
	// Now returns the current time; nil means time.Now.
	Now func() time.Time
}

// Monitor turns events and missing reports of nodes and sources into detections. It is safe for concurrent use.
type Monitor struct {
	Options
	startedAt time.Time

	// Of the NodeRegistry; only CheckOnce uses these fields.
	registryNodes   map[string]time.Time // its content
	registryReadAt  time.Time            // time of the last read
	registryRetryAt time.Time            // time of the next write attempt

	saveMu       sync.Mutex // one write of StateFile at a time
	savedChanges uint64     // the value of recordChanges that StateFile contains

	mu                sync.Mutex
	recordChanges     uint64 // counts the changes that StateFile must contain
	nodes             map[string]*nodeState
	sources           map[string]*sourceActivity
	repeatAfter       map[string]time.Time // by condition: when it may be reported again
	pendingReports    []pendingReport
	pendingByReporter map[string]int // pending reports by reporter
	droppedByNode     map[string]int // reports of a node that were dropped since the last overflow report
	droppedOwnReports int            // the gateway's own reports that were dropped since the last check
}

var _ nodeserver.Monitor = (*Monitor)(nil)

// pendingReport is a pending detection and its reporting node; "" is the gateway.
type pendingReport struct {
	detection  sensors.Detection
	sourceNode string
	reporter   string // key in Monitor.pendingByReporter
}

// Limits of a monitor. Reports of nodes and other sensors have less capacity than the gateway's own, and each reporter
// has its own: one that reports a thousand gaps must not hide another's.
const (
	maxNodes              = 20_000
	maxPendingReports     = 2000
	maxPendingPerReporter = 40
	maxRepeatEntries      = 50_000
)

// NewMonitor returns a monitor. Run starts its checks and reports.
func NewMonitor(o Options) *Monitor {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Timing = o.Timing.withDefaults()
	m := &Monitor{
		Options: o, startedAt: o.Now(), nodes: map[string]*nodeState{}, sources: map[string]*sourceActivity{},
		repeatAfter: map[string]time.Time{}, pendingByReporter: map[string]int{}, droppedByNode: map[string]int{},
	}
	if err := m.loadNodeRecords(); err != nil {
		o.Log.Warn("read the nodes that were connected before", "error", err)
	}
	return m
}

// Run checks and reports until ctx ends.
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

// CheckOnce runs all checks once, and delivers pending reports.
func (m *Monitor) CheckOnce(ctx context.Context) {
	m.reportMissingNodes(ctx)
	m.reportExpiringCertificates()
	m.reportSilentSources()
	m.reportOverflow()
	m.deliverReports(ctx)
}

// reportCondition queues a condition as a detection. It returns false if the condition was reported recently or there
// is no capacity.
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
		return false // not marked as reported, so it is retried
	}
	m.Log.Warn("telemetry gap", "kind", c.kind.ruleName, "subject", c.subject.Name, "reasons", c.reasons)
	m.pendingByReporter[c.reporter()]++
	m.pendingReports = append(m.pendingReports, pendingReport{c.toDetection(now, again), c.sourceNode, c.reporter()})
	m.repeatAfter[key] = now.Add(again)
	return true
}

// hasCapacity reports whether there is capacity for another report. The caller holds m.mu.
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

// reportOverflow reports the nodes whose reports exceeded their capacity.
func (m *Monitor) reportOverflow() {
	m.mu.Lock()
	lost, late := maps.Clone(m.droppedByNode), m.droppedOwnReports
	m.droppedOwnReports = 0
	m.mu.Unlock()
	if late > 0 {
		m.Log.Warn("too many telemetry gaps to report now; the others are retried", "others", late)
	}
	for _, name := range slices.Sorted(maps.Keys(lost)) {
		// The gateway reports it, so that it has capacity; there is one report per node.
		if m.reportCondition(telemetryCondition{
			kind: nodeOverRate, subject: newNodeSubject(name), node: name,
			count: lost[name], reasons: []string{
				fmt.Sprintf("Node %s reported more telemetry gaps than a node is allowed to: %d of them were dropped.", name,
					lost[name]),
			},
		}) {
			m.mu.Lock()
			delete(m.droppedByNode, name)
			m.mu.Unlock()
		}
	}
}

// markResolved forgets that a condition was reported, so that it is reported at once when it returns.
func (m *Monitor) markResolved(k conditionKind, subject sensors.Subject) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.repeatAfter, telemetryCondition{kind: k, subject: subject}.dedupKey())
}

// deliverReports sends pending reports to their incidents, the gateway's own first. What Temporal does not accept stays
// pending.
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
				m.Log.Warn("could not report a telemetry gap; retrying", "detection", r.detection.ID, "error", err)
				m.mu.Lock()
				m.pendingReports = append(waiting[n:], m.pendingReports...)
				m.mu.Unlock()
				return
			}
			m.forgetReport(r)
			continue
		}
		if temporary := (*ingest.TemporaryError)(nil); errors.As(err, &temporary) {
			m.mu.Lock()
			m.pendingReports = append(m.pendingReports, r)
			m.mu.Unlock()
			continue
		}
		m.Log.Warn("refused to report a telemetry gap", "detection", r.detection.ID, "reason", err)
		m.forgetReport(r)
	}
}

// forgetReport removes a report from the counters.
func (m *Monitor) forgetReport(r pendingReport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pendingByReporter[r.reporter]--; m.pendingByReporter[r.reporter] <= 0 {
		delete(m.pendingByReporter, r.reporter)
	}
}
