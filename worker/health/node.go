package health

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/duration"
	"stanch/sensors/probe"
	"stanch/worker/gateway"
)

// node is what is known of one node.
type node struct {
	here    bool
	stopped bool      // it said goodbye
	seen    time.Time // when it was heard last
	left    time.Time // when its stream ended
	ends    time.Time // of its certificate
	because string    // why that was not renewed

	first, limited time.Time // of the excess that lasts; zero is none
	last           *agent.StatusReport
	base           agent.DropStats    // what was told of its losses
	hooks          map[string]bool // those that were ever on, and are missed until they are on again
	watched        bool            // it watched the kernel
	blames         *rate.Limiter   // of the containers that it says lost events
}

// A node may name this many containers as those that lost events: at once, and one more in this time.
const (
	blamesAtOnce = 30
	blamesEvery  = 2 * time.Second
)

func newNode() *node { return &node{blames: rate.NewLimiter(rate.Every(blamesEvery), blamesAtOnce)} }

// calm is after how long without an excess another one is a new one.
const calm = 30 * time.Second

// of gives a node, made if it is new. The caller holds m.mu.
func (m *Monitor) of(name string) *node {
	n := m.nodes[name]
	if n == nil {
		if len(m.nodes) >= maxNodes {
			clear(m.nodes)
		}
		n = newNode()
		m.nodes[name] = n
	}
	return n
}

// NodeNote takes what the hub noticed.
func (m *Monitor) NodeNote(note gateway.NodeNote) {
	now := m.Now()
	m.mu.Lock()
	n := m.of(note.Node)
	n.seen = now
	switch note.What {
	case gateway.NodeCame:
		n.here, n.stopped, n.ends, n.because = true, false, note.Ends, ""
	case gateway.NodeLeft, gateway.NodeStopped:
		n.here, n.left, n.stopped = false, now, note.What == gateway.NodeStopped
	case gateway.NodeRenewed:
		n.ends, n.because = note.Ends, ""
	case gateway.NodeUnrenewed:
		n.because = note.Because
	case gateway.NodeLimited, gateway.NodeSpoke:
	}
	m.mu.Unlock()
	switch note.What {
	case gateway.NodeCame:
		m.mended(telemetryLost, nodeSubject(note.Node))
		m.remember()
	case gateway.NodeStopped:
		m.remember()
	case gateway.NodeLimited:
		m.limited(note.Node, now)
	case gateway.NodeSpoke:
		m.spoke(note, now)
	case gateway.NodeLeft, gateway.NodeRenewed, gateway.NodeUnrenewed:
	}
}

// limited tells of an excess that lasts.
func (m *Monitor) limited(name string, now time.Time) {
	m.mu.Lock()
	n := m.of(name)
	if n.limited.IsZero() || now.Sub(n.limited) > calm {
		n.first = now
	}
	n.limited = now
	first := n.first
	m.mu.Unlock()
	if lasts := now.Sub(first); lasts >= m.Timing.Excess {
		m.tell(condition{kind: overRate, subject: nodeSubject(name), node: name, by: name, since: first, reasons: []string{
			fmt.Sprintf("Node %s has sent more detections than its rate (`nodes: rate` in stanch.yaml) for %s.", name, duration.FormatApprox(lasts)),
		}})
	}
}

// spoke judges what a node tells of itself. Its words are the node's: bounded, and believed only against itself.
func (m *Monitor) spoke(note gateway.NodeNote, now time.Time) {
	if note.Clock != nil {
		m.clock(note.Node, *note.Clock)
	}
	if len(note.Status) == 0 {
		return
	}
	var report agent.StatusReport
	if err := json.Unmarshal(note.Status, &report); err != nil {
		m.Log.Warn("what a node tells of itself cannot be read", "node", note.Node, "error", err)
		return
	}
	m.mu.Lock()
	n := m.of(note.Node)
	before := n.last
	n.last = &report
	off := n.see(report.ProbeStatus)
	blind := n.watched && report.ProbeStatus.LoadedAt.IsZero()
	m.mu.Unlock()
	m.eyes(note.Node, report, off, blind)
	m.losses(note.Node, before, report, now)
	m.decoys(note.Node, report)
}

// maxDecoys bounds how many cgroups with a borrowed name are told of one node.
const maxDecoys = 5

// decoys tells of cgroups that bear the name of a container which was to be contained.
func (m *Monitor) decoys(name string, r agent.StatusReport) {
	if len(r.SpoofedCgroups) == 0 {
		m.mended(decoyCgroup, nodeSubject(name))
		return
	}
	var reasons []string
	since := r.SpoofedCgroups[0].FirstSeen
	for _, d := range r.SpoofedCgroups[:min(len(r.SpoofedCgroups), maxDecoys)] {
		others := strings.Join(d.SpoofedPaths[:min(len(d.SpoofedPaths), maxDecoys)], ", ")
		what := fmt.Sprintf("On node %s %s is in %s. These cgroups bear its name too: %s.", name, clip(d.TargetID), clip(strings.Join(d.GenuinePaths, ", ")), clip(others))
		if len(d.GenuinePaths) == 0 {
			what = fmt.Sprintf("On node %s several cgroups bear the name of %s, and the node detected nothing in any of them, so it was not contained there: %s.", name, clip(d.TargetID), clip(others))
		}
		reasons = append(reasons, what)
		if d.FirstSeen.Before(since) {
			since = d.FirstSeen
		}
	}
	m.tell(condition{kind: decoyCgroup, subject: nodeSubject(name), node: name, by: name, since: since, reasons: reasons})
}

// maxHooks bounds how many hooks of a node are remembered, and judged.
const maxHooks = 100

// see remembers which hooks are on, and gives those that were once and are not: a sensor that started anew without one says
// so from its first word on, and is blind there for as long as it lasts. What is off for good, because the kernel
// lacks it, is the doctor's to tell. The caller holds m.mu.
func (n *node) see(s probe.Status) []probe.HookStatus {
	if !s.LoadedAt.IsZero() {
		n.watched = true
	}
	var off []probe.HookStatus
	for _, h := range s.Hooks[:min(len(s.Hooks), maxHooks)] {
		name := string(h.Hook)
		switch {
		case !h.Enabled && n.hooks[name]:
			off = append(off, h)
		case h.Enabled && len(n.hooks) < maxHooks:
			if n.hooks == nil {
				n.hooks = map[string]bool{}
			}
			n.hooks[name] = true
		}
	}
	return off
}

// clock tells of a wrong one; nothing is corrected.
func (m *Monitor) clock(name string, c gateway.Clock) {
	off := c.Skew.Abs() - c.Error // what is certain
	if off < m.Timing.Skew {
		m.mended(clockSkew, nodeSubject(name))
		return
	}
	direction := "ahead of"
	if c.Skew < 0 {
		direction = "behind"
	}
	m.tell(condition{kind: clockSkew, subject: nodeSubject(name), node: name, by: name, reasons: []string{
		fmt.Sprintf("The timelines of node %s are off by %s: its clock is %s the gateway's (± %s).", name, duration.FormatApprox(c.Skew.Abs()), direction, duration.FormatApprox(c.Error)),
	}})
}

// eyes tells of a sensor that no longer sees.
func (m *Monitor) eyes(name string, r agent.StatusReport, off []probe.HookStatus, blind bool) {
	var reasons []string
	if r.Heartbeat.Failing {
		last := "never since it started"
		if !r.Heartbeat.LastReceived.IsZero() {
			last = "last at " + r.Heartbeat.LastReceived.UTC().Format(time.RFC3339)
		}
		reasons = append(reasons, fmt.Sprintf("The sensor of node %s made %d harmless events and saw none of them come back (%s).", name, r.Heartbeat.ConsecutiveMisses, last))
		if r.Heartbeat.FailureReason != "" {
			reasons = append(reasons, "The sensor says: "+clip(r.Heartbeat.FailureReason))
		}
	}
	for _, h := range off {
		reasons = append(reasons, fmt.Sprintf("The hook %s of node %s was on and is off: %s.", clip(string(h.Hook)), name, clip(h.Reason)))
	}
	if blind {
		reasons = append(reasons, fmt.Sprintf("The sensor of node %s watched the kernel and no longer does.", name))
	}
	if len(reasons) == 0 {
		m.mended(eyesShut, nodeSubject(name))
		return
	}
	told := m.tell(condition{kind: eyesShut, subject: nodeSubject(name), node: name, by: name, since: r.Heartbeat.LastReceived, reasons: reasons})
	if !told {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.of(name)
	for _, h := range off {
		if h.Reason == probe.ReasonDisabled {
			delete(n.hooks, string(h.Hook)) // somebody wanted it, has been told, and is not told for ever
		}
	}
}

const (
	// recent is how old a loss may be that a gateway hears of for the first time.
	recent = 15 * time.Minute
	// maxBlamed bounds how many containers of a node are named for one loss.
	maxBlamed = 5
)

// losses tells of events that were lost since the node spoke last, and who made them.
func (m *Monitor) losses(name string, before *agent.StatusReport, r agent.StatusReport, now time.Time) {
	m.mu.Lock()
	n := m.of(name)
	if !n.base.CountingSince.Equal(r.Drops.CountingSince) {
		n.base = agent.DropStats{CountingSince: r.Drops.CountingSince} // another process counts
		if before == nil && now.Sub(r.Drops.LastDropAt) > recent {
			n.base = r.Drops // it was told before this gateway knew the node
		}
	}
	old := n.base
	m.mu.Unlock()
	events, spool := rise(r.Drops.KernelEvents, old.KernelEvents), rise(r.Drops.SpooledDetections, old.SpooledDetections)
	if events+spool == 0 {
		return
	}
	since := r.Drops.EpisodeStart.UTC().Format(time.RFC3339)
	var reasons, names []string
	blamed := 0
	for _, b := range r.Drops.TopSources[:min(len(r.Drops.TopSources), 20)] {
		had := uint64(0)
		if i := slices.IndexFunc(old.TopSources, func(o agent.DropSource) bool { return o.Cgroup == b.Cgroup && o.Container.ID == b.Container.ID }); i >= 0 {
			had = old.TopSources[i].Dropped
		}
		more := rise(b.Dropped, had)
		if more == 0 || blamed >= maxBlamed || more*10 < events {
			continue
		}
		blamed++
		names = append(names, fmt.Sprintf("%s (%d)", who(b), more))
		if b.Container.ID == "" && b.Container.Pod.UID == "" {
			continue
		}
		m.tell(condition{
			kind: flooded, container: b.Container, node: name, from: name, by: name, count: clampInt(more), since: r.Drops.EpisodeStart,
			reasons: []string{fmt.Sprintf("%d events of this container were lost on node %s since %s: it made more than the sensor could keep.", more, name, since)},
		})
	}
	if events > 0 {
		reasons = append(reasons, fmt.Sprintf("%d events were lost on node %s since %s%s.", events, name, since, causes(r)))
	}
	if spool > 0 {
		reasons = append(reasons, fmt.Sprintf("%d detections were lost on node %s: its spool was full, or they were too large to be sent.", spool, name))
	}
	if len(names) > 0 {
		reasons = append(reasons, "Most of them were made by "+strings.Join(names, ", ")+".")
	}
	severity := sensors.Severity("")
	if spool > 0 {
		severity = sensors.SeverityHigh // these had been judged, and mattered
	}
	told := m.tell(condition{kind: eventsDropped, subject: nodeSubject(name), node: name, by: name, since: r.Drops.EpisodeStart, count: clampInt(events + spool), severity: severity, reasons: reasons})
	if told { // else it is counted with the next
		m.mu.Lock()
		m.of(name).base = r.Drops
		m.mu.Unlock()
	}
}

// causes says why events were lost.
func causes(r agent.StatusReport) string {
	var out []string
	for _, why := range []string{"alerts ring full", "telemetry ring full", "no scratch", "undecodable"} {
		if r.ProbeStatus.Drops[why] > 0 {
			out = append(out, why)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, ", ") + ")"
}

func who(b agent.DropSource) string {
	c := b.Container
	switch {
	case c.Pod.Name != "":
		return fmt.Sprintf("%s/%s container %s", clip(c.Pod.Namespace), clip(c.Pod.Name), clip(c.Name))
	case c.ID != "":
		return "container " + clip(c.ID[:min(12, len(c.ID))])
	}
	return "cgroup " + clip(b.Cgroup)
}

func rise(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func clampInt(n uint64) int { return int(min(n, 1<<31-1)) } //nolint:gosec // bounded

func clip(s string) string {
	if r := []rune(s); len(r) > 120 {
		return string(r[:120]) + "…"
	}
	return s
}
