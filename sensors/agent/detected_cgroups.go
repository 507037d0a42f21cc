package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/containermeta"
	"stanch/sensors/durablefile"
)

// detectedCgroups records in which cgroups this node detected something of a target. The kernel reported their IDs
// with the events, so an attacker cannot substitute another cgroup. A cgroup ID is never reused until the next boot.
type detectedCgroups struct {
	mu          sync.Mutex
	path        string
	bootID      string
	byTarget    map[string][]containermeta.NamedCgroup // the cgroups of each target, the latest first
	targetOrder []string                               // the targets, the oldest first
	// trustRank ranks a cgroup: the lowest rank is evicted first. Nil ranks all cgroups equally.
	trustRank func(containermeta.NamedCgroup) int
}

// cgroupTrustRanker ranks a cgroup by facts that only root controls: 0 if it is gone, 1 if another user created it, 2
// if root created it. A user with a delegated cgroup can create cgroups that are named after any container, and cause
// detections in them.
func cgroupTrustRanker(root string) func(containermeta.NamedCgroup) int {
	return func(g containermeta.NamedCgroup) int {
		var st unix.Stat_t
		switch err := unix.Stat(filepath.Join(root, g.Path), &st); {
		case err != nil || st.Ino != g.CgroupID:
			return 0
		case st.Uid != 0:
			return 1
		}
		return 2
	}
}

const (
	maxDetectedTargets  = 4096 // maximum number of targets
	maxCgroupsPerTarget = 8    // maximum number of cgroups per target
)

// detectedCgroupsFile is the content of the file. The cgroup IDs are valid for one boot.
type detectedCgroupsFile struct {
	BootID   string                                 `json:"boot_id"`
	ByTarget map[string][]containermeta.NamedCgroup `json:"by_target"`
}

func openDetectedCgroups(dir, boot string) (*detectedCgroups, error) {
	s := &detectedCgroups{bootID: boot, byTarget: map[string][]containermeta.NamedCgroup{}}
	if dir == "" {
		return s, nil
	}
	s.path = filepath.Join(dir, "sightings.json")
	raw, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the cgroups of detected containers: %w", err)
	}
	var old detectedCgroupsFile
	if json.Unmarshal(raw, &old) != nil || old.BootID != boot || old.ByTarget == nil {
		return s, nil //nolint:nilerr // of another boot, or damaged: later detections fill it again
	}
	s.byTarget = old.ByTarget
	for target := range s.byTarget {
		s.targetOrder = append(s.targetOrder, target)
	}
	return s, nil
}

// record adds the cgroups of a detection's container, and writes the file if something changed.
func (s *detectedCgroups) record(c *sensors.Container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	if c.ID != "" && c.CgroupID != 0 {
		changed = s.add("container:"+c.ID, containermeta.NamedCgroup{CgroupID: c.CgroupID, Path: c.CgroupPath})
	}
	if at := containermeta.ParseCgroupPath(c.CgroupPath).PodPath; c.Pod.UID != "" && c.PodCgroupID != 0 && at != "" {
		changed = s.add("pod:"+c.Pod.UID, containermeta.NamedCgroup{CgroupID: c.PodCgroupID, Path: at}) || changed
	}
	if !changed || s.path == "" {
		return nil
	}
	raw, err := json.Marshal(detectedCgroupsFile{s.bootID, s.byTarget})
	if err != nil {
		return fmt.Errorf("write the cgroups of detected containers: %w", err)
	}
	// The cgroup IDs end with the boot, so nothing is left to read after a power loss.
	if err := durablefile.WriteRecomputable(s.path, raw, 0o600); err != nil {
		return fmt.Errorf("write the cgroups of detected containers: %w", err)
	}
	return nil
}

// add records a cgroup and reports whether it was new. The caller holds s.mu.
func (s *detectedCgroups) add(target string, g containermeta.NamedCgroup) bool {
	known, ok := s.byTarget[target]
	if ok { // the target that was detected last is evicted last
		if i := slices.Index(s.targetOrder, target); i >= 0 {
			s.targetOrder = slices.Delete(s.targetOrder, i, i+1)
		}
	}
	s.targetOrder = append(s.targetOrder, target)
	if slices.Contains(known, g) {
		return false
	}
	s.byTarget[target] = s.limitCgroups(append([]containermeta.NamedCgroup{g}, known...))
	for len(s.targetOrder) > maxDetectedTargets {
		i := s.leastTrustedIndex()
		delete(s.byTarget, s.targetOrder[i])
		s.targetOrder = slices.Delete(s.targetOrder, i, i+1)
	}
	return true
}

// evictionSampleSize is how many of the oldest targets are compared to evict one.
const evictionSampleSize = 64

// leastTrustedIndex returns the index of the target to evict among the oldest ones, preferably one without an existing
// cgroup that root created. A user with a delegated cgroup can create any number of those.
func (s *detectedCgroups) leastTrustedIndex() int {
	least, lowest := 0, 3
	for i := 0; s.trustRank != nil && i < min(evictionSampleSize, len(s.targetOrder)); i++ {
		rank := 0
		for _, g := range s.byTarget[s.targetOrder[i]] {
			rank = max(rank, s.trustRank(g))
		}
		if rank < lowest {
			least, lowest = i, rank
		}
	}
	return least
}

// limitCgroups evicts one cgroup if there are too many: the oldest, and so the last, of those with the lowest rank.
func (s *detectedCgroups) limitCgroups(groups []containermeta.NamedCgroup) []containermeta.NamedCgroup {
	if len(groups) <= maxCgroupsPerTarget {
		return groups
	}
	last, lowest := len(groups)-1, 0
	for i := last; s.trustRank != nil && i >= 0; i-- {
		if rank := s.trustRank(groups[i]); i == last || rank < lowest {
			last, lowest = i, rank
		}
	}
	return slices.Delete(groups, last, last+1)
}

func (s *detectedCgroups) cgroupsOf(target string) []containermeta.NamedCgroup {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.byTarget[target])
}

// SpoofedCgroup describes cgroups that use the name of a container or pod, but in which the node did not detect that
// target.
type SpoofedCgroup struct {
	TargetID     string   `json:"target"`
	GenuinePaths []string `json:"genuine_paths,omitempty"` // genuine cgroups; empty if unknown
	SpoofedPaths []string `json:"spoofed_paths"`
	// FirstSeen is when the first spoofed cgroup was noticed, and LastSeen when one was noticed last.
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last"`
}

// spoofedCgroups are the recently noticed spoofed cgroups.
type spoofedCgroups struct {
	searching atomic.Bool
	mu        sync.Mutex
	byTarget  map[string]SpoofedCgroup
}

const (
	// spoofRetention is how long a spoofed cgroup is reported after it was last noticed.
	spoofRetention    = 10 * time.Minute
	maxSpoofedTargets = 64 // maximum number of targets
	maxSpoofedPaths   = 8  // maximum number of paths per target
)

func (d *spoofedCgroups) beginSearch() bool { return d.searching.CompareAndSwap(false, true) }
func (d *spoofedCgroups) endSearch()        { d.searching.Store(false) }

// record stores the result of a search.
func (d *spoofedCgroups) record(target string, own, all []containermeta.NamedCgroup) {
	now := time.Now()
	found := SpoofedCgroup{TargetID: target, FirstSeen: now, LastSeen: now}
	for _, b := range all {
		switch {
		case slices.Contains(own, b):
			found.GenuinePaths = append(found.GenuinePaths, b.Path)
		case len(found.SpoofedPaths) < maxSpoofedPaths:
			found.SpoofedPaths = append(found.SpoofedPaths, b.Path)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byTarget == nil {
		d.byTarget = map[string]SpoofedCgroup{}
	}
	if len(found.SpoofedPaths) == 0 {
		return
	}
	if old, ok := d.byTarget[target]; ok {
		found.FirstSeen = old.FirstSeen
	} else if len(d.byTarget) >= maxSpoofedTargets {
		return
	}
	d.byTarget[target] = found
}

// list returns the recently noticed spoofed cgroups, and forgets older ones.
func (d *spoofedCgroups) list() []SpoofedCgroup {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []SpoofedCgroup
	for target, seen := range d.byTarget {
		if time.Since(seen.LastSeen) > spoofRetention {
			delete(d.byTarget, target)
			continue
		}
		out = append(out, seen)
	}
	slices.SortFunc(out, func(a, b SpoofedCgroup) int { return a.FirstSeen.Compare(b.FirstSeen) })
	return out
}
