package agent

import (
	"cmp"
	"slices"
	"time"

	"stanch/sensors"
)

// DropStats is what was lost since this sensor started.
type DropStats struct {
	// CountingSince is when the counts began: when this process started.
	CountingSince     time.Time `json:"counting_since,omitzero"`
	KernelEvents      uint64    `json:"events,omitempty"`             // of the kernel's
	SpooledDetections uint64    `json:"spooled_detections,omitempty"` // detections that the spool refused: it was full, or they were too large
	// EpisodeStart is when the present spell of losses began, and Last when it was noticed last that more were lost.
	EpisodeStart time.Time `json:"episode_start,omitzero"`
	LastDropAt   time.Time `json:"last,omitzero"`
	// TopSources are those who lost most, the worst first, at most ten.
	TopSources []DropSource `json:"top_sources,omitempty"`
}

// DropSource is whose events were lost.
type DropSource struct {
	Container sensors.Container `json:"container,omitzero"`
	Cgroup    string            `json:"cgroup,omitempty"`
	Dropped   uint64            `json:"dropped"`
}

// StatusReport is what a node tells the gateway about itself.
type StatusReport struct {
	Health
	Spooled      int       `json:"spooled"`
	SpoolDropped uint64    `json:"spool_dropped"`
	Drops        DropStats `json:"drops,omitzero"`
}

const (
	maxDropSources = 10
	// dropEpisodeGap is after how long without a loss the next one begins a new spell.
	dropEpisodeGap = 5 * time.Minute
)

// updateDrops follows what is lost. The caller holds a.counting.
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

// topDropSources names who lost most, as far as their cgroups are still known.
func (a *Agent) topDropSources() []DropSource {
	var out []DropSource
	if a.Probe == nil {
		return nil
	}
	for _, each := range a.Probe.DropSources() {
		out = append(out, DropSource{Container: sensors.Container{CgroupID: each.Cgroup, CgroupPath: each.Path}, Cgroup: each.Path, Dropped: each.Dropped})
	}
	slices.SortFunc(out, func(x, y DropSource) int { return cmp.Compare(y.Dropped, x.Dropped) })
	out = out[:min(len(out), maxDropSources)]
	for i := range out {
		if a.Resolver == nil {
			continue
		}
		c, err := a.Resolver.Resolve(out[i].Container.CgroupID)
		if err != nil {
			a.logThrottled("name the container that lost events", err)
		}
		if c.ID == "" && c.Pod.UID == "" {
			out[i].Container = sensors.Container{}
			continue
		}
		c.Pod.Annotations = nil // they can be large, and nobody asks for them here
		out[i].Container = c
	}
	return out
}
