package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
)

// targetCgroups is the location of a target on this node: its cgroups, the most recently detected one first.
type targetCgroups struct {
	refs []containermeta.NamedCgroup
	dirs []string // absolute paths
	pids []int
}

func (p targetCgroups) cgroupIDs() []uint64 {
	var ids []uint64
	for _, g := range p.refs {
		ids = append(ids, g.CgroupID)
	}
	return ids
}

// add adds a cgroup and its processes.
func (p *targetCgroups) add(root string, g containermeta.NamedCgroup) error {
	if slices.Contains(p.cgroupIDs(), g.CgroupID) {
		return nil
	}
	dir := filepath.Join(root, g.Path)
	pids, err := containermeta.ListPIDs(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", containermeta.ErrNotFound, err)
	}
	p.refs, p.dirs, p.pids = append(p.refs, g), append(p.dirs, dir), append(p.pids, pids...)
	return nil
}

// spoofSearchTimeout limits a search for spoofed cgroups.
const spoofSearchTimeout = 5 * time.Second

// locateTarget returns the cgroups of a target. Anyone who can create a cgroup chooses its name. Therefore, if this
// node detected the target itself, only the cgroups of these detections count.
func (a *Agent) locateTarget(ctx context.Context, t gatewayrpc.NodeTarget) (targetCgroups, error) {
	if a.Resolver == nil {
		return targetCgroups{}, wrapRefused(errors.New("this sensor has no container resolver"))
	}
	root := a.Resolver.CgroupRoot()
	var p targetCgroups
	for _, g := range a.detectedCgroups.cgroupsOf(t.ID()) {
		if path, err := a.Resolver.CgroupPathByID(g.CgroupID); err == nil && path == g.Path {
			if err := p.add(root, g); err != nil && !errors.Is(err, containermeta.ErrNotFound) {
				return targetCgroups{}, fmt.Errorf("find %s: %w", t.ID(), err)
			}
		}
	}
	if len(p.pids) > 0 {
		a.searchSpoofedCgroups(t, p.refs)
		return p, nil
	}
	bearers, err := a.Resolver.FindNamedCgroups(ctx, t.PodUID, t.ContainerID)
	if err != nil {
		return targetCgroups{}, fmt.Errorf("find %s: %w", t.ID(), err)
	}
	own := bearers
	if len(bearers) > 1 {
		if own = a.matchPreviousPath(t, bearers); len(own) == 0 {
			a.spoofedCgroups.record(t.ID(), nil, bearers)
			return targetCgroups{},
				wrapRefused(
					fmt.Errorf(
						"%d cgroups have the name of %s, and this node detected nothing in any of them: %s; remove those that the runtime did not create",
						len(bearers),
						t.ID(),
						joinPaths(bearers),
					),
				)
		}
		a.spoofedCgroups.record(t.ID(), own, bearers)
	}
	p = targetCgroups{}
	for _, g := range own {
		if err := p.add(root, g); err != nil {
			return targetCgroups{}, fmt.Errorf("find %s: %w", t.ID(), err)
		}
	}
	if len(p.refs) == 0 {
		return targetCgroups{}, fmt.Errorf("find %s: %w", t.ID(), containermeta.ErrNotFound)
	}
	return p, nil
}

// matchPreviousPath returns the cgroups whose path is one where the target was detected: a container that restarts
// with the same ID gets a new cgroup at the same path.
func (a *Agent) matchPreviousPath(t gatewayrpc.NodeTarget,
	bearers []containermeta.NamedCgroup,
) []containermeta.NamedCgroup {
	var own []containermeta.NamedCgroup
	seen := a.detectedCgroups.cgroupsOf(t.ID())
	for _, b := range bearers {
		if slices.ContainsFunc(seen, func(s containermeta.NamedCgroup) bool { return s.Path == b.Path }) {
			own = append(own, b)
		}
	}
	return own
}

func joinPaths(bearers []containermeta.NamedCgroup) string {
	var out []string
	for _, b := range bearers[:min(len(bearers), maxSpoofedPaths)] {
		out = append(out, b.Path)
	}
	return strings.Join(out, ", ")
}

// searchSpoofedCgroups searches for other cgroups with the target's name, in the background, because the search takes
// longer than a lock.
func (a *Agent) searchSpoofedCgroups(t gatewayrpc.NodeTarget, own []containermeta.NamedCgroup) {
	if !a.spoofedCgroups.beginSearch() {
		return
	}
	go func() {
		defer a.spoofedCgroups.endSearch()
		ctx, cancel := context.WithTimeout(context.Background(), spoofSearchTimeout)
		defer cancel()
		bearers, err := a.Resolver.FindNamedCgroups(ctx, t.PodUID, t.ContainerID)
		if err != nil {
			a.logThrottled("find other cgroups with the same name", err)
			return
		}
		a.spoofedCgroups.record(t.ID(), own, bearers)
	}()
}
