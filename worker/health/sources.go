package health

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"stanch/sensors"
	"stanch/sensors/duration"
	"stanch/sensors/integrations"
	"stanch/worker/sourceserver"
)

var _ sourceserver.HealthSink = (*Monitor)(nil)

// sourceActivity is how regularly an external source sends messages.
type sourceActivity struct {
	firstMessageAt, lastMessageAt time.Time
	messageCount                  int
	longestGap                    time.Duration // longest gap between messages, without the current one
	// dropsByNode is the last report of a source that counts from its start.
	dropsByNode map[string]uint64
}

const (
	// A source is regular after minRegularMessages messages over at least minRegularDuration.
	minRegularMessages = 20
	minRegularDuration = 10 * time.Minute
	// A regular source is silent after silenceGapFactor times its longest gap, and after minSilence at least.
	silenceGapFactor = 6
	minSilence       = 10 * time.Minute
	maxSources       = 1000
)

// OnSourceMessage records that a source sent something readable.
func (m *Monitor) OnSourceMessage(name string) {
	now := m.Now()
	m.mu.Lock()
	s := m.sourceByName(name, now)
	if s.messageCount > 0 {
		s.longestGap = max(s.longestGap, now.Sub(s.lastMessageAt))
	}
	s.messageCount++
	s.lastMessageAt = now
	m.mu.Unlock()
	m.markResolved(sourceLost, newSourceSubject(name))
}

// sourceByName returns a source's state, and creates it if necessary. The caller holds m.mu.
func (m *Monitor) sourceByName(name string, now time.Time) *sourceActivity {
	s := m.sources[name]
	if s == nil {
		if len(m.sources) >= maxSources {
			clear(m.sources)
		}
		s = &sourceActivity{firstMessageAt: now, dropsByNode: map[string]uint64{}}
		m.sources[name] = s
	}
	return s
}

func newSourceSubject(name string) sensors.Subject {
	return sensors.Subject{Kind: "Source", Name: name}
}

// reportSilentSources reports regular sources that are silent.
func (m *Monitor) reportSilentSources() {
	now := m.Now()
	m.mu.Lock()
	type lost struct {
		name string
		sourceActivity
	}
	var all []lost
	for _, name := range slices.Sorted(maps.Keys(m.sources)) {
		s := *m.sources[name]
		if s.messageCount < minRegularMessages || s.lastMessageAt.Sub(s.firstMessageAt) < minRegularDuration {
			continue
		}
		if quiet := now.Sub(s.lastMessageAt); quiet > max(silenceGapFactor*s.longestGap, minSilence) {
			all = append(all, lost{name, s})
		}
	}
	m.mu.Unlock()
	for _, l := range all {
		m.reportCondition(telemetryCondition{
			kind: sourceLost, subject: newSourceSubject(l.name), since: l.lastMessageAt,
			reasons: []string{
				fmt.Sprintf("The source %s has sent nothing for %s. Before that, the longest gap between its %d messages was %s.",
					l.name,
					duration.FormatApprox(now.Sub(l.lastMessageAt)), l.messageCount, duration.FormatApprox(l.longestGap)),
			},
		})
	}
}

// OnSourceHealth handles another sensor's report about itself, and the gateway's decoding errors.
func (m *Monitor) OnSourceHealth(_ context.Context, h integrations.SensorHealth) {
	if h.UndecodableEvents > 0 {
		m.reportCondition(telemetryCondition{
			kind: sourceEventsUndecodable, subject: newSourceSubject(h.Source),
			since: h.Time, count: clampInt(h.UndecodableEvents), reasons: []string{
				fmt.Sprintf("%d events of the source %s could not be decoded.", h.UndecodableEvents, h.Source),
				"The error was: " + detail(h.Message),
			},
		})
	}
	if h.Dropped == 0 {
		return
	}
	now := m.Now()
	more := h.Dropped
	if h.DroppedIsCumulative {
		m.mu.Lock()
		s := m.sourceByName(h.Source, now)
		before, known := s.dropsByNode[h.Node]
		if len(s.dropsByNode) >= maxSources {
			clear(s.dropsByNode)
		}
		s.dropsByNode[h.Node] = h.Dropped
		m.mu.Unlock()
		if known {
			more = counterIncrease(h.Dropped, before)
		}
		if more == 0 {
			return
		}
	}
	reasons := []string{fmt.Sprintf("The source %s lost %d events.", h.Source, more)}
	if h.Node != "" {
		reasons[0] = fmt.Sprintf("The source %s lost %d events on node %s.", h.Source, more, detail(h.Node))
	}
	if h.Message != "" {
		reasons = append(reasons, "It reports: "+detail(h.Message))
	}
	m.reportCondition(telemetryCondition{
		kind: sourceEventsDropped, subject: newSourceSubject(h.Source),
		causedBy: "source " + h.Source, since: h.Time, count: clampInt(more), reasons: reasons,
	})
}
