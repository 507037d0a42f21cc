package agent

import (
	"cmp"
	"slices"
	"time"

	"stanch/sensors"
)

// Losses is what was lost since this sensor started.
type Losses struct {
	// Began is when the counts began: when this process started.
	Began  time.Time `json:"began,omitzero"`
	Events uint64    `json:"events,omitempty"` // of the kernel's
	Spool  uint64    `json:"spool,omitempty"`  // detections that the spool refused: it was full, or they were too large
	// Since is when the present spell of losses began, and Last when it was noticed last that more were lost.
	Since time.Time `json:"since,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	// By are those who lost most, the worst first, at most ten.
	By []Loser `json:"by,omitempty"`
}

// Loser is whose events were lost.
type Loser struct {
	Container sensors.Container `json:"container,omitzero"`
	Cgroup    string            `json:"cgroup,omitempty"`
	Lost      uint64            `json:"lost"`
}

// Report is what a node tells the gateway about itself.
type Report struct {
	Health
	Spooled int    `json:"spooled"`
	Dropped uint64 `json:"spool_dropped"`
	Lost    Losses `json:"lost,omitzero"`
}

const (
	maxLosers = 10
	// spell is after how long without a loss the next one begins a new spell.
	spell = 5 * time.Minute
)

// losses follows what is lost. The caller holds a.counting.
func (a *Agent) losses(now time.Time, drops map[string]uint64, spool uint64) Losses {
	l := &a.lost
	if l.Began.IsZero() {
		l.Began = now
	}
	total := uint64(0)
	for _, n := range drops {
		total += n
	}
	if total == l.Events && spool == l.Spool {
		return *l
	}
	if l.Last.IsZero() || now.Sub(l.Last) > spell {
		l.Since = cmp.Or(a.looked, l.Began)
	}
	l.Events, l.Spool, l.Last = total, spool, now
	l.By = a.losers()
	return *l
}

// losers names who lost most, as far as their cgroups are still known.
func (a *Agent) losers() []Loser {
	var out []Loser
	if a.Probe == nil {
		return nil
	}
	for _, each := range a.Probe.Losers() {
		out = append(out, Loser{Container: sensors.Container{CgroupID: each.Cgroup, CgroupPath: each.Path}, Cgroup: each.Path, Lost: each.Lost})
	}
	slices.SortFunc(out, func(x, y Loser) int { return cmp.Compare(y.Lost, x.Lost) })
	out = out[:min(len(out), maxLosers)]
	for i := range out {
		if a.Resolver == nil {
			continue
		}
		c, err := a.Resolver.Resolve(out[i].Container.CgroupID)
		if err != nil {
			a.complain("name the container that lost events", err)
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
