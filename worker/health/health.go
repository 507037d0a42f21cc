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
	Look time.Duration // how often it is looked; default 5 s
	Lost time.Duration // how long a node may be away that vanished; default 60 s
	// Stopped is how long a node may be away that said goodbye and should run: an upgrade takes its time. Default 5 min.
	Stopped time.Duration
	Skew    time.Duration // how far apart clocks may be; default 5 s
	// Excess is for how long a node may send more than its rate; default 30 s.
	Excess time.Duration
	// Again is how often a condition that lasts is told again, so that its incident stays open; default 5 min.
	Again time.Duration
	// Ending is how long before its end a certificate should have been renewed; default 14 days.
	Ending time.Duration
}

func (t Timing) orDefault() Timing {
	for _, d := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{
		{&t.Look, 5 * time.Second},
		{&t.Lost, time.Minute},
		{&t.Stopped, 5 * time.Minute},
		{&t.Skew, 5 * time.Second},
		{&t.Excess, 30 * time.Second},
		{&t.Again, 5 * time.Minute},
		{&t.Ending, 14 * 24 * time.Hour},
	} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
	}
	return t
}

// Intake is where detections go: gateway.Intake.
type Intake interface {
	// Check returns why a detection will never be accepted, and completes its pod; from is the node whose word it is.
	Check(ctx context.Context, d *sensors.Detection, from string) error
	Accept(ctx context.Context, detections []sensors.Detection) error
}

// Cluster tells which nodes should be watched. Without a cluster only nodes that were here are missed.
type Cluster interface {
	// Expected are the nodes on which a sensor should run, by name.
	Expected(ctx context.Context) (map[string]Expectation, error)
}

// Elsewhere tells whether another replica of the gateway holds a node's stream.
type Elsewhere interface {
	Serves(ctx context.Context, node string) (bool, error)
}

// Authority tells when the installation's own certificate ends.
type Authority interface {
	Ends() time.Time
}

// Options are the parts of a monitor. Only Intake is required.
type Options struct {
	Intake    Intake
	Cluster   Cluster
	Elsewhere Elsewhere
	Authority Authority
	// Memory is used with a Cluster only.
	Memory Memory
	// File remembers which nodes were here, over restarts; "" forgets them.
	File   string
	Timing Timing
	Log    *slog.Logger
	// Now is the clock; nil is the machine's.
	Now func() time.Time
}

// Monitor makes detections of what it is told and of what it misses.
type Monitor struct {
	Options
	began time.Time

	// Of the Memory; only Look uses them.
	shared   map[string]time.Time // what it says
	recalled time.Time            // when it was asked last
	unshared time.Time            // until when it is not tried again to change it

	mu      sync.Mutex
	nodes   map[string]*node
	sources map[string]*source
	told    map[string]time.Time // until when a condition that was told is not told again, by its key
	waiting []report
	held    map[string]int // how many reports of whose words wait or are on their way
	lost    map[string]int // how many of a node's were given up since that was told
	late    int            // how many of the gateway's own had no room since the last look
}

var _ gateway.Monitor = (*Monitor)(nil)

// report is a detection on its way, and whose word it is: "" is the gateway's own.
type report struct {
	detection sensors.Detection
	from      string
	held      string // under which it is counted in Monitor.held
}

// The bounds of what a monitor remembers. What nodes and other sensors say has less room than what the gateway itself
// notices, and each of them a room of its own: one that tells of a thousand gaps must not hide another's.
const (
	maxNodes   = 20_000
	maxWaiting = 2000
	maxHeld    = 40
	maxTold    = 50_000
)

// New makes a monitor. Run lets it look and report.
func New(o Options) *Monitor {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Timing = o.Timing.orDefault()
	m := &Monitor{Options: o, began: o.Now(), nodes: map[string]*node{}, sources: map[string]*source{}, told: map[string]time.Time{}, held: map[string]int{}, lost: map[string]int{}}
	if err := m.recall(); err != nil {
		o.Log.Warn("which nodes were here before is not known", "error", err)
	}
	return m
}

// Run looks and reports until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(m.Timing.Look)
	defer tick.Stop()
	for {
		m.Look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Look looks once at everything, and reports what waits.
func (m *Monitor) Look(ctx context.Context) {
	m.absent(ctx)
	m.endings()
	m.silent()
	m.overflown()
	m.report(ctx)
}

// tell makes a condition a detection, unless it was told a moment ago; then it is false.
func (m *Monitor) tell(c condition) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.Now()
	again := c.kind.again
	if again == 0 || again <= time.Minute && m.Timing.Again < again {
		again = m.Timing.Again
	}
	key := c.key()
	if until, ok := m.told[key]; ok && now.Before(until) {
		return false
	}
	if !m.room(c, now) {
		return false // and not remembered as told: it is tried again
	}
	m.Log.Warn("the telemetry has a gap", "kind", c.kind.rule, "subject", c.subject.Name, "reasons", c.reasons)
	m.held[c.voice()]++
	m.waiting = append(m.waiting, report{c.detection(now, again), c.from, c.voice()})
	m.told[key] = now.Add(again)
	return true
}

// room tells whether a condition may wait with the others. The caller holds m.mu.
func (m *Monitor) room(c condition, now time.Time) bool {
	if len(m.told) >= maxTold {
		maps.DeleteFunc(m.told, func(_ string, until time.Time) bool { return !now.Before(until) })
	}
	if c.by == "" {
		if m.held[""] >= maxWaiting {
			m.late++
			return false
		}
		return true
	}
	full := m.held[c.voice()] >= maxHeld || len(m.told) >= maxTold
	if c.from != "" && !full {
		full = !m.of(c.from).blames.AllowN(now, 1)
	}
	if full && c.node != "" {
		m.lost[c.node]++
	}
	return !full
}

// overflown tells which nodes told of more gaps than they have room for.
func (m *Monitor) overflown() {
	m.mu.Lock()
	lost, late := maps.Clone(m.lost), m.late
	m.late = 0
	m.mu.Unlock()
	if late > 0 {
		m.Log.Warn("there are more gaps in the telemetry than can be reported now; the others are tried again", "others", late)
	}
	for _, name := range slices.Sorted(maps.Keys(lost)) {
		// The gateway's own word, so that it has room; there is one for each node.
		if m.tell(condition{kind: overRate, subject: nodeSubject(name), node: name, count: lost[name], reasons: []string{
			fmt.Sprintf("Node %s told of more gaps in its telemetry than a node may: %d of them were left out.", name, lost[name]),
		}}) {
			m.mu.Lock()
			delete(m.lost, name)
			m.mu.Unlock()
		}
	}
}

// mended forgets that a condition was told: when it comes back it is told at once.
func (m *Monitor) mended(k kind, subject sensors.Subject) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.told, condition{kind: k, subject: subject}.key())
}

// report gives what waits to its incidents, the gateway's own words first. What Temporal does not take now waits on.
func (m *Monitor) report(ctx context.Context) {
	m.mu.Lock()
	waiting := m.waiting
	m.waiting = nil
	m.mu.Unlock()
	slices.SortStableFunc(waiting, func(a, b report) int {
		switch {
		case a.held == "" && b.held != "":
			return -1
		case b.held == "" && a.held != "":
			return 1
		}
		return 0
	})
	for n, r := range waiting {
		err := m.Intake.Check(ctx, &r.detection, r.from)
		if err == nil {
			limited, cancel := context.WithTimeout(ctx, 25*time.Second)
			err = m.Intake.Accept(limited, []sensors.Detection{r.detection})
			cancel()
			if err != nil {
				m.Log.Warn("a gap in the telemetry cannot be reported now", "detection", r.detection.ID, "error", err)
				m.mu.Lock()
				m.waiting = append(waiting[n:], m.waiting...)
				m.mu.Unlock()
				return
			}
			m.gone(r)
			continue
		}
		if temporary := (*gateway.TemporaryError)(nil); errors.As(err, &temporary) {
			m.mu.Lock()
			m.waiting = append(m.waiting, r)
			m.mu.Unlock()
			continue
		}
		m.Log.Warn("a gap in the telemetry is not reported", "detection", r.detection.ID, "reason", err)
		m.gone(r)
	}
}

// gone forgets a report that waits no longer.
func (m *Monitor) gone(r report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held[r.held]--; m.held[r.held] <= 0 {
		delete(m.held, r.held)
	}
}
