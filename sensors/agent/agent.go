// Package agent is the node's part of Stanch: it turns the probe's events into detections, spools them for the
// gateway, and obeys the gateway's commands.
//
// It refuses to trust the gateway's worker: a command that changes something must carry a lease token or a grant
// of the authority's, which it verifies itself against its own clock. It opens no port and calls no API server.
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
	"stanch/sensors/identity"
	"stanch/sensors/probe"
	"stanch/sensors/redact"
	"stanch/sensors/rules"
	"stanch/sensors/snapshot"
)

// Options are the parts of an agent. Probe, Lock and Freezer may be nil where the kernel lacks what they need;
// what depends on them is then refused with the reason.
type Options struct {
	Node     string
	Probe    *probe.Probe
	Resolver *identity.Resolver
	Lock     *probe.Lock
	LockWhy  string // why Lock is nil
	Freezer  *snapshot.Freezer
	// Kubelet is the path of this node's kubelet, where its program has an unusual name.
	Kubelet string
	// Snapshots takes snapshots in processes of their own. Nil: this process does, and a container that lets a read wait
	// for ever keeps it from ending.
	Snapshots *snapshot.Helper
	// StateDir keeps what must survive a restart: leases that were released before their end.
	StateDir string
	Log      *slog.Logger
	// At is called at named points, so that tests can kill the process there. Nil does nothing.
	At func(point string)
	// APIServers are the addresses (IP:port) of the cluster's API, so that rules can tell who contacts it.
	APIServers []string
	// RuleFiles are where the rules come from, to be read again when they change. Nil: the rules stay.
	RuleFiles *RuleFiles
	// Baselines learn what is usual for an image. Nil: nothing is unusual.
	Baselines *baseline.Baselines
	// Fold is how long detections alike are counted before they are reported again. Default 10 s.
	Fold time.Duration
	// Heartbeat is how often the sensor proves that it sees. Default 30 s.
	Heartbeat time.Duration
}

// Agent watches one node.
type Agent struct {
	Options
	released  *ledger
	sightings *sightings
	decoys    decoys
	rules     atomic.Pointer[rules.Set]
	kubelets  atomic.Int64 // found so far
	own       own

	mu      sync.RWMutex
	missed  uint64 // events whose container could not be named
	failing map[string]time.Time
	eyes    *eyes

	counting sync.Mutex // guards what follows; taken before every other
	lost     Losses
	looked   time.Time // when losses were looked for last
}

// New makes an agent with the given rules.
func New(o Options, set *rules.Set) (*Agent, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Fold == 0 {
		o.Fold = 10 * time.Second
	}
	released, err := openLedger(o.StateDir)
	if err != nil {
		return nil, err
	}
	seen, err := openSightings(o.StateDir, BootID())
	if err != nil {
		return nil, err
	}
	if o.Resolver != nil {
		seen.trust = trustOf(o.Resolver.CgroupRoot())
	}
	a := &Agent{Options: o, released: released, sightings: seen, own: ownProcess(), failing: map[string]time.Time{}}
	a.rules.Store(set)
	a.eyes = &eyes{every: o.Heartbeat, dir: o.StateDir, log: o.Log}
	return a, nil
}

// Watch hands every event and every detection to the sinks until ctx ends. Either sink may be nil.
func (a *Agent) Watch(ctx context.Context, event func(sensors.Event), detection func(sensors.Detection)) error {
	go a.followRules(ctx)
	go a.followNode(ctx)
	if a.Probe == nil {
		<-ctx.Done()
		return nil
	}
	fold := newFolder(a.Fold, detection)
	go fold.run(ctx)
	ctx, cancel := context.WithCancel(ctx)
	shut := make(chan struct{})
	go func() { defer close(shut); a.eyes.run(ctx) }()
	defer func() { // it cleans up behind itself; who freezes its cgroup holds nobody up
		select {
		case <-shut:
		case <-time.After(time.Second):
		}
	}()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() { a.learn(ctx) })
	if detection != nil {
		detection = fold.add
	}
	if err := a.Probe.Run(ctx, func(e sensors.Event) { a.Observe(e, event, detection) }); err != nil {
		return fmt.Errorf("watch the kernel: %w", err)
	}
	return nil
}

// Observe takes one event of the kernel's to the sinks, as Watch does with each; Watch also folds detections alike.
func (a *Agent) Observe(e sensors.Event, event func(sensors.Event), detection func(sensors.Detection)) {
	e.Node = a.Node
	if a.eyes.saw(&e) || a.own.did(&e) {
		return
	}
	if !a.name(&e) {
		return
	}
	if e.Kind == sensors.KindConnect {
		e.Network.KubernetesAPI = slices.Contains(a.APIServers, net.JoinHostPort(e.Network.Address, strconv.Itoa(int(e.Network.Port))))
	}
	if a.Baselines != nil {
		e.Baseline = a.Baselines.Judge(&e)
	}
	var found []sensors.Detection
	var errs []error
	if detection != nil {
		found, errs = a.rules.Load().Evaluate(e)
	}
	if event == nil && len(found) == 0 && len(errs) == 0 {
		return
	}
	// Rules see what was said; nobody else does. Few events leave here, and to find secrets takes longer than all else.
	withoutSecrets(&e)
	if event != nil {
		event(e)
	}
	for _, err := range errs {
		a.complain("evaluate", err)
	}
	if len(found) > 0 {
		if err := a.sightings.note(&e.Container); err != nil {
			a.complain("remember where a container was detected", err)
		}
	}
	for _, d := range found {
		d.Detected, d.Event.Process = time.Now(), e.Process
		baseline.Weigh(&d)
		detection(d)
	}
}

// withoutSecrets takes secrets out of an event's command lines. The event's lists are others' too: they are replaced.
func withoutSecrets(e *sensors.Event) {
	e.Process.Args = redact.Args(e.Process.Args)
	e.Process.Ancestors = slices.Clone(e.Process.Ancestors)
	for i := range e.Process.Ancestors {
		e.Process.Ancestors[i].Args = redact.Args(e.Process.Ancestors[i].Args)
	}
}

// name fills in whose event it is; false for the host's own.
func (a *Agent) name(e *sensors.Event) bool {
	if a.Resolver == nil {
		return true
	}
	seen := e.Container
	c, err := a.Resolver.ResolveAt(seen.CgroupID, seen.CgroupPath)
	switch {
	case errors.Is(err, identity.ErrNotFound) && (c.ID == "" && seen.CgroupPath == ""):
		a.mu.Lock()
		a.missed++
		a.mu.Unlock()
	case err != nil:
		a.complain("name the container", err)
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

// complain logs an error that may come with every event, at most once a minute for each cause.
func (a *Agent) complain(what string, err error) {
	cause := what + ": " + err.Error()
	if i := strings.IndexAny(cause, "0123456789"); i > 0 {
		cause = cause[:i]
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.failing[cause]) < time.Minute {
		return
	}
	if len(a.failing) > 100 {
		clear(a.failing)
	}
	a.failing[cause] = time.Now()
	a.Log.Warn("the sensor goes on after an error", "doing", what, "error", err)
}

// Health is what the node tells the gateway about itself.
type Health struct {
	Node     string       `json:"node"`
	Probe    probe.Status `json:"probe,omitzero"`
	Runtime  string       `json:"runtime"`
	Lock     string       `json:"lock"` // "on", or why not
	Nameless uint64       `json:"nameless_events"`
	Rules    RulesHealth  `json:"rules,omitzero"`
	Eyes     Eyes         `json:"eyes,omitzero"`
	// Decoys are cgroups that bear the name of a container or pod that was to be contained, and are not its own.
	Decoys []Decoy `json:"decoys,omitempty"`
	// RuleCounts is what rules did since they were loaded: those that did something and those that cost most.
	RuleCounts []rules.Stats `json:"rule_counts,omitempty"`
}

// Report gives the node's state with what was lost; spooled and dropped are the spool's.
func (a *Agent) Report(spooled int, dropped uint64) Report {
	r := Report{Health: a.Health(), Spooled: spooled, Dropped: dropped}
	a.counting.Lock()
	defer a.counting.Unlock()
	now := time.Now()
	r.Lost = a.losses(now, r.Probe.Drops, dropped)
	a.looked = now
	return r
}

// Health gives the node's state.
func (a *Agent) Health() Health {
	h := Health{Node: a.Node, Lock: "on"}
	// Not under a.mu: the probe holds its own lock while an event is judged, which may want a.mu.
	if a.Probe != nil {
		h.Probe = a.Probe.Status()
		h.Eyes = a.eyes.Eyes()
	}
	if a.Lock == nil {
		h.Lock = a.LockWhy
	}
	h.Decoys = a.decoys.list()
	if a.RuleFiles != nil {
		h.Rules = a.RuleFiles.Health()
	}
	if set := a.rules.Load(); set != nil {
		h.RuleCounts = Telling(set.Stats())
	}
	if a.Resolver != nil {
		h.Runtime = a.Resolver.Runtime()
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	h.Nameless = a.missed
	return h
}

// folder sends the first of detections alike at once, and counts those that follow within a window.
type folder struct {
	window time.Duration
	send   func(sensors.Detection)
	mu     sync.Mutex
	held   map[string]*folded
}

type folded struct {
	until time.Time
	last  sensors.Detection
	count int
}

// maxFolded bounds the folder's memory; past it detections are sent one by one.
const maxFolded = 4096

func newFolder(window time.Duration, send func(sensors.Detection)) *folder {
	return &folder{window: window, send: send, held: map[string]*folded{}}
}

func (f *folder) add(d sensors.Detection) {
	key := strings.Join(append([]string{d.Rule, d.Event.Container.ID, d.Event.Process.Exe, d.Event.File.Path, d.Event.Network.Address}, d.Event.Process.Args...), "\x00")
	f.mu.Lock()
	if held, ok := f.held[key]; ok {
		held.count++
		held.last = d
		f.mu.Unlock()
		return
	}
	if len(f.held) < maxFolded {
		f.held[key] = &folded{until: time.Now().Add(f.window)}
	}
	f.mu.Unlock()
	f.send(d)
}

func (f *folder) run(ctx context.Context) {
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

func (f *folder) flush(now time.Time) {
	f.mu.Lock()
	var out []sensors.Detection
	for key, held := range f.held {
		if now.Before(held.until) {
			continue
		}
		delete(f.held, key)
		if held.count > 0 {
			held.last.Count = held.count
			out = append(out, held.last)
		}
	}
	f.mu.Unlock()
	slices.SortFunc(out, func(a, b sensors.Detection) int { return a.Time.Compare(b.Time) })
	for _, d := range out {
		f.send(d)
	}
}
