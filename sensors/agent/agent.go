// Package agent is the node sensor: it turns the probe's events into detections, spools them for the gateway, and
// executes the gateway's commands.
//
// It refuses to trust the gateway and the worker: a command that changes something must contain a lease token or a
// grant of the authority, which the agent verifies itself against its own clock. It opens no port and never calls the
// Kubernetes API.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stanch/sensors"
	"stanch/sensors/baseline"
	"stanch/sensors/containermeta"
	"stanch/sensors/probe"
	"stanch/sensors/redact"
	"stanch/sensors/rules"
	"stanch/sensors/snapshot"
)

// Options are the dependencies of an agent. Probe, EgressLock and Freezer may be nil if the kernel does not support
// them; commands that need them are then refused with the reason. A nil Log means slog.Default.
type Options struct {
	Node            string
	Probe           *probe.Probe
	Resolver        *containermeta.Resolver
	EgressLock      *probe.EgressLock
	EgressLockError string // why EgressLock is nil
	Freezer         *snapshot.Freezer
	// KubeletPath is the path of the kubelet's executable on this node. It is needed only if the executable has an
	// unusual name.
	KubeletPath string
	// SnapshotHelper takes snapshots in separate processes. If it is nil, the agent takes them itself, and a container
	// that blocks a read forever can keep the agent's process from exiting.
	SnapshotHelper *snapshot.HelperPool
	// StateDir is the directory for state that survives a restart, such as leases that were released before their end.
	// "" keeps the state in memory only.
	StateDir string
	Log      *slog.Logger
	// Failpoint is called at named points, so that tests can kill the process there. Nil disables it.
	Failpoint func(point string)
	// APIServers are the addresses (IP:port) of the Kubernetes API, so that rules can recognize connections to it.
	APIServers []string
	// RuleFiles reloads the rules when the rule packs change. If it is nil, the rules never change.
	RuleFiles *RuleFiles
	// Baselines learn what is usual for an image. If it is nil, no event is unusual.
	Baselines *baseline.Baselines
	// DedupWindow is how long similar detections are counted before they are reported again. The default is 10 s.
	DedupWindow time.Duration
	// HeartbeatInterval is the interval of the self-test that proves that the sensor receives events. The default is
	// 30 s.
	HeartbeatInterval time.Duration
}

// Agent is the sensor of one node. It is safe for concurrent use.
type Agent struct {
	Options
	revocations     *revocations
	detectedCgroups *detectedCgroups
	spoofedCgroups  spoofedCgroups
	rules           atomic.Pointer[rules.Set]
	kubeletCount    atomic.Int64 // number of kubelets found so far
	self            selfProcess

	mu               sync.RWMutex
	unresolvedEvents uint64 // events whose container could not be identified
	lastLogged       map[string]time.Time
	heartbeat        *heartbeat

	dropsMu        sync.Mutex // guards the fields below; locked before any other mutex
	drops          DropStats
	dropsCheckedAt time.Time // when drops were last checked
}

// New returns an agent with the given rules. It returns an error if the state in StateDir cannot be read.
func New(o Options, set *rules.Set) (*Agent, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.DedupWindow == 0 {
		o.DedupWindow = 10 * time.Second
	}
	released, err := openRevocations(o.StateDir)
	if err != nil {
		return nil, err
	}
	seen, err := openDetectedCgroups(o.StateDir, BootID())
	if err != nil {
		return nil, err
	}
	if o.Resolver != nil {
		seen.trustRank = cgroupTrustRanker(o.Resolver.CgroupRoot())
	}
	a := &Agent{
		Options: o, revocations: released, detectedCgroups: seen, self: currentProcess(),
		lastLogged: map[string]time.Time{},
	}
	a.rules.Store(set)
	a.heartbeat = &heartbeat{interval: o.HeartbeatInterval, dir: o.StateDir, log: o.Log}
	return a, nil
}

// Watch passes every event and every detection to the callbacks until ctx ends. It deduplicates similar detections.
// Either callback may be nil. Without a probe it blocks until ctx ends. It returns an error if the probe fails.
func (a *Agent) Watch(ctx context.Context, event func(sensors.Event), detection func(sensors.Detection)) error {
	go a.watchRules(ctx)
	go a.refreshNodeAddresses(ctx)
	if a.Probe == nil {
		<-ctx.Done()
		return nil
	}
	fold := newDeduplicator(a.DedupWindow, detection)
	go fold.run(ctx)
	ctx, cancel := context.WithCancel(ctx)
	shut := make(chan struct{})
	go func() { defer close(shut); a.heartbeat.run(ctx) }()
	// The heartbeat cleans up after itself. A process that freezes its cgroup must not delay the shutdown.
	defer func() {
		select {
		case <-shut:
		case <-time.After(time.Second):
		}
	}()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() { a.saveBaselines(ctx) })
	if detection != nil {
		detection = fold.add
	}
	if err := a.Probe.Run(ctx, func(e sensors.Event) { a.ProcessEvent(e, event, detection) }); err != nil {
		return fmt.Errorf("read kernel events: %w", err)
	}
	return nil
}

// ProcessEvent evaluates one kernel event and calls the callbacks, as Watch does for each event. It does not
// deduplicate detections.
func (a *Agent) ProcessEvent(e sensors.Event, event func(sensors.Event), detection func(sensors.Detection)) {
	e.Node = a.Node
	if a.heartbeat.isHeartbeatEvent(&e) || a.self.caused(&e) {
		return
	}
	if !a.resolveContainer(&e) {
		return
	}
	if e.Kind == sensors.KindConnect {
		e.Network.KubernetesAPI = slices.Contains(a.APIServers, net.JoinHostPort(e.Network.Address,
			strconv.Itoa(int(e.Network.Port))))
	}
	if a.Baselines != nil {
		e.Baseline = a.Baselines.Compare(&e)
	}
	var found []sensors.Detection
	var errs []error
	if detection != nil {
		found, errs = a.rules.Load().Evaluate(e)
	}
	if event == nil && len(found) == 0 && len(errs) == 0 {
		return
	}
	// Rules match the original command line; every other consumer gets the redacted one. Few events reach this line,
	// and redaction takes longer than everything before it.
	redactEvent(&e)
	if event != nil {
		event(e)
	}
	for _, err := range errs {
		a.logThrottled("evaluate", err)
	}
	if len(found) > 0 {
		if err := a.detectedCgroups.record(&e.Container); err != nil {
			a.logThrottled("save the cgroup of a detected container", err)
		}
	}
	for _, d := range found {
		d.Detected, d.Event.Process = time.Now(), e.Process
		baseline.AdjustConfidence(&d)
		detection(d)
	}
}

// redactEvent removes secrets from the command lines of an event. It replaces the slices, because other events share
// them.
func redactEvent(e *sensors.Event) {
	e.Process.Args = redact.Args(e.Process.Args)
	e.Process.Ancestors = slices.Clone(e.Process.Ancestors)
	for i := range e.Process.Ancestors {
		e.Process.Ancestors[i].Args = redact.Args(e.Process.Ancestors[i].Args)
	}
}

// resolveContainer fills in the event's container. It returns false for an event of the host.
func (a *Agent) resolveContainer(e *sensors.Event) bool {
	if a.Resolver == nil {
		return true
	}
	seen := e.Container
	c, err := a.Resolver.ResolveWithPath(seen.CgroupID, seen.CgroupPath)
	switch {
	case errors.Is(err, containermeta.ErrNotFound) && (c.ID == "" && seen.CgroupPath == ""):
		a.mu.Lock()
		a.unresolvedEvents++
		a.mu.Unlock()
	case err != nil:
		a.logThrottled("identify the container", err)
	}
	if c.CgroupID == 0 {
		c.CgroupID = seen.CgroupID
	}
	if c.CgroupPath == "" {
		c.CgroupPath = seen.CgroupPath
	}
	e.Container = c
	return c.ID != ""
}

// logThrottled logs an error that may occur with every event, at most once a minute for each cause.
func (a *Agent) logThrottled(what string, err error) {
	cause := what + ": " + err.Error()
	if i := strings.IndexAny(cause, "0123456789"); i > 0 {
		cause = cause[:i]
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.lastLogged[cause]) < time.Minute {
		return
	}
	if len(a.lastLogged) > 100 {
		clear(a.lastLogged)
	}
	a.lastLogged[cause] = time.Now()
	a.Log.Warn("the sensor continues after an error", "operation", what, "error", err)
}

// Health is the state that a node reports to the gateway.
type Health struct {
	Node             string          `json:"node"`
	ProbeStatus      probe.Status    `json:"probe_status,omitzero"`
	Runtime          string          `json:"runtime"`
	EgressLockStatus string          `json:"egress_lock_status"` // "on", or the reason why it is off
	UnresolvedEvents uint64          `json:"unresolved_events"`
	Rules            RulesHealth     `json:"rules,omitzero"`
	Heartbeat        HeartbeatStatus `json:"heartbeat,omitzero"`
	// SpoofedCgroups are cgroups that use the name of a target container or pod without being its cgroup.
	SpoofedCgroups []SpoofedCgroup `json:"spoofed_cgroups,omitempty"`
	// RuleStats are the statistics since the rules were loaded, limited to the rules that matched and the most
	// expensive ones.
	RuleStats []rules.RuleStats `json:"rule_stats,omitempty"`
}

// Report returns the node's state together with its drops. spooled and dropped are the counts of the spool.
func (a *Agent) Report(spooled int, dropped uint64) StatusReport {
	r := StatusReport{Health: a.Health(), Spooled: spooled, SpoolDropped: dropped}
	a.dropsMu.Lock()
	defer a.dropsMu.Unlock()
	now := time.Now()
	r.Drops = a.updateDrops(now, r.ProbeStatus.Drops, dropped)
	a.dropsCheckedAt = now
	return r
}

// Health returns the node's state.
func (a *Agent) Health() Health {
	h := Health{Node: a.Node, EgressLockStatus: "on"}
	// Not under a.mu: the probe holds its own lock while an event is processed, and that processing may lock a.mu.
	if a.Probe != nil {
		h.ProbeStatus = a.Probe.Status()
		h.Heartbeat = a.heartbeat.Status()
	}
	if a.EgressLock == nil {
		h.EgressLockStatus = a.EgressLockError
	}
	h.SpoofedCgroups = a.spoofedCgroups.list()
	if a.RuleFiles != nil {
		h.Rules = a.RuleFiles.Health()
	}
	if set := a.rules.Load(); set != nil {
		h.RuleStats = SelectReportedStats(set.Stats())
	}
	if a.Resolver != nil {
		h.Runtime = a.Resolver.DescribeRuntime()
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	h.UnresolvedEvents = a.unresolvedEvents
	return h
}

// deduplicator sends the first of similar detections at once, and counts those that follow within a time window.
type deduplicator struct {
	window  time.Duration
	send    func(sensors.Detection)
	mu      sync.Mutex
	entries map[string]*dedupEntry
}

type dedupEntry struct {
	windowEnd  time.Time
	latest     sensors.Detection
	suppressed int
}

// maxDedupEntries bounds the memory of the deduplicator. Beyond it, every detection is sent individually.
const maxDedupEntries = 4096

func newDeduplicator(window time.Duration, send func(sensors.Detection)) *deduplicator {
	return &deduplicator{window: window, send: send, entries: map[string]*dedupEntry{}}
}

func (f *deduplicator) add(d sensors.Detection) {
	key := strings.Join(append([]string{
		d.Rule, d.Event.Container.ID, d.Event.Process.Exe, d.Event.File.Path,
		d.Event.Network.Address,
	}, d.Event.Process.Args...), "\x00")
	f.mu.Lock()
	if held, ok := f.entries[key]; ok {
		held.suppressed++
		held.latest = d
		f.mu.Unlock()
		return
	}
	if len(f.entries) < maxDedupEntries {
		f.entries[key] = &dedupEntry{windowEnd: time.Now().Add(f.window)}
	}
	f.mu.Unlock()
	f.send(d)
}

func (f *deduplicator) run(ctx context.Context) {
	tick := time.NewTicker(max(f.window/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			f.flush(now)
		}
	}
}

func (f *deduplicator) flush(now time.Time) {
	f.mu.Lock()
	var out []sensors.Detection
	for key, held := range f.entries {
		if now.Before(held.windowEnd) {
			continue
		}
		delete(f.entries, key)
		if held.suppressed > 0 {
			held.latest.Count = held.suppressed
			out = append(out, held.latest)
		}
	}
	f.mu.Unlock()
	slices.SortFunc(out, func(a, b sensors.Detection) int { return a.Time.Compare(b.Time) })
	for _, d := range out {
		f.send(d)
	}
}
