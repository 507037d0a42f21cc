package identity

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"stanch/sensors"
	"stanch/testenv/require"
)

const (
	id64 = "71cb5b9800cc62054419d4e9580d808c896b016ced9697887967dc4e328f2d6c"
	uid  = "0f3c5f0e-2b4d-4e7a-9c1d-1a2b3c4d5e6f"
	uid_ = "0f3c5f0e_2b4d_4e7a_9c1d_1a2b3c4d5e6f"
)

func TestParsePath(t *testing.T) {
	for path, want := range map[string]Path{
		"/": {Host: true},
		"/kubepods/burstable/pod" + uid + "/" + id64: {
			PodUID: uid, ContainerID: id64, PodPath: "/kubepods/burstable/pod" + uid, ContainerPath: "/kubepods/burstable/pod" + uid + "/" + id64,
		},
		"/kubepods/pod" + uid: {PodUID: uid, PodPath: "/kubepods/pod" + uid},
		"/kubepods/besteffort/pod" + uid + "/" + id64 + "/inner/deep": {
			PodUID: uid, ContainerID: id64, PodPath: "/kubepods/besteffort/pod" + uid, ContainerPath: "/kubepods/besteffort/pod" + uid + "/" + id64,
		},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid_ + ".slice/cri-containerd-" + id64 + ".scope": {
			Runtime: "containerd", PodUID: uid, ContainerID: id64,
			PodPath:       "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid_ + ".slice",
			ContainerPath: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid_ + ".slice/cri-containerd-" + id64 + ".scope",
		},
		"/kubepods.slice/kubepods-pod" + uid_ + ".slice/crio-" + id64 + ".scope/container": {
			Runtime: "cri-o", PodUID: uid, ContainerID: id64,
			PodPath:       "/kubepods.slice/kubepods-pod" + uid_ + ".slice",
			ContainerPath: "/kubepods.slice/kubepods-pod" + uid_ + ".slice/crio-" + id64 + ".scope",
		},
		"/kubelet/kubepods/pod" + strings.ReplaceAll(uid, "-", "") + "/" + id64: { // a static pod's UID is a hash
			PodUID: strings.ReplaceAll(uid, "-", ""), ContainerID: id64, PodPath: "/kubelet/kubepods/pod" + strings.ReplaceAll(uid, "-", ""),
			ContainerPath: "/kubelet/kubepods/pod" + strings.ReplaceAll(uid, "-", "") + "/" + id64,
		},
		"/system.slice/docker-" + id64 + ".scope":            {Runtime: "docker", ContainerID: id64, ContainerPath: "/system.slice/docker-" + id64 + ".scope"},
		"/docker/" + id64:                                    {Runtime: "docker", ContainerID: id64, ContainerPath: "/docker/" + id64},
		"/machine.slice/libpod-" + id64 + ".scope/container": {Runtime: "podman", ContainerID: id64, ContainerPath: "/machine.slice/libpod-" + id64 + ".scope"},
		"/system.slice/containerd.service":                   {Host: true},
		"/user.slice/user-0.slice/session-1.scope":           {Host: true},
		"/init.scope":  {Host: true},
		"/mycontainer": {},
		"/kubepods.slice/kubepods-burstable.slice":                                              {},
		"/kubepods/burstable/pod" + uid + "/crio-" + id64:                                       {Runtime: "cri-o", PodUID: uid, ContainerID: id64, PodPath: "/kubepods/burstable/pod" + uid, ContainerPath: "/kubepods/burstable/pod" + uid + "/crio-" + id64},
		"/system.slice/docker-" + id64 + ".scope/kubepods/pod" + uid + "/" + id64[:60] + "beef": {Runtime: "docker", ContainerID: id64, ContainerPath: "/system.slice/docker-" + id64 + ".scope"},
	} {
		if got := ParsePath(path); got != want {
			t.Errorf("%s\n got %+v\nwant %+v", path, got, want)
		}
	}
}

func TestTheRootIsTheNodesAndNotOnesOwn(t *testing.T) {
	for name, c := range map[string]struct{ mountinfo, want string }{
		"pure v2": {"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw", "/sys/fs/cgroup"},
		"hybrid":  {"30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/unified"},
		"pod":     {"30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n31 23 0:26 /../../../.. /host/cgroup rw - cgroup2 cgroup2 rw", "/host/cgroup"},
		"part":    {"30 23 0:26 /kubepods/x /sys/fs/cgroup ro - cgroup2 cgroup rw", ""},
		"v1":      {"30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", ""},
	} {
		if got := cgroupRoot(c.mountinfo); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("/kubepods/burstable/pod" + uid + "/" + id64)
	f.Add("/system.slice/docker-" + id64 + ".scope")
	f.Add("")
	f.Fuzz(func(t *testing.T, path string) {
		p := ParsePath(path)
		if p.Host && p.ContainerID != "" {
			t.Fatalf("%q is both the host's and a container's", path)
		}
		for _, prefix := range []string{p.ContainerPath, p.PodPath} {
			if prefix != "" && !strings.HasPrefix("/"+strings.Trim(path, "/"), prefix) {
				t.Fatalf("%q is no prefix of %q", prefix, path)
			}
		}
	})
}

func TestWorkload(t *testing.T) {
	pod := func(name string, labels ...string) *sensors.Container {
		c := &sensors.Container{ID: "x", Pod: sensors.Pod{Name: name, UID: uid, Labels: map[string]string{}}}
		for i := 0; i < len(labels); i += 2 {
			c.Pod.Labels[labels[i]] = labels[i+1]
		}
		return c
	}
	for _, c := range []struct {
		in   *sensors.Container
		want sensors.Workload
	}{
		{pod("shop-5d8f9c7b6d-x7k2p", "pod-template-hash", "5d8f9c7b6d"), sensors.Workload{Kind: "Deployment", Name: "shop"}},
		{pod("shop-x7k2p", "pod-template-hash", "5d8f9c7b6d"), sensors.Workload{Kind: "Pod", Name: "shop-x7k2p"}},
		{pod("db-0", "statefulset.kubernetes.io/pod-name", "db-0"), sensors.Workload{Kind: "StatefulSet", Name: "db"}},
		{pod("backup-2-abc", "batch.kubernetes.io/job-name", "backup-2"), sensors.Workload{Kind: "Job", Name: "backup-2"}},
		{pod("agent-x7k2p", "controller-revision-hash", "a", "pod-template-generation", "1"), sensors.Workload{Kind: "DaemonSet", Name: "agent"}},
		{pod("bare"), sensors.Workload{Kind: "Pod", Name: "bare"}},
		{&sensors.Container{ID: "x"}, sensors.Workload{Kind: "Container", Name: "x"}},
	} {
		if got := workload(c.in); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.in.Pod.Name, got, c.want)
		}
	}
}

// runtimeStandIn is a CRI server over a real socket, for what this machine's own runtime does not run.
type runtimeStandIn struct {
	cri.UnimplementedRuntimeServiceServer
	asked atomic.Int32
	fail  atomic.Bool
}

func (r *runtimeStandIn) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "1.6.20"}, nil
}

func (r *runtimeStandIn) ContainerStatus(_ context.Context, q *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	r.asked.Add(1)
	if r.fail.Load() {
		return nil, status.Error(codes.Unavailable, "busy")
	}
	if q.GetContainerId() != id64 {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{
		Id: id64, Metadata: &cri.ContainerMetadata{Name: "app"}, StartedAt: 1, Image: &cri.ImageSpec{Image: "shop:1"},
		ImageRef: "example.org/shop@sha256:" + id64,
		Labels:   map[string]string{labelPodName: "shop-5d8f9c7b6d-x7k2p", labelPodNamespace: "web", labelPodUID: uid},
	}}, nil
}

func (r *runtimeStandIn) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: []*cri.Container{{Id: id64, PodSandboxId: "sandbox"}}}, nil
}

func (r *runtimeStandIn) PodSandboxStatus(_ context.Context, q *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	if q.GetPodSandboxId() != "sandbox" {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Metadata: &cri.PodSandboxMetadata{Name: "shop-5d8f9c7b6d-x7k2p", Namespace: "web", Uid: uid},
		Network:  &cri.PodSandboxNetworkStatus{Ip: "10.0.0.7"},
		Linux:    &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: cri.NamespaceMode_POD}}},
		Labels:   map[string]string{"app": "shop", "pod-template-hash": "5d8f9c7b6d", labelPodUID: uid},
		Annotations: map[string]string{
			"stanch.dev/egress": "10.0.0.0/8", "a-pod-may-have-this-much": strings.Repeat("<", 250<<10),
		},
	}}, nil
}

func serveRuntime(t *testing.T) (*runtimeStandIn, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	r, s := &runtimeStandIn{}, grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, r)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	return r, socket
}

// tree makes real cgroups that look like a kubelet's.
func tree(t *testing.T, below ...string) string {
	t.Helper()
	require.Root(t)
	root, err := FindCgroupRoot()
	if err != nil {
		require.Lacking(t, "%v", err)
	}
	top, err := os.MkdirTemp(root, "stanch-test-")
	if err != nil {
		t.Fatal(err)
	}
	made := []string{top}
	for _, b := range below {
		at := top
		for part := range strings.SplitSeq(b, "/") {
			at = filepath.Join(at, part)
			if err := os.Mkdir(at, 0o755); err == nil {
				made = append(made, at)
			}
		}
	}
	t.Cleanup(func() {
		for i := len(made) - 1; i >= 0; i-- {
			_ = os.Remove(made[i])
		}
	})
	return top
}

func TestResolveAsksTheRuntimeOnceAndKeepsTheAnswer(t *testing.T) {
	rt, socket := serveRuntime(t)
	top := tree(t, "pod"+uid+"/"+id64+"/inner")
	dir := filepath.Join(top, "pod"+uid, id64)
	id, err := CgroupID(dir)
	if err != nil {
		t.Fatal(err)
	}
	podID, _ := CgroupID(filepath.Dir(dir))
	r, err := Open(Options{CRISocket: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := r.Resolve(id)
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != id64 || c.Name != "app" || c.Runtime != "containerd" || c.Image != "shop:1" || c.ImageDigest != "sha256:"+id64 ||
		c.CgroupID != id || c.PodCgroupID != podID || c.Pod.Name != "shop-5d8f9c7b6d-x7k2p" || c.Pod.Namespace != "web" || c.Pod.UID != uid ||
		c.Pod.IP != "10.0.0.7" || c.Pod.HostNetwork || c.Pod.Labels["app"] != "shop" || len(c.Pod.Labels) != 2 ||
		c.Pod.Annotations["stanch.dev/egress"] != "10.0.0.0/8" || len(c.Pod.Annotations) != 1 ||
		c.Workload != (sensors.Workload{Kind: "Deployment", Name: "shop"}) {
		t.Errorf("%+v", c)
	}
	before := rt.asked.Load()
	if _, err := r.Resolve(id); err != nil || rt.asked.Load() != before {
		t.Errorf("asked again: %v", err)
	}
	// A cgroup that the container made for itself is the container.
	inner, _ := CgroupID(filepath.Join(dir, "inner"))
	if c, err := r.Resolve(inner); err != nil || c.CgroupID != id || c.ID != id64 {
		t.Errorf("inner: %+v, %v", c, err)
	}
	g, err := r.Pod(context.Background(), uid)
	if err != nil || g.CgroupID != podID || g.Dir != filepath.Dir(dir) || len(g.Containers) != 1 || g.Pod.Name == "" {
		t.Errorf("Pod: %+v, %v", g, err)
	}
	if _, err := r.Pod(context.Background(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown pod: %v", err)
	}
}

func TestARuntimeThatFailsIsAskedAgain(t *testing.T) {
	rt, socket := serveRuntime(t)
	rt.fail.Store(true)
	top := tree(t, "pod"+uid+"/"+id64)
	id, _ := CgroupID(filepath.Join(top, "pod"+uid, id64))
	r, err := Open(Options{CRISocket: socket, NegativeTTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	now := time.Now()
	r.now = func() time.Time { return now }
	c, err := r.Resolve(id)
	if err == nil || c.ID != id64 || c.Pod.UID != uid {
		t.Errorf("%+v, %v", c, err)
	}
	rt.fail.Store(false)
	if _, err := r.Resolve(id); err == nil {
		t.Error("asked again before its time")
	}
	now = now.Add(2 * time.Minute)
	if c, err := r.Resolve(id); err != nil || c.Name != "app" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestTheCgroupAloneIsEnough(t *testing.T) {
	top := tree(t, "pod"+uid+"/"+id64)
	r, err := Open(Options{CRISocket: "none", RuncRoot: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	id, _ := CgroupID(filepath.Join(top, "pod"+uid, id64))
	if c, err := r.Resolve(id); err != nil || c.ID != id64 || c.Pod.UID != uid || c.Workload.Kind != "Pod" {
		t.Errorf("%+v, %v", c, err)
	}
	own, _ := CgroupID(top)
	if c, err := r.Resolve(own); err != nil || c.ID != filepath.Base(top) || c.Workload.Kind != "Container" {
		t.Errorf("a cgroup of nobody's: %+v, %v", c, err)
	}
	root, _ := CgroupID(r.CgroupRoot())
	if c, err := r.Resolve(root); err != nil || c.CgroupID != 0 || c.ID != "" {
		t.Errorf("the host: %+v, %v", c, err)
	}
	if c, err := r.Resolve(1 << 60); !errors.Is(err, ErrNotFound) || c.CgroupID != 1<<60 {
		t.Errorf("gone: %+v, %v", c, err)
	}
	for i := range uint64(5000) {
		_, _ = r.Resolve(1<<60 + i)
	}
	if n := len(r.cached); n > 4096 || n != r.order.Len() {
		t.Errorf("%d answers are kept", n)
	}
}

func TestARuncContainerIsNamedByItsState(t *testing.T) {
	top := tree(t, "box/inner")
	state := filepath.Join(t.TempDir(), "drill-1")
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	path := "/" + filepath.Base(top) + "/box"
	if err := os.WriteFile(filepath.Join(state, "state.json"),
		[]byte(`{"id":"drill-1","created":"2026-01-02T03:04:05Z","cgroup_paths":{"memory":"/sys/fs/cgroup/memory`+path+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(Options{CRISocket: "none", RuncRoot: filepath.Dir(state)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	own, _ := CgroupID(filepath.Join(top, "box"))
	inner, _ := CgroupID(filepath.Join(top, "box/inner"))
	for _, id := range []uint64{own, inner} {
		c, err := r.Resolve(id)
		if err != nil || c.ID != "drill-1" || c.Runtime != "runc" || c.CgroupID != own || c.CgroupPath != path {
			t.Errorf("%+v, %v", c, err)
		}
	}
}

func BenchmarkPathOf(b *testing.B) {
	root, err := FindCgroupRoot()
	if err != nil {
		b.Skip("SKIPPED: " + err.Error())
	}
	id, err := CgroupID(root)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := PathOf(root, id); err != nil {
			b.Fatal(err)
		}
	}
}

// The number of a process that ended is another's: what that one had says nothing of this one's children.
func TestRightsAreNotComparedWithADeadProcessOfTheSameNumber(t *testing.T) {
	table := NewTable(0)
	event := func(kind sensors.Kind, pid, ppid uint32, start uint64, euid uint32) *sensors.Event {
		e := &sensors.Event{Kind: kind, Process: sensors.Process{PID: pid, PPID: ppid, StartNS: start, UID: euid, EUID: euid, Exe: "/bin/x"}}
		table.Learn(e)
		return e
	}
	event(sensors.KindExec, 7, 1, 100, 1000)
	if !event(sensors.KindExec, 8, 7, 200, 0).Process.Gained {
		t.Error("its parent was nobody special")
	}
	event(sensors.KindExit, 7, 1, 100, 1000)
	if event(sensors.KindExec, 9, 7, 300, 0).Process.Gained {
		t.Error("7 is a runtime's now")
	}
}
