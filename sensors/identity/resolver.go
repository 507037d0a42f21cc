// Package identity finds out whose a cgroup is: container, pod, image digest, workload.
//
// It refuses to guess: what the runtime does not say stays empty, and a cgroup whose runtime is silent is still a
// container with an id and a path. It needs no API server and no credentials, only the cgroup tree and, where
// there is one, the runtime's CRI socket.
package identity

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
	// Timeout bounds one question to the runtime. Zero: 500ms.
	Timeout time.Duration
}

// ErrNotFound says that no such cgroup, container or pod is on this node.
var ErrNotFound = errors.New("not found on this node")

// Resolver answers whose a cgroup is. Its methods may be called from several goroutines.
type Resolver struct {
	opt Options
	cri *runtimeClient

	mu     sync.Mutex
	cached map[uint64]*list.Element // of *answer, by cgroup id
	order  *list.List
	now    func() time.Time
}

// answer is what is known of one cgroup.
type answer struct {
	id        uint64
	container sensors.Container
	err       error
	until     time.Time // zero: for good
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
	if opt.Timeout <= 0 {
		opt.Timeout = 500 * time.Millisecond
	}
	if opt.RuncRoot == "" {
		opt.RuncRoot = "/run/runc"
	}
	return &Resolver{
		opt: opt, cri: newRuntimeClient(opt.CRISocket, opt.Timeout), cached: map[uint64]*list.Element{}, order: list.New(), now: time.Now,
	}, nil
}

// Resolve tells whose a cgroup is; the zero Container is the host. A container that is gone already and was never
// seen is ErrNotFound, with CgroupID set. An error of the runtime comes together with what the cgroup alone tells.
func (r *Resolver) Resolve(cgroupID uint64) (sensors.Container, error) {
	return r.ResolveAt(cgroupID, "")
}

// ResolveAt is Resolve for a cgroup whose path somebody saw while it was there.
func (r *Resolver) ResolveAt(cgroupID uint64, seen string) (sensors.Container, error) {
	if a, ok := r.lookup(cgroupID); ok {
		return a.container, a.err
	}
	path, err := PathOf(r.opt.CgroupRoot, cgroupID)
	if err != nil && seen != "" {
		path, err = seen, nil
	}
	if err != nil {
		c := sensors.Container{CgroupID: cgroupID}
		r.keep(answer{id: cgroupID, container: c, err: err, until: r.now().Add(r.opt.NegativeTTL)})
		return c, err
	}
	c, err := r.ofPath(context.Background(), path, cgroupID)
	a := answer{id: cgroupID, container: c, err: err}
	if err != nil || c.Pod.UID != "" && c.StartedAt.IsZero() {
		// At a container's first event the runtime may not have noted its start yet: ask again.
		a.until = r.now().Add(r.opt.NegativeTTL)
	}
	r.keep(a)
	return c, err
}

func (r *Resolver) lookup(id uint64) (answer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	el, ok := r.cached[id]
	if !ok {
		return answer{}, false
	}
	a, _ := el.Value.(*answer)
	if !a.until.IsZero() && r.now().After(a.until) {
		return answer{}, false
	}
	r.order.MoveToFront(el)
	return *a, true
}

func (r *Resolver) keep(a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if el, ok := r.cached[a.id]; ok {
		el.Value = &a
		r.order.MoveToFront(el)
		return
	}
	r.cached[a.id] = r.order.PushFront(&a)
	for r.order.Len() > r.opt.Capacity {
		last := r.order.Back()
		if old, ok := last.Value.(*answer); ok {
			delete(r.cached, old.id)
		}
		r.order.Remove(last)
	}
}

// ofPath tells whose the cgroup at a path is, asking the runtime where the path names a container of one.
func (r *Resolver) ofPath(ctx context.Context, path string, id uint64) (sensors.Container, error) {
	p := ParsePath(path)
	if p.Host {
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
			c = r.runc(c)
		}
		return c, nil
	}
	// Docker and podman have no CRI; their id and path are all there is.
	if p.Runtime == "docker" || p.Runtime == "podman" || p.Runtime == "stanch" {
		c.Workload = workload(&c)
		return c, nil
	}
	err := r.cri.fill(ctx, &c)
	if c.Workload.Name == "" {
		c.Workload = workload(&c)
	}
	return c, err
}

// Container finds a running container by its id.
func (r *Resolver) Container(ctx context.Context, id string) (sensors.Container, error) {
	if c, ok := r.remembered(id); ok {
		return c, nil
	}
	all, err := r.Containers(ctx)
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

// remembered finds a container that was seen before and still has its cgroup: a command about it, which mostly comes
// right after its event, must not walk the whole tree.
func (r *Resolver) remembered(id string) (sensors.Container, bool) {
	r.mu.Lock()
	var found sensors.Container
	for el := r.order.Front(); el != nil; el = el.Next() {
		if a, ok := el.Value.(*answer); ok && a.container.ID == id && a.container.CgroupPath != "" && a.err == nil {
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

// Containers lists every container that runs on this node now. What the runtime will not say is left empty.
func (r *Resolver) Containers(ctx context.Context) ([]sensors.Container, error) {
	var out []sensors.Container
	seen := map[uint64]bool{}
	err := filepath.WalkDir(r.opt.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went away meanwhile
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		path := below(r.opt.CgroupRoot, full)
		p := ParsePath(path)
		if path == "/" || p.Host && p.ContainerID == "" || p.ContainerID == "" && p.PodUID != "" {
			return nil // systemd's slices lead to containers too
		}
		if p.ContainerPath != "" && p.ContainerPath != path {
			return fs.SkipDir
		}
		id, err := CgroupID(full)
		if err != nil || seen[id] {
			return nil
		}
		if pids, err := PIDs(full); err != nil || len(pids) == 0 {
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

// Bearer is a cgroup that bears the name of a pod or container.
type Bearer struct {
	CgroupID uint64
	Path     string // below the root, with a leading slash
}

// Bearers lists every cgroup that bears a pod's UID or, where that is empty, a container's id, and has a process. There is
// one, unless somebody made another with the same name.
func (r *Resolver) Bearers(ctx context.Context, podUID, containerID string) ([]Bearer, error) {
	var out []Bearer
	if podUID == "" {
		all, err := r.Containers(ctx)
		for _, c := range all {
			if c.ID == containerID {
				out = append(out, Bearer{c.CgroupID, c.CgroupPath})
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
		p := ParsePath(below(r.opt.CgroupRoot, full))
		if p.PodUID == "" {
			return nil
		}
		if p.PodUID == podUID {
			if id, err := CgroupID(full); err == nil && populated(full) {
				out = append(out, Bearer{id, p.PodPath})
			}
		}
		return fs.SkipDir
	})
	if err != nil {
		return nil, fmt.Errorf("find the cgroups of pod %q: %w", podUID, err)
	}
	return out, nil
}

// populated reports whether a process is in a cgroup or below it.
func populated(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains("\n"+string(b), "\npopulated 1")
}

// PodGroup is a pod as this node's cgroup tree shows it.
type PodGroup struct {
	Pod sensors.Pod
	// CgroupID and CgroupPath are the pod's own: all its containers are below. Dir is its absolute directory.
	CgroupID   uint64
	CgroupPath string
	Dir        string
	// Containers are those that the cgroup tree shows, without the pause container.
	Containers []sensors.Container
	// PIDs are the processes of the pod, the pause process included; each is in the pod's network namespace unless it
	// left it.
	PIDs []int
}

// errFound ends a walk.
var errFound = errors.New("found")

// Pod finds a pod's running containers by its UID, with the pod's own cgroup.
func (r *Resolver) Pod(ctx context.Context, uid string) (PodGroup, error) {
	g := PodGroup{}
	err := filepath.WalkDir(r.opt.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		p := ParsePath(below(r.opt.CgroupRoot, full))
		if p.PodUID == "" {
			return nil
		}
		if p.PodUID == uid {
			g.Dir, g.CgroupPath = full, p.PodPath
			return errFound
		}
		return fs.SkipDir
	})
	if !errors.Is(err, errFound) {
		return g, fmt.Errorf("pod %q: %w", uid, errors.Join(err, ErrNotFound))
	}
	if g.CgroupID, err = CgroupID(g.Dir); err != nil {
		return g, fmt.Errorf("pod %q: %w", uid, errors.Join(err, ErrNotFound))
	}
	if g.PIDs, err = PIDs(g.Dir); err != nil {
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
		if c.ID == "" || c.Name == pauseName || errors.Is(err, ErrNotFound) {
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

// PathOf finds the path of a cgroup (below the root, with a leading slash) by its id.
func (r *Resolver) PathOf(cgroupID uint64) (string, error) { return PathOf(r.opt.CgroupRoot, cgroupID) }

// CgroupRoot is the mount point of cgroup v2 that the resolver reads.
func (r *Resolver) CgroupRoot() string { return r.opt.CgroupRoot }

// Runtime describes the runtime that answers ("containerd 1.6.20 at /run/…"), or says why none does.
func (r *Resolver) Runtime() string { return r.cri.describe() }

// Close closes the connection to the runtime.
func (r *Resolver) Close() error { return r.cri.close() }
