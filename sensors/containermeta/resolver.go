// Package containermeta resolves a cgroup to its metadata: container, pod, image digest and workload.
//
// It refuses to guess: what the runtime does not report stays empty, and without a response of the runtime a cgroup is
// still a container with an ID and a path. It needs no API server and no credentials, only the cgroup tree and, if
// available, the CRI socket of the runtime.
package containermeta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"stanch/sensors"
)

// Options configures a Resolver. The zero value uses the default locations.
type Options struct {
	// CgroupRoot is the mount point of cgroup v2. Empty means the one in /proc/self/mountinfo.
	CgroupRoot string
	// CRISocket is the socket of the runtime. Empty means the first default socket that exists; "none" disables the
	// runtime.
	CRISocket string
	// RuncRoot is the state directory of runc. Empty means /run/runc.
	RuncRoot string
	// Capacity is the maximum size of the cache. 0 means 4096.
	Capacity int
	// NegativeTTL is how long a failure of the runtime is cached. 0 means 1 s.
	NegativeTTL time.Duration
	// RuntimeTimeout limits one query to the runtime. 0 means 500 ms.
	RuntimeTimeout time.Duration
}

// ErrNotFound means that the cgroup, container or pod is not on this node.
var ErrNotFound = errors.New("not found on this node")

// Resolver resolves cgroups to containers. It is safe for concurrent use.
type Resolver struct {
	opt       Options
	criClient *criClient

	mu    sync.Mutex
	cache *simplelru.LRU[uint64, *cacheEntry] // by cgroup ID
	now   func() time.Time
}

// cacheEntry is the cached result for one cgroup.
type cacheEntry struct {
	container sensors.Container
	err       error
	expiresAt time.Time // zero: never
}

// Open returns a resolver. An unavailable runtime is not an error: the resolver retries later (see DescribeRuntime).
// It returns an error if cgroup v2 is not mounted. The caller must call Close.
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
	cache, err := simplelru.NewLRU[uint64, *cacheEntry](opt.Capacity, nil)
	if err != nil {
		return nil, fmt.Errorf("create the cache of containers: %w", err)
	}
	return &Resolver{
		opt: opt, criClient: newCRIClient(opt.CRISocket, opt.RuntimeTimeout), cache: cache, now: time.Now,
	}, nil
}

// Resolve returns the container of a cgroup, or the zero Container for a cgroup of the host. For an unknown cgroup
// that no longer exists it returns ErrNotFound with CgroupID set. If the runtime fails, it returns the error together
// with what the cgroup path contains.
func (r *Resolver) Resolve(cgroupID uint64) (sensors.Container, error) {
	return r.ResolveWithPath(cgroupID, "")
}

// ResolveWithPath is like Resolve, and uses the path seen if the cgroup no longer exists.
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
		r.storeEntry(cgroupID, cacheEntry{container: c, err: err, expiresAt: r.now().Add(r.opt.NegativeTTL)})
		return c, err
	}
	c, err := r.resolvePath(context.Background(), path, cgroupID)
	a := cacheEntry{container: c, err: err}
	if err != nil || c.Pod.UID != "" && c.StartedAt.IsZero() {
		// At the first event of a container, the runtime may not have recorded its start yet: query it again later.
		a.expiresAt = r.now().Add(r.opt.NegativeTTL)
	}
	r.storeEntry(cgroupID, a)
	return c, err
}

func (r *Resolver) cachedEntry(id uint64) (cacheEntry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.cache.Get(id)
	if !ok || !a.expiresAt.IsZero() && r.now().After(a.expiresAt) {
		return cacheEntry{}, false
	}
	return *a, true
}

func (r *Resolver) storeEntry(id uint64, a cacheEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache.Add(id, &a)
}

// resolvePath returns the container of the cgroup at a path. It queries the runtime if the path contains a container
// ID.
func (r *Resolver) resolvePath(ctx context.Context, path string, id uint64) (sensors.Container, error) {
	p := ParseCgroupPath(path)
	if p.IsHostUnit {
		return sensors.Container{}, nil
	}
	c := sensors.Container{ID: p.ContainerID, Runtime: p.Runtime, CgroupID: id, CgroupPath: path}
	if p.PodPath != "" {
		c.Pod.UID = p.PodUID
		// A pod's cgroup may be removed in the meantime; the pod is then still known without its cgroup ID.
		c.PodCgroupID, _ = CgroupID(r.opt.CgroupRoot + p.PodPath)
	}
	if p.ContainerPath != "" && p.ContainerPath != path {
		// The cgroup was created inside the container; use the cgroup of the container.
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
	// Docker and Podman have no CRI, so only the ID and the path are known.
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

// ListContainers returns every container that runs on this node. Fields that the runtime does not report are empty.
func (r *Resolver) ListContainers(ctx context.Context) ([]sensors.Container, error) {
	var out []sensors.Container
	seen := map[uint64]bool{}
	err := filepath.WalkDir(r.opt.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // removed in the meantime
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		path := pathBelow(r.opt.CgroupRoot, full)
		p := ParseCgroupPath(path)
		if path == "/" || p.IsHostUnit && p.ContainerID == "" || p.ContainerID == "" && p.PodUID != "" {
			return nil // the slices of systemd also contain containers
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
		if own, err := os.ReadFile(filepath.Join(full, "cgroup.procs")); p.ContainerID == "" &&
			(err != nil || len(own) == 0) {
			return nil // contains only other cgroups
		}
		c, _ := r.Resolve(id) // without a response of the runtime it is still a container
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

// NamedCgroup is a cgroup whose name contains the ID of a pod or container.
type NamedCgroup struct {
	CgroupID uint64 `json:"CgroupID"`
	Path     string `json:"Path"` // below the root, with a leading slash
}

// FindNamedCgroups returns every populated cgroup whose name contains the pod UID or, if that is empty, the container
// ID. There is one, unless someone created another cgroup with the same name.
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
			return nil // removed in the meantime
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

// isPopulated reports whether a process is in the cgroup or below it.
func isPopulated(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains("\n"+string(b), "\npopulated 1")
}

// CgroupPathByID returns the path of a cgroup, below the root and with a leading slash. It returns ErrNotFound if
// there is no such cgroup.
func (r *Resolver) CgroupPathByID(cgroupID uint64) (string, error) {
	return CgroupPathByID(r.opt.CgroupRoot, cgroupID)
}

// CgroupRoot returns the mount point of cgroup v2, without a trailing slash.
func (r *Resolver) CgroupRoot() string { return r.opt.CgroupRoot }

// DescribeRuntime returns the name, version and socket of the runtime ("containerd 1.6.20 at /run/…"), or the reason
// why it is unavailable.
func (r *Resolver) DescribeRuntime() string { return r.criClient.describe() }

// Close closes the connection to the runtime. A later query connects again.
func (r *Resolver) Close() error { return r.criClient.close() }
