package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stanch/sensors/identity"
	"stanch/sensors/link"
)

// place is where a target is on this node: its cgroups, the one where it was detected last first.
type place struct {
	groups []identity.Bearer
	dirs   []string // absolute
	pids   []int
}

func (p place) cgroups() []uint64 {
	var ids []uint64
	for _, g := range p.groups {
		ids = append(ids, g.CgroupID)
	}
	return ids
}

// add takes a cgroup in, with its processes.
func (p *place) add(root string, g identity.Bearer) error {
	if slices.Contains(p.cgroups(), g.CgroupID) {
		return nil
	}
	dir := filepath.Join(root, g.Path)
	pids, err := identity.PIDs(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", identity.ErrNotFound, err)
	}
	p.groups, p.dirs, p.pids = append(p.groups, g), append(p.dirs, dir), append(p.pids, pids...)
	return nil
}

// decoyTime bounds a search for cgroups that bear somebody else's name.
const decoyTime = 5 * time.Second

// find says where a target is. Names in the cgroup tree are whoever's who may make a cgroup: where this node detected the
// target itself, only the cgroups in which it did count.
func (a *Agent) find(ctx context.Context, t link.NodeTarget) (place, error) {
	if a.Resolver == nil {
		return place{}, refused(errors.New("this sensor cannot tell containers apart"))
	}
	root := a.Resolver.CgroupRoot()
	var p place
	for _, g := range a.sightings.of(t.ID()) {
		if path, err := a.Resolver.PathOf(g.CgroupID); err == nil && path == g.Path {
			if err := p.add(root, g); err != nil && !errors.Is(err, identity.ErrNotFound) {
				return place{}, fmt.Errorf("find %s: %w", t.ID(), err)
			}
		}
	}
	if len(p.pids) > 0 {
		a.lookForDecoys(t, p.groups)
		return p, nil
	}
	bearers, err := a.Resolver.Bearers(ctx, t.PodUID, t.ContainerID)
	if err != nil {
		return place{}, fmt.Errorf("find %s: %w", t.ID(), err)
	}
	own := bearers
	if len(bearers) > 1 {
		if own = a.likeBefore(t, bearers); len(own) == 0 {
			a.decoys.note(t.ID(), nil, bearers)
			return place{}, refused(fmt.Errorf("%d cgroups bear the name of %s, and this node detected nothing in any of them: %s; remove those that are not the runtime's", len(bearers), t.ID(), paths(bearers)))
		}
		a.decoys.note(t.ID(), own, bearers)
	}
	p = place{}
	for _, g := range own {
		if err := p.add(root, g); err != nil {
			return place{}, fmt.Errorf("find %s: %w", t.ID(), err)
		}
	}
	if len(p.groups) == 0 {
		return place{}, fmt.Errorf("find %s: %w", t.ID(), identity.ErrNotFound)
	}
	return p, nil
}

// likeBefore gives those of several cgroups that stand where the target was detected: a container that restarts under
// the same id gets a new cgroup at the same path.
func (a *Agent) likeBefore(t link.NodeTarget, bearers []identity.Bearer) []identity.Bearer {
	var own []identity.Bearer
	seen := a.sightings.of(t.ID())
	for _, b := range bearers {
		if slices.ContainsFunc(seen, func(s identity.Bearer) bool { return s.Path == b.Path }) {
			own = append(own, b)
		}
	}
	return own
}

func paths(bearers []identity.Bearer) string {
	var out []string
	for _, b := range bearers[:min(len(bearers), maxNamed)] {
		out = append(out, b.Path)
	}
	return strings.Join(out, ", ")
}

// lookForDecoys notes which other cgroups bear a target's name. It takes longer than to lock, so nobody waits for it.
func (a *Agent) lookForDecoys(t link.NodeTarget, own []identity.Bearer) {
	if !a.decoys.begin() {
		return
	}
	go func() {
		defer a.decoys.end()
		ctx, cancel := context.WithTimeout(context.Background(), decoyTime)
		defer cancel()
		bearers, err := a.Resolver.Bearers(ctx, t.PodUID, t.ContainerID)
		if err != nil {
			a.complain("look for other cgroups of the same name", err)
			return
		}
		a.decoys.note(t.ID(), own, bearers)
	}()
}
