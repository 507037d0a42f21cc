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
	"stanch/sensors/identity"
)

// sightings remembers in which cgroups this node detected something of a target. The kernel gave their ids with the
// event, so nobody can put another cgroup in their place; an id is never used twice while the machine runs.
type sightings struct {
	mu    sync.Mutex
	file  string
	boot  string
	seen  map[string][]identity.Bearer // by target, the latest first
	order []string                     // of targets, the oldest first
	// trust ranks a cgroup: what ranks lowest is forgotten first. Nil ranks all alike.
	trust func(identity.Bearer) int
}

// trustOf ranks a cgroup by what nobody but root decides: one that is gone, one that another user made, one of root's. Any
// user with a cgroup of their own can make others in it that bear a container's id, and be detected there.
func trustOf(root string) func(identity.Bearer) int {
	return func(g identity.Bearer) int {
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
	maxSighted = 4096 // targets
	maxGroups  = 8    // cgroups of one
)

// sighted is the file's content: ids are those of one boot.
type sighted struct {
	Boot string                       `json:"boot"`
	Seen map[string][]identity.Bearer `json:"seen"`
}

func openSightings(dir, boot string) (*sightings, error) {
	s := &sightings{boot: boot, seen: map[string][]identity.Bearer{}}
	if dir == "" {
		return s, nil
	}
	s.file = filepath.Join(dir, "sightings.json")
	raw, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read where containers were detected: %w", err)
	}
	var old sighted
	if json.Unmarshal(raw, &old) != nil || old.Boot != boot || old.Seen == nil {
		return s, nil //nolint:nilerr // of another boot, or damaged: what is detected next fills it again
	}
	s.seen = old.Seen
	for target := range s.seen {
		s.order = append(s.order, target)
	}
	return s, nil
}

// note remembers the cgroups of a detection's container.
func (s *sightings) note(c *sensors.Container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	if c.ID != "" && c.CgroupID != 0 {
		changed = s.put("container:"+c.ID, identity.Bearer{CgroupID: c.CgroupID, Path: c.CgroupPath})
	}
	if at := identity.ParsePath(c.CgroupPath).PodPath; c.Pod.UID != "" && c.PodCgroupID != 0 && at != "" {
		changed = s.put("pod:"+c.Pod.UID, identity.Bearer{CgroupID: c.PodCgroupID, Path: at}) || changed
	}
	if !changed || s.file == "" {
		return nil
	}
	raw, err := json.Marshal(sighted{s.boot, s.seen})
	if err != nil {
		return fmt.Errorf("write where containers were detected: %w", err)
	}
	if err := os.WriteFile(s.file+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write where containers were detected: %w", err)
	}
	if err := os.Rename(s.file+".new", s.file); err != nil {
		return fmt.Errorf("write where containers were detected: %w", err)
	}
	return nil
}

// put notes one, and reports whether it was new. The caller holds s.mu.
func (s *sightings) put(target string, g identity.Bearer) bool {
	known, ok := s.seen[target]
	if ok { // what was detected last is forgotten last
		if i := slices.Index(s.order, target); i >= 0 {
			s.order = slices.Delete(s.order, i, i+1)
		}
	}
	s.order = append(s.order, target)
	if slices.Contains(known, g) {
		return false
	}
	s.seen[target] = s.bounded(append([]identity.Bearer{g}, known...))
	for len(s.order) > maxSighted {
		i := s.leastTrusted()
		delete(s.seen, s.order[i])
		s.order = slices.Delete(s.order, i, i+1)
	}
	return true
}

// forgetAmong is how many of the oldest targets are looked at to forget one.
const forgetAmong = 64

// leastTrusted returns which of the oldest targets to forget: one without a cgroup of root's that is still there, since
// any user with a cgroup of their own can make as many of these as they like.
func (s *sightings) leastTrusted() int {
	least, lowest := 0, 3
	for i := 0; s.trust != nil && i < min(forgetAmong, len(s.order)); i++ {
		rank := 0
		for _, g := range s.seen[s.order[i]] {
			rank = max(rank, s.trust(g))
		}
		if rank < lowest {
			least, lowest = i, rank
		}
	}
	return least
}

// bounded forgets one of too many cgroups: of those that rank lowest the oldest, which stands last.
func (s *sightings) bounded(groups []identity.Bearer) []identity.Bearer {
	if len(groups) <= maxGroups {
		return groups
	}
	last, lowest := len(groups)-1, 0
	for i := last; s.trust != nil && i >= 0; i-- {
		if rank := s.trust(groups[i]); i == last || rank < lowest {
			last, lowest = i, rank
		}
	}
	return slices.Delete(groups, last, last+1)
}

func (s *sightings) of(target string) []identity.Bearer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen[target])
}

// Decoy is a cgroup that bears the name of a container or pod and is not where that was detected.
type Decoy struct {
	Target string   `json:"target"`
	Own    []string `json:"own,omitempty"` // paths of the cgroups that count; none: nobody knows which
	Others []string `json:"others"`
	// Since is when it was noticed first, Last when it was seen last.
	Since time.Time `json:"since"`
	Last  time.Time `json:"last"`
}

// decoys are those that were seen of late.
type decoys struct {
	looking atomic.Bool
	mu      sync.Mutex
	seen    map[string]Decoy
}

const (
	// decoyMemory is for how long one is reported after it was seen last.
	decoyMemory = 10 * time.Minute
	maxDecoys   = 64 // targets
	maxNamed    = 8  // paths of one
)

func (d *decoys) begin() bool { return d.looking.CompareAndSwap(false, true) }
func (d *decoys) end()        { d.looking.Store(false) }

// note takes in what a search found.
func (d *decoys) note(target string, own, all []identity.Bearer) {
	now := time.Now()
	found := Decoy{Target: target, Since: now, Last: now}
	for _, b := range all {
		switch {
		case slices.Contains(own, b):
			found.Own = append(found.Own, b.Path)
		case len(found.Others) < maxNamed:
			found.Others = append(found.Others, b.Path)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen = map[string]Decoy{}
	}
	if len(found.Others) == 0 {
		return
	}
	if old, ok := d.seen[target]; ok {
		found.Since = old.Since
	} else if len(d.seen) >= maxDecoys {
		return
	}
	d.seen[target] = found
}

// list gives those that were seen of late.
func (d *decoys) list() []Decoy {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Decoy
	for target, seen := range d.seen {
		if time.Since(seen.Last) > decoyMemory {
			delete(d.seen, target)
			continue
		}
		out = append(out, seen)
	}
	slices.SortFunc(out, func(a, b Decoy) int { return a.Since.Compare(b.Since) })
	return out
}
