// Package identity finds out whose a cgroup is: container, pod, image digest, workload.
//
// It refuses to guess: what the runtime does not say stays empty, and a cgroup whose runtime is silent is still a
// container with an id and a path. It needs no API server and no credentials, only the cgroup tree and, where
// there is one, the runtime's CRI socket.
package containermeta

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"stanch/sensors"
)

// Options says where to look. The zero value looks in the usual places.
type Options struct {
	// CgroupRoot is the mount point of cgroup v2. Empty: found in /proc/self/mountinfo.
	CgroupRoot string
	// CRISocket is the runtime's socket. Empty: the first of the usual ones that exists; "none": no runtime is asked.
	CRISocket string
	// RuncRoot is where runc keeps its state. Empty: /run/runc.
	RuncRoot string
	// Capacity bounds the cache of containers. Zero: 4096.
	Capacity int
	// NegativeTTL is how long a runtime's "not found" or failure is believed. Zero: 1s.
	NegativeTTL time.Duration
	// RuntimeTimeout bounds one question to the runtime. Zero: 500ms.
	RuntimeTimeout time.Duration
}

// ErrNotFound says that no such cgroup, container or pod is on this node.
var ErrNotFound = errors.New("not found on this node")

// Resolver answers whose a cgroup is. Its methods may be called from several goroutines.
type Resolver struct {
	opt       Options
	criClient *criClient

	mu    sync.Mutex
	cache map[uint64]*list.Element // of *answer, by cgroup id
	lru   *list.List
	now   func() time.Time
}

// cacheEntry is what is known of one cgroup.
type cacheEntry struct {
	id        uint64
	container sensors.Container
	err       error
	expiresAt time.Time // zero: for good
}

// Open makes a resolver. A runtime that does not answer is not an error: it is asked again later (see Runtime).
func Open(opt Options) (*Resolver, error) {
	if opt.CgroupRoot == "" {
		root, err := FindCgroupRoot()
		if err != nil {
			return nil, err
		}
		opt.CgroupRoot = root
	}
	opt.CgroupRoot = strings.TrimRight(opt.CgroupRoot, "/")
	if opt.Capacity <= 0 {
		opt.Capacity = 4096
	}
	if opt.NegativeTTL <= 0 {
		opt.NegativeTTL = time.Second
	}
	if opt.RuntimeTimeout <= 0 {
		opt.RuntimeTimeout = 500 * time.Millisecond
	}
	if opt.RuncRoot == "" {
		opt.RuncRoot = "/run/runc"
	}
	return &Resolver{
		opt: opt, criClient: newCRIClient(opt.CRISocket, opt.RuntimeTimeout), cache: map[uint64]*list.Element{}, lru: list.New(), now: time.Now,
	}, nil
}

// Resolve tells whose a cgroup is; the zero Container is the host. A container that is gone already and was never
// seen is ErrNotFound, with CgroupID set. An error of the runtime comes together with what the cgroup alone tells.
func (r *Resolver) Resolve(cgroupID uint64) (sensors.Container, error) {
	return r.ResolveWithPath(cgroupID, "")
}

// ResolveWithPath is Resolve for a cgroup whose path somebody saw while it was there.
func (r *Resolver) ResolveWithPath(cgroupID uint64, seen string) (sensors.Container, error) {
	if a, ok := r.cachedEntry(cgroupID); ok {
		return a.container, a.err
	}
	path, err := CgroupPathByID(r.opt.CgroupRoot, cgroupID)
	if err != nil && seen != "" {
		path, err = seen, nil
	}
	if err != nil {
		c := sensors.Container{CgroupID: cgroupID}
		r.storeEntry(cacheEntry{id: cgroupID, container: c, err: err, expiresAt: r.now().Add(r.opt.NegativeTTL)})
		return c, err
	}
	c, err := r.resolvePath(context.Background(), path, cgroupID)
	a := cacheEntry{id: cgroupID, container: c, err: err}
	if err != nil || c.Pod.UID != "" && c.StartedAt.IsZero() {
		// At a container's first event the runtime may not have noted its start yet: ask again.
		a.expiresAt = r.now().Add(r.opt.NegativeTTL)
	}
	r.storeEntry(a)
	return c, err
}

func (r *Resolver) cachedEntry(id uint64) (cacheEntry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	el, ok := r.cache[id]
	if !ok {
		return cacheEntry{}, false
	}
	a, _ := el.Value.(*cacheEntry)
	if !a.expiresAt.IsZero() && r.now().After(a.expiresAt) {
		return cacheEntry{}, false
	}
	r.lru.MoveToFront(el)
	return *a, true
}

func (r *Resolver) storeEntry(a cacheEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if el, ok := r.cache[a.id]; ok {
		el.Value = &a
		r.lru.MoveToFront(el)
		return
	}
	r.cache[a.id] = r.lru.PushFront(&a)
	for r.lru.Len() > r.opt.Capacity {
		last := r.lru.Back()
		if old, ok := last.Value.(*cacheEntry); ok {
			delete(r.cache, old.id)
		}
		r.lru.Remove(last)
	}
}

// resolvePath tells whose the cgroup at a path is, asking the runtime where the path names a container of one.
func (r *Resolver) resolvePath(ctx context.Context, path string, id uint64) (sensors.Container, error) {
	p := ParseCgroupPath(path)
	if p.IsHostUnit {
		return sensors.Container{}, nil
	}
	c := sensors.Container{ID: p.ContainerID, Runtime: p.Runtime, CgroupID: id, CgroupPath: path}
	if p.PodPath != "" {
		c.Pod.UID = p.PodUID
		// A pod's cgroup may vanish between two looks: without its id the pod is still known.
		c.PodCgroupID, _ = CgroupID(r.opt.CgroupRoot + p.PodPath)
	}
	if p.ContainerPath != "" && p.ContainerPath != path {
		// The event is from a cgroup that the container made for itself: the container's own is what counts.
		c.CgroupPath = p.ContainerPath
		if own, err := CgroupID(r.opt.CgroupRoot + p.ContainerPath); err == nil {
			c.CgroupID = own
		}
	}
	if p.ContainerID == "" {
		if p.PodUID == "" {
			c = r.fillFromRuncState(c)
		}
		return c, nil
	}
	// Docker and podman have no CRI; their id and path are all there is.
	if p.Runtime == "docker" || p.Runtime == "podman" || p.Runtime == "stanch" {
		c.Workload = workloadOf(&c)
		return c, nil
	}
	err := r.criClient.fillContainer(ctx, &c)
	if c.Workload.Name == "" {
		c.Workload = workloadOf(&c)
	}
	return c, err
}

// FindContainer finds a running container by its id.
func (r *Resolver) FindContainer(ctx context.Context, id string) (sensors.Container, error) {
	if c, ok := r.cachedContainer(id); ok {
		return c, nil
	}
	all, err := r.ListContainers(ctx)
	if err != nil {
		return sensors.Container{}, err
	}
	for _, c := range all {
		if c.ID == id {
			return c, nil
		}
	}
	return sensors.Container{}, fmt.Errorf("container %q: %w", id, ErrNotFound)
}

// cachedContainer finds a container that was seen before and still has its cgroup: a command about it, which mostly comes
// right after its event, must not walk the whole tree.
func (r *Resolver) cachedContainer(id string) (sensors.Container, bool) {
	r.mu.Lock()
	var found sensors.Container
	for el := r.lru.Front(); el != nil; el = el.Next() {
		if a, ok := el.Value.(*cacheEntry); ok && a.container.ID == id && a.container.CgroupPath != "" && a.err == nil {
			found = a.container
			break
		}
	}
	r.mu.Unlock()
	if found.ID == "" {
		return found, false
	}
	now, err := CgroupID(r.opt.CgroupRoot + found.CgroupPath)
	return found, err == nil && now == found.CgroupID
}

// ListContainers lists every container that runs on this node now. What the runtime will not say is left empty.
func (r *Resolver) ListContainers(ctx context.Context) ([]sensors.Container, error) {
	var out []sensors.Container
	seen := map[uint64]bool{}
	err := filepath.WalkDir(r.opt.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went away meanwhile
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		path := pathBelow(r.opt.CgroupRoot, full)
		p := ParseCgroupPath(path)
		if path == "/" || p.IsHostUnit && p.ContainerID == "" || p.ContainerID == "" && p.PodUID != "" {
			return nil // systemd's slices lead to containers too
		}
		if p.ContainerPath != "" && p.ContainerPath != path {
			return fs.SkipDir
		}
		id, err := CgroupID(full)
		if err != nil || seen[id] {
			return nil
		}
		if pids, err := ListPIDs(full); err != nil || len(pids) == 0 {
			return nil
		}
		if own, err := os.ReadFile(filepath.Join(full, "cgroup.procs")); p.ContainerID == "" && (err != nil || len(own) == 0) {
			return nil // only a folder of others
		}
		c, _ := r.Resolve(id) // without the runtime's words it is still a container
		if c.ID != "" {
			seen[id] = true
			out = append(out, c)
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return out, nil
}

// NamedCgroup is a cgroup that bears the name of a pod or container.
type NamedCgroup struct {
	CgroupID uint64
	Path     string // below the root, with a leading slash
}

// FindNamedCgroups lists every cgroup that bears a pod's UID or, where that is empty, a container's id, and has a process. There is
// one, unless somebody made another with the same name.
func (r *Resolver) FindNamedCgroups(ctx context.Context, podUID, containerID string) ([]NamedCgroup, error) {
	var out []NamedCgroup
	if podUID == "" {
		all, err := r.ListContainers(ctx)
		for _, c := range all {
			if c.ID == containerID {
				out = append(out, NamedCgroup{c.CgroupID, c.CgroupPath})
			}
		}
		return out, err
	}
	err := filepath.WalkDir(r.opt.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went away meanwhile
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		p := ParseCgroupPath(pathBelow(r.opt.CgroupRoot, full))
		if p.PodUID == "" {
			return nil
		}
		if p.PodUID == podUID {
			if id, err := CgroupID(full); err == nil && isPopulated(full) {
				out = append(out, NamedCgroup{id, p.PodPath})
			}
		}
		return fs.SkipDir
	})
	if err != nil {
		return nil, fmt.Errorf("find the cgroups of pod %q: %w", podUID, err)
	}
	return out, nil
}

// isPopulated reports whether a process is in a cgroup or below it.
func isPopulated(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains("\n"+string(b), "\npopulated 1")
}

// PodCgroup is a pod as this node's cgroup tree shows it.
type PodCgroup struct {
	Pod sensors.Pod
	// CgroupID and CgroupPath are the pod's own: all its containers are below. Dir is its absolute directory.
	CgroupID   uint64
	CgroupPath string
	Dir        string
	// Containers are those that the cgroup tree shows, without the pause container.
	Containers []sensors.Container
	// ListPIDs are the processes of the pod, the pause process included; each is in the pod's network namespace unless it
	// left it.
	PIDs []int
}

// errStopWalk ends a walk.
var errStopWalk = errors.New("found")

// FindPod finds a pod's running containers by its UID, with the pod's own cgroup.
func (r *Resolver) FindPod(ctx context.Context, uid string) (PodCgroup, error) {
	g := PodCgroup{}
	err := filepath.WalkDir(r.opt.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		p := ParseCgroupPath(pathBelow(r.opt.CgroupRoot, full))
		if p.PodUID == "" {
			return nil
		}
		if p.PodUID == uid {
			g.Dir, g.CgroupPath = full, p.PodPath
			return errStopWalk
		}
		return fs.SkipDir
	})
	if !errors.Is(err, errStopWalk) {
		return g, fmt.Errorf("pod %q: %w", uid, errors.Join(err, ErrNotFound))
	}
	if g.CgroupID, err = CgroupID(g.Dir); err != nil {
		return g, fmt.Errorf("pod %q: %w", uid, errors.Join(err, ErrNotFound))
	}
	if g.PIDs, err = ListPIDs(g.Dir); err != nil {
		return g, fmt.Errorf("pod %q: %w", uid, err)
	}
	children, err := os.ReadDir(g.Dir)
	if err != nil {
		return g, fmt.Errorf("pod %q: %w", uid, err)
	}
	for _, child := range children {
		if !child.IsDir() || ctx.Err() != nil {
			continue
		}
		id, err := CgroupID(filepath.Join(g.Dir, child.Name()))
		if err != nil {
			continue
		}
		c, err := r.Resolve(id)
		if c.ID == "" || c.Name == pauseContainerName || errors.Is(err, ErrNotFound) {
			continue // the pause container is known to the runtime as the sandbox
		}
		g.Containers = append(g.Containers, c)
		if c.Pod.Name != "" {
			g.Pod = c.Pod
		}
	}
	if g.Pod.UID == "" {
		g.Pod.UID = uid
	}
	return g, ctx.Err()
}

// CgroupPathByID finds the path of a cgroup (below the root, with a leading slash) by its id.
func (r *Resolver) CgroupPathByID(cgroupID uint64) (string, error) {
	return CgroupPathByID(r.opt.CgroupRoot, cgroupID)
}

// CgroupRoot is the mount point of cgroup v2 that the resolver reads.
func (r *Resolver) CgroupRoot() string { return r.opt.CgroupRoot }

// DescribeRuntime describes the runtime that answers ("containerd 1.6.20 at /run/…"), or says why none does.
func (r *Resolver) DescribeRuntime() string { return r.criClient.describe() }

// Close closes the connection to the runtime.
func (r *Resolver) Close() error { return r.criClient.close() }
