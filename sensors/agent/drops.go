package agent

import (
	"cmp"
	"slices"
	"time"

	"stanch/sensors"
)

// DropStats counts what was dropped since this sensor started.
type DropStats struct {
	// CountingSince is when counting started: shortly after this process started.
	CountingSince     time.Time `json:"counting_since,omitzero"`
	KernelEvents      uint64    `json:"events,omitempty"`             // kernel events
	SpooledDetections uint64    `json:"spooled_detections,omitempty"` // dropped by the spool: full, or too large
	// EpisodeStart is when the current episode of drops began. LastDropAt is when a new drop was noticed last.
	EpisodeStart time.Time `json:"episode_start,omitzero"`
	LastDropAt   time.Time `json:"last,omitzero"`
	// TopSources are the cgroups that lost the most events, at most ten, in descending order.
	TopSources []DropSource `json:"top_sources,omitempty"`
}

// DropSource is a cgroup whose events were dropped. Container is zero if the cgroup is not a container.
type DropSource struct {
	Container sensors.Container `json:"container,omitzero"`
	Cgroup    string            `json:"cgroup,omitempty"`
	Dropped   uint64            `json:"dropped"`
}

// StatusReport is the complete status that a node sends to the gateway.
type StatusReport struct {
	Health
	Spooled      int       `json:"spooled"`
	SpoolDropped uint64    `json:"spool_dropped"`
	Drops        DropStats `json:"drops,omitzero"`
}

const (
	maxDropSources = 10
	// dropEpisodeGap is how long a period without drops must be before the next drop begins a new episode.
	dropEpisodeGap = 5 * time.Minute
)

// updateDrops updates the counts from the counters of the probe and the spool. The caller holds a.dropsMu.
func (a *Agent) updateDrops(now time.Time, drops map[string]uint64, spool uint64) DropStats {
	l := &a.drops
	if l.CountingSince.IsZero() {
		l.CountingSince = now
	}
	total := uint64(0)
	for _, n := range drops {
		total += n
	}
	if total == l.KernelEvents && spool == l.SpooledDetections {
		return *l
	}
	if l.LastDropAt.IsZero() || now.Sub(l.LastDropAt) > dropEpisodeGap {
		l.EpisodeStart = cmp.Or(a.dropsCheckedAt, l.CountingSince)
	}
	l.KernelEvents, l.SpooledDetections, l.LastDropAt = total, spool, now
	l.TopSources = a.topDropSources()
	return *l
}

// topDropSources returns the cgroups that lost the most events, if they are still known.
func (a *Agent) topDropSources() []DropSource {
	var out []DropSource
	if a.Probe == nil {
		return nil
	}
	for _, each := range a.Probe.DropSources() {
		out = append(out, DropSource{
			Container: sensors.Container{CgroupID: each.Cgroup, CgroupPath: each.Path},
			Cgroup:    each.Path, Dropped: each.Dropped,
		})
	}
	slices.SortFunc(out, func(x, y DropSource) int { return cmp.Compare(y.Dropped, x.Dropped) })
	out = out[:min(len(out), maxDropSources)]
	for i := range out {
		if a.Resolver == nil {
			continue
		}
		c, err := a.Resolver.Resolve(out[i].Container.CgroupID)
		if err != nil {
			a.logThrottled("identify the container that lost events", err)
		}
		if c.ID == "" && c.Pod.UID == "" {
			out[i].Container = sensors.Container{}
			continue
		}
		c.Pod.Annotations = nil // annotations can be large and are not needed here
		out[i].Container = c
	}
	return out
}
