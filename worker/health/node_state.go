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
	"stanch/sensors/truncate"
	"stanch/worker/nodeserver"
)

// nodeState is the monitor's state of one node.
type nodeState struct {
	connected            bool
	stopped              bool      // it shut down regularly
	lastSeen             time.Time // time of the last message
	disconnectedAt       time.Time // end of its last stream
	certificateExpiresAt time.Time // end of its certificate
	renewalFailure       string    // why renewal failed

	overRateSince, lastRateLimited time.Time // start and last event of an excess; zero if none
	lastReport                     *agent.StatusReport
	reportedDrops                  agent.DropStats // drops that were already reported
	// hooks that were attached once, and are reported until they are attached again
	knownHooks   map[string]bool
	wasWatching  bool          // it observed the kernel
	blameLimiter *rate.Limiter // limits the containers that it may name as the cause of drops
}

// A node may name this many containers as the cause of drops at once, and one more per interval.
const (
	blameBurst    = 30
	blameInterval = 2 * time.Second
)

func newNodeState() *nodeState {
	return &nodeState{blameLimiter: rate.NewLimiter(rate.Every(blameInterval), blameBurst)}
}

// overRateResetAfter is the time without excess after which another excess is a new one.
const overRateResetAfter = 30 * time.Second

// nodeByName returns a node's state, and creates it if necessary. The caller holds m.mu.
func (m *Monitor) nodeByName(name string) *nodeState {
	n := m.nodes[name]
	if n == nil {
		if len(m.nodes) >= maxNodes {
			clear(m.nodes)
		}
		n = newNodeState()
		m.nodes[name] = n
	}
	return n
}

// OnNodeEvent handles an event of a node's connection.
func (m *Monitor) OnNodeEvent(note nodeserver.Event) {
	now := m.Now()
	m.mu.Lock()
	n := m.nodeByName(note.Node)
	n.lastSeen = now
	switch note.Kind {
	case nodeserver.Connected:
		n.connected, n.stopped, n.certificateExpiresAt, n.renewalFailure = true, false, note.CertificateExpiresAt, ""
	case nodeserver.Disconnected, nodeserver.ShutDown:
		n.connected, n.disconnectedAt, n.stopped = false, now, note.Kind == nodeserver.ShutDown
	case nodeserver.CertificateRenewed:
		n.certificateExpiresAt, n.renewalFailure = note.CertificateExpiresAt, ""
	case nodeserver.RenewalFailed:
		n.renewalFailure = note.Reason
	case nodeserver.RateLimited, nodeserver.Reported:
	}
	m.mu.Unlock()
	switch note.Kind {
	case nodeserver.Connected:
		m.markResolved(telemetryLost, newNodeSubject(note.Node))
		m.saveNodeRecords()
	case nodeserver.ShutDown:
		m.saveNodeRecords()
	case nodeserver.RateLimited:
		m.handleRateLimited(note.Node, now)
	case nodeserver.Reported:
		m.handleNodeReport(note, now)
	case nodeserver.Disconnected, nodeserver.CertificateRenewed, nodeserver.RenewalFailed:
	}
}

// handleRateLimited reports a lasting excess of the rate.
func (m *Monitor) handleRateLimited(name string, now time.Time) {
	m.mu.Lock()
	n := m.nodeByName(name)
	if n.lastRateLimited.IsZero() || now.Sub(n.lastRateLimited) > overRateResetAfter {
		n.overRateSince = now
	}
	n.lastRateLimited = now
	first := n.overRateSince
	m.mu.Unlock()
	if lasts := now.Sub(first); lasts >= m.Timing.OverRateAfter {
		m.reportCondition(telemetryCondition{
			kind: nodeOverRate, subject: newNodeSubject(name), node: name, causedBy: name,
			since: first, reasons: []string{
				fmt.Sprintf("Node %s has exceeded its detection rate limit (`nodes: rate` in stanch.yaml) for %s.", name,
					duration.FormatApprox(lasts)),
			},
		})
	}
}

// handleNodeReport evaluates a node's health report. A report is untrusted: it is limited, and used only against the
// node itself.
func (m *Monitor) handleNodeReport(note nodeserver.Event, now time.Time) {
	if note.ClockSkew != nil {
		m.checkClock(note.Node, *note.ClockSkew)
	}
	if len(note.Status) == 0 {
		return
	}
	var report agent.StatusReport
	if err := json.Unmarshal(note.Status, &report); err != nil {
		m.Log.Warn("parse the health report of a node", "node", note.Node, "error", err)
		return
	}
	m.mu.Lock()
	n := m.nodeByName(note.Node)
	before := n.lastReport
	n.lastReport = &report
	off := n.updateKnownHooks(report.ProbeStatus)
	blind := n.wasWatching && report.ProbeStatus.LoadedAt.IsZero()
	m.mu.Unlock()
	m.checkSensorBlind(note.Node, report, off, blind)
	m.reportDrops(note.Node, before, report, now)
	m.reportSpoofedCgroups(note.Node, report)
}

// maxSpoofedCgroups is the maximum number of reported cgroups per node.
const maxSpoofedCgroups = 5

// reportSpoofedCgroups reports cgroups that have the name of a container that was to be contained.
func (m *Monitor) reportSpoofedCgroups(name string, r agent.StatusReport) {
	if len(r.SpoofedCgroups) == 0 {
		m.markResolved(spoofedCgroup, newNodeSubject(name))
		return
	}
	var reasons []string
	since := r.SpoofedCgroups[0].FirstSeen
	for _, d := range r.SpoofedCgroups[:min(len(r.SpoofedCgroups), maxSpoofedCgroups)] {
		others := strings.Join(d.SpoofedPaths[:min(len(d.SpoofedPaths), maxSpoofedCgroups)], ", ")
		what := fmt.Sprintf("On node %s, %s is in %s. These cgroups have the same name: %s.", name, detail(d.TargetID),
			detail(strings.Join(d.GenuinePaths, ", ")), detail(others))
		if len(d.GenuinePaths) == 0 {
			what = fmt.Sprintf(
				"On node %s, several cgroups have the same name as %s. The node detected nothing in any of them, so "+
					"it was not contained there: %s.", name, detail(d.TargetID), detail(others))
		}
		reasons = append(reasons, what)
		if d.FirstSeen.Before(since) {
			since = d.FirstSeen
		}
	}
	m.reportCondition(telemetryCondition{
		kind: spoofedCgroup, subject: newNodeSubject(name), node: name, causedBy: name,
		since: since, reasons: reasons,
	})
}

// maxHooks is the maximum number of hooks of a node.
const maxHooks = 100

// updateKnownHooks records the attached hooks, and returns those that were attached once and are not now: a sensor that
// restarted without a hook reports that from its first message on. A hook that the kernel never supported is reported
// by `stanch doctor`. The caller holds m.mu.
func (n *nodeState) updateKnownHooks(s probe.Status) []probe.HookStatus {
	if !s.LoadedAt.IsZero() {
		n.wasWatching = true
	}
	var off []probe.HookStatus
	for _, h := range s.Hooks[:min(len(s.Hooks), maxHooks)] {
		name := string(h.Hook)
		switch {
		case !h.Enabled && n.knownHooks[name]:
			off = append(off, h)
		case h.Enabled && len(n.knownHooks) < maxHooks:
			if n.knownHooks == nil {
				n.knownHooks = map[string]bool{}
			}
			n.knownHooks[name] = true
		}
	}
	return off
}

// checkClock reports a wrong clock; nothing is corrected.
func (m *Monitor) checkClock(name string, c nodeserver.ClockSkew) {
	off := c.Offset.Abs() - c.MaxError // the certain part
	if off < m.Timing.MaxClockSkew {
		m.markResolved(clockSkew, newNodeSubject(name))
		return
	}
	direction := "ahead of"
	if c.Offset < 0 {
		direction = "behind"
	}
	m.reportCondition(telemetryCondition{
		kind: clockSkew, subject: newNodeSubject(name), node: name, causedBy: name,
		reasons: []string{
			fmt.Sprintf("The timestamps of node %s are off by %s: its clock is %s the gateway's (± %s).", name,
				duration.FormatApprox(c.Offset.Abs()), direction, duration.FormatApprox(c.MaxError)),
		},
	})
}

// checkSensorBlind reports a sensor that no longer observes the kernel.
func (m *Monitor) checkSensorBlind(name string, r agent.StatusReport, off []probe.HookStatus, blind bool) {
	var reasons []string
	if r.Heartbeat.Failing {
		last := "never since it started"
		if !r.Heartbeat.LastReceived.IsZero() {
			last = "last received at " + r.Heartbeat.LastReceived.UTC().Format(time.RFC3339)
		}
		reasons = append(reasons, fmt.Sprintf(
			"The sensor on node %s sent %d heartbeats and received none of them from the kernel (%s).", name,
			r.Heartbeat.ConsecutiveMisses, last))
		if r.Heartbeat.FailureReason != "" {
			reasons = append(reasons, "The sensor reports: "+detail(r.Heartbeat.FailureReason))
		}
	}
	for _, h := range off {
		reasons = append(reasons, fmt.Sprintf("The hook %s on node %s was attached and is now detached: %s.",
			detail(string(h.Hook)), name, detail(h.Reason)))
	}
	if blind {
		reasons = append(reasons, fmt.Sprintf("The sensor on node %s no longer monitors the kernel.", name))
	}
	if len(reasons) == 0 {
		m.markResolved(sensorBlind, newNodeSubject(name))
		return
	}
	reported := m.reportCondition(telemetryCondition{
		kind: sensorBlind, subject: newNodeSubject(name), node: name,
		causedBy: name, since: r.Heartbeat.LastReceived, reasons: reasons,
	})
	if !reported {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodeByName(name)
	for _, h := range off {
		if h.Reason == probe.ReasonDisabled {
			delete(n.knownHooks, string(h.Hook)) // intentional, and reported once
		}
	}
}

const (
	// maxInitialDropAge is the maximum age of drops that a gateway reports when it first sees the node.
	maxInitialDropAge = 15 * time.Minute
	// maxBlamedContainers is the maximum number of containers that are named for one drop.
	maxBlamedContainers = 5
)

// reportDrops reports events that were lost since the node's last report, and their cause.
func (m *Monitor) reportDrops(name string, before *agent.StatusReport, r agent.StatusReport, now time.Time) {
	m.mu.Lock()
	n := m.nodeByName(name)
	if !n.reportedDrops.CountingSince.Equal(r.Drops.CountingSince) {
		n.reportedDrops = agent.DropStats{CountingSince: r.Drops.CountingSince} // counters of a new process
		if before == nil && now.Sub(r.Drops.LastDropAt) > maxInitialDropAge {
			n.reportedDrops = r.Drops // reported before this gateway knew the node
		}
	}
	old := n.reportedDrops
	m.mu.Unlock()
	events, spool := counterIncrease(r.Drops.KernelEvents, old.KernelEvents), counterIncrease(r.Drops.SpooledDetections,
		old.SpooledDetections)
	if events+spool == 0 {
		return
	}
	var reasons []string
	if events > 0 {
		reasons = append(reasons, fmt.Sprintf("%d events were lost on node %s since %s%s.", events, name,
			r.Drops.EpisodeStart.UTC().Format(time.RFC3339), dropCauses(r)))
	}
	if spool > 0 {
		reasons = append(reasons, fmt.Sprintf(
			"%d detections were lost on node %s: its spool was full, or they were too large to be sent.", spool, name))
	}
	if names := m.reportBlamedContainers(name, old, r, events); len(names) > 0 {
		reasons = append(reasons, "Most of them were produced by "+strings.Join(names, ", ")+".")
	}
	severity := sensors.Severity("")
	if spool > 0 {
		severity = sensors.SeverityHigh // these events were already evaluated, and mattered
	}
	reported := m.reportCondition(telemetryCondition{
		kind: eventsDropped, subject: newNodeSubject(name), node: name,
		causedBy: name, since: r.Drops.EpisodeStart, count: clampInt(events + spool), severity: severity, reasons: reasons,
	})
	if reported { // otherwise it is added to the next report
		m.mu.Lock()
		m.nodeByName(name).reportedDrops = r.Drops
		m.mu.Unlock()
	}
}

// reportBlamedContainers reports each container that produced at least a tenth of the lost events, and returns their
// names with their numbers of events.
func (m *Monitor) reportBlamedContainers(name string, old agent.DropStats, r agent.StatusReport,
	events uint64,
) (names []string) {
	for _, b := range r.Drops.TopSources[:min(len(r.Drops.TopSources), 20)] {
		had := uint64(0)
		if i := slices.IndexFunc(old.TopSources, func(o agent.DropSource) bool {
			return o.Cgroup == b.Cgroup && o.Container.ID == b.Container.ID
		}); i >= 0 {
			had = old.TopSources[i].Dropped
		}
		more := counterIncrease(b.Dropped, had)
		if more == 0 || len(names) >= maxBlamedContainers || more*10 < events {
			continue
		}
		names = append(names, fmt.Sprintf("%s (%d)", describeDropSource(b), more))
		if b.Container.ID == "" && b.Container.Pod.UID == "" {
			continue
		}
		m.reportCondition(telemetryCondition{
			kind: eventsFlooded, container: b.Container, node: name, sourceNode: name, causedBy: name, count: clampInt(more),
			since: r.Drops.EpisodeStart,
			reasons: []string{fmt.Sprintf(
				"%d events of this container were lost on node %s since %s: it produced more than the sensor could process.", more,
				name, r.Drops.EpisodeStart.UTC().Format(time.RFC3339))},
		})
	}
	return names
}

// dropCauses returns why events were lost.
func dropCauses(r agent.StatusReport) string {
	var out []string
	for _, why := range []string{"alerts ring full", "telemetry ring full", "no scratch buffer", "undecodable"} {
		if r.ProbeStatus.Drops[why] > 0 {
			out = append(out, why)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, ", ") + ")"
}

func describeDropSource(b agent.DropSource) string {
	c := b.Container
	switch {
	case c.Pod.Name != "":
		return fmt.Sprintf("%s/%s container %s", detail(c.Pod.Namespace), detail(c.Pod.Name),
			detail(c.Name))
	case c.ID != "":
		return "container " + detail(c.ID[:min(12, len(c.ID))])
	}
	return "cgroup " + detail(b.Cgroup)
}

// detailRunes is how much of a node's texts incidents show: a cgroup's path up to the pod's UID fits.
const detailRunes = 120

// detail returns a text from a node, which may be an attacker's, as reasons of incidents show it.
func detail(s string) string { return truncate.Text(s, detailRunes) }

func counterIncrease(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func clampInt(n uint64) int { return int(min(n, 1<<31-1)) }
