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
	"stanch/worker/gateway"
)

var _ gateway.HealthSink = (*Monitor)(nil)

// source is what is known of a foreign source: how regularly it speaks.
type source struct {
	first, last time.Time
	heard       int
	longest     time.Duration            // the longest gap between two words, until the silence that is being judged
	dropped     map[string]foreignCounts // by node
}

// foreignCounts is what a source that counts from its start said last.
type foreignCounts struct {
	total uint64
	at    time.Time
}

const (
	// regularFrom is after how many words, and regularFor over how long, a source is known to speak regularly.
	regularFrom = 20
	regularFor  = 10 * time.Minute
	// silence is how many times its longest gap a source must be silent, and silenceLeast at least.
	silence      = 6
	silenceLeast = 10 * time.Minute
	maxSources   = 1000
)

// ForeignSpoke is told that a source posted something, whatever it was.
func (m *Monitor) ForeignSpoke(name string) {
	now := m.Now()
	m.mu.Lock()
	s := m.sourceOf(name, now)
	if s.heard > 0 {
		s.longest = max(s.longest, now.Sub(s.last))
	}
	s.heard++
	s.last = now
	m.mu.Unlock()
	m.mended(foreignLost, sourceSubject(name))
}

// sourceOf gives a source, made if it is new. The caller holds m.mu.
func (m *Monitor) sourceOf(name string, now time.Time) *source {
	s := m.sources[name]
	if s == nil {
		if len(m.sources) >= maxSources {
			clear(m.sources)
		}
		s = &source{first: now, dropped: map[string]foreignCounts{}}
		m.sources[name] = s
	}
	return s
}

func sourceSubject(name string) sensors.Subject { return sensors.Subject{Kind: "Source", Name: name} }

// silent tells of sources that spoke regularly and no longer do.
func (m *Monitor) silent() {
	now := m.Now()
	m.mu.Lock()
	type lost struct {
		name string
		source
	}
	var all []lost
	for _, name := range slices.Sorted(maps.Keys(m.sources)) {
		s := *m.sources[name]
		if s.heard < regularFrom || s.last.Sub(s.first) < regularFor {
			continue
		}
		if quiet := now.Sub(s.last); quiet > max(silence*s.longest, silenceLeast) {
			all = append(all, lost{name, s})
		}
	}
	m.mu.Unlock()
	for _, l := range all {
		m.tell(condition{kind: foreignLost, subject: sourceSubject(l.name), since: l.last, reasons: []string{
			fmt.Sprintf("The source %s has been silent for %s. Before, its longest silence in %d words was %s.", l.name, duration.FormatApprox(now.Sub(l.last)), l.heard, duration.FormatApprox(l.longest)),
		}})
	}
}

// ForeignHealth takes what another sensor says about itself, and what the gateway could not read of it.
func (m *Monitor) ForeignHealth(_ context.Context, h integrations.SensorHealth) {
	if h.UndecodableEvents > 0 {
		m.tell(condition{kind: foreignUnread, subject: sourceSubject(h.Source), since: h.Time, count: clampInt(h.UndecodableEvents), reasons: []string{
			fmt.Sprintf("%d events of the source %s could not be read.", h.UndecodableEvents, h.Source), "The error was: " + clip(h.Message),
		}})
	}
	if h.Dropped == 0 {
		return
	}
	now := m.Now()
	more := h.Dropped
	if h.DroppedIsCumulative {
		m.mu.Lock()
		s := m.sourceOf(h.Source, now)
		before, known := s.dropped[h.Node]
		if len(s.dropped) >= maxSources {
			clear(s.dropped)
		}
		s.dropped[h.Node] = foreignCounts{h.Dropped, now}
		m.mu.Unlock()
		if known {
			more = rise(h.Dropped, before.total)
		}
		if more == 0 {
			return
		}
	}
	reasons := []string{fmt.Sprintf("The source %s lost %d events.", h.Source, more)}
	if h.Node != "" {
		reasons[0] = fmt.Sprintf("The source %s lost %d events on node %s.", h.Source, more, clip(h.Node))
	}
	if h.Message != "" {
		reasons = append(reasons, "It says: "+clip(h.Message))
	}
	m.tell(condition{kind: foreignDropped, subject: sourceSubject(h.Source), by: "source " + h.Source, since: h.Time, count: clampInt(more), reasons: reasons})
}
