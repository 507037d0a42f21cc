package containermeta

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stanch/sensors"
)

const (
	testContainerID       = "71cb5b9800cc62054419d4e9580d808c896b016ced9697887967dc4e328f2d6c"
	testPodUID            = "0f3c5f0e-2b4d-4e7a-9c1d-1a2b3c4d5e6f"
	testPodUIDUnderscored = "0f3c5f0e_2b4d_4e7a_9c1d_1a2b3c4d5e6f"
)

func TestParsePath(t *testing.T) {
	for path, want := range map[string]CgroupPath{
		"/": {IsHostUnit: true},
		"/kubepods/burstable/pod" + testPodUID + "/" + testContainerID: {
			PodUID: testPodUID, ContainerID: testContainerID, PodPath: "/kubepods/burstable/pod" + testPodUID,
			ContainerPath: "/kubepods/burstable/pod" + testPodUID + "/" + testContainerID,
		},
		"/kubepods/pod" + testPodUID: {PodUID: testPodUID, PodPath: "/kubepods/pod" + testPodUID},
		"/kubepods/besteffort/pod" + testPodUID + "/" + testContainerID + "/inner/deep": {
			PodUID: testPodUID, ContainerID: testContainerID, PodPath: "/kubepods/besteffort/pod" + testPodUID,
			ContainerPath: "/kubepods/besteffort/pod" + testPodUID + "/" + testContainerID,
		},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + testPodUIDUnderscored + ".slice/cri-containerd-" +
			testContainerID + ".scope": {
			Runtime: "containerd", PodUID: testPodUID, ContainerID: testContainerID,
			PodPath: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + testPodUIDUnderscored + ".slice",
			ContainerPath: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + testPodUIDUnderscored +
				".slice/cri-containerd-" + testContainerID + ".scope",
		},
		"/kubepods.slice/kubepods-pod" + testPodUIDUnderscored + ".slice/crio-" + testContainerID + ".scope/container": {
			Runtime: "cri-o", PodUID: testPodUID, ContainerID: testContainerID,
			PodPath:       "/kubepods.slice/kubepods-pod" + testPodUIDUnderscored + ".slice",
			ContainerPath: "/kubepods.slice/kubepods-pod" + testPodUIDUnderscored + ".slice/crio-" + testContainerID + ".scope",
		},
		// The UID of a static pod is a hash.
		"/kubelet/kubepods/pod" + strings.ReplaceAll(testPodUID, "-", "") + "/" + testContainerID: {
			PodUID: strings.ReplaceAll(testPodUID, "-", ""), ContainerID: testContainerID, PodPath: "/kubelet/kubepods/pod" +
				strings.ReplaceAll(testPodUID, "-", ""),
			ContainerPath: "/kubelet/kubepods/pod" + strings.ReplaceAll(testPodUID, "-", "") + "/" + testContainerID,
		},
		"/system.slice/docker-" + testContainerID + ".scope": {
			Runtime: "docker", ContainerID: testContainerID,
			ContainerPath: "/system.slice/docker-" + testContainerID + ".scope",
		},
		"/docker/" + testContainerID: {
			Runtime: "docker", ContainerID: testContainerID,
			ContainerPath: "/docker/" + testContainerID,
		},
		"/machine.slice/libpod-" + testContainerID + ".scope/container": {
			Runtime: "podman", ContainerID: testContainerID,
			ContainerPath: "/machine.slice/libpod-" + testContainerID + ".scope",
		},
		"/system.slice/containerd.service":         {IsHostUnit: true},
		"/user.slice/user-0.slice/session-1.scope": {IsHostUnit: true},
		"/init.scope":  {IsHostUnit: true},
		"/mycontainer": {},
		"/kubepods.slice/kubepods-burstable.slice": {},
		"/kubepods/burstable/pod" + testPodUID + "/crio-" +
			testContainerID: {
			Runtime: "cri-o", PodUID: testPodUID, ContainerID: testContainerID,
			PodPath: "/kubepods/burstable/pod" + testPodUID, ContainerPath: "/kubepods/burstable/pod" + testPodUID + "/crio-" +
				testContainerID,
		},
		"/system.slice/docker-" + testContainerID + ".scope/kubepods/pod" + testPodUID + "/" + testContainerID[:60] +
			"beef": {Runtime: "docker", ContainerID: testContainerID, ContainerPath: "/system.slice/docker-" + testContainerID +
			".scope"},
	} {
		if got := ParseCgroupPath(path); got != want {
			t.Errorf("%s\n got %+v\nwant %+v", path, got, want)
		}
	}
}

func TestCgroupRootIsTheRootOfTheNode(t *testing.T) {
	for name, c := range map[string]struct{ mountinfo, want string }{
		"pure v2": {"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw", "/sys/fs/cgroup"},
		"hybrid":  {"30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/unified"},
		"pod":     {"30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n31 23 0:26 /../../../.. /host/cgroup rw - cgroup2 cgroup2 rw", "/host/cgroup"},
		"part":    {"30 23 0:26 /kubepods/x /sys/fs/cgroup ro - cgroup2 cgroup rw", ""},
		"v1":      {"30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", ""},
	} {
		if got := parseCgroupRoot(c.mountinfo); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzParseCgroupPath(f *testing.F) {
	f.Add("/kubepods/burstable/pod" + testPodUID + "/" + testContainerID)
	f.Add("/system.slice/docker-" + testContainerID + ".scope")
	f.Add("")
	f.Fuzz(func(t *testing.T, path string) {
		p := ParseCgroupPath(path)
		if p.IsHostUnit && p.ContainerID != "" {
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
		c := &sensors.Container{ID: "x", Pod: sensors.Pod{Name: name, UID: testPodUID, Labels: map[string]string{}}}
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
		{
			pod("agent-x7k2p", "controller-revision-hash", "a", "pod-template-generation", "1"),
			sensors.Workload{Kind: "DaemonSet", Name: "agent"},
		},
		{pod("bare"), sensors.Workload{Kind: "Pod", Name: "bare"}},
		{&sensors.Container{ID: "x"}, sensors.Workload{Kind: "Container", Name: "x"}},
	} {
		if got := workloadOf(c.in); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.in.Pod.Name, got, c.want)
		}
	}
}

func TestResolveCachesTheResponseOfTheRuntime(t *testing.T) {
	rt, socket := startFakeRuntime(t)
	top := makeCgroupTree(t, "pod"+testPodUID+"/"+testContainerID+"/inner")
	dir := filepath.Join(top, "pod"+testPodUID, testContainerID)
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
	if c.ID != testContainerID || c.Name != "app" || c.Runtime != "containerd" || c.Image != "shop:1" ||
		c.ImageDigest != "sha256:"+testContainerID ||
		c.CgroupID != id || c.PodCgroupID != podID || c.Pod.Name != "shop-5d8f9c7b6d-x7k2p" || c.Pod.Namespace != "web" ||
		c.Pod.UID != testPodUID ||
		c.Pod.IP != "10.0.0.7" || c.Pod.HostNetwork || c.Pod.Labels["app"] != "shop" || len(c.Pod.Labels) != 2 ||
		c.Pod.Annotations["stanch.dev/egress"] != "10.0.0.0/8" || len(c.Pod.Annotations) != 1 ||
		c.Workload != (sensors.Workload{Kind: "Deployment", Name: "shop"}) {
		t.Errorf("%+v", c)
	}
	before := rt.requests.Load()
	if _, err := r.Resolve(id); err != nil || rt.requests.Load() != before {
		t.Errorf("queried again: %v", err)
	}
	// A cgroup that was created inside the container resolves to the container.
	inner, _ := CgroupID(filepath.Join(dir, "inner"))
	if c, err := r.Resolve(inner); err != nil || c.CgroupID != id || c.ID != testContainerID {
		t.Errorf("inner: %+v, %v", c, err)
	}
}

func TestResolveRetriesFailedRuntime(t *testing.T) {
	rt, socket := startFakeRuntime(t)
	rt.failing.Store(true)
	top := makeCgroupTree(t, "pod"+testPodUID+"/"+testContainerID)
	id, _ := CgroupID(filepath.Join(top, "pod"+testPodUID, testContainerID))
	r, err := Open(Options{CRISocket: socket, NegativeTTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	now := time.Now()
	r.now = func() time.Time { return now }
	c, err := r.Resolve(id)
	if err == nil || c.ID != testContainerID || c.Pod.UID != testPodUID {
		t.Errorf("%+v, %v", c, err)
	}
	rt.failing.Store(false)
	if _, err := r.Resolve(id); err == nil {
		t.Error("queried again too early")
	}
	now = now.Add(2 * time.Minute)
	if c, err := r.Resolve(id); err != nil || c.Name != "app" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestResolveWorksWithoutRuntime(t *testing.T) {
	top := makeCgroupTree(t, "pod"+testPodUID+"/"+testContainerID)
	r, err := Open(Options{CRISocket: "none", RuncRoot: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	id, _ := CgroupID(filepath.Join(top, "pod"+testPodUID, testContainerID))
	if c, err := r.Resolve(id); err != nil || c.ID != testContainerID || c.Pod.UID != testPodUID ||
		c.Workload.Kind != "Pod" {
		t.Errorf("%+v, %v", c, err)
	}
	own, _ := CgroupID(top)
	if c, err := r.Resolve(own); err != nil || c.ID != filepath.Base(top) || c.Workload.Kind != "Container" {
		t.Errorf("a cgroup of no container: %+v, %v", c, err)
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
	if n := r.cache.Len(); n != 4096 {
		t.Errorf("%d cached results", n)
	}
}

func TestRuncContainerIsNamedByItsStateFile(t *testing.T) {
	top := makeCgroupTree(t, "box/inner")
	state := filepath.Join(t.TempDir(), "drill-1")
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	path := "/" + filepath.Base(top) + "/box"
	if err := os.WriteFile(filepath.Join(state, "state.json"),
		[]byte(`{"id":"drill-1","created":"2026-01-02T03:04:05Z","cgroup_paths":{"memory":"/sys/fs/cgroup/memory`+path+`"}}`),
		0o600); err != nil {
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

func BenchmarkCgroupPathByID(b *testing.B) {
	root, err := FindCgroupRoot()
	if err != nil {
		b.Skip("SKIPPED: " + err.Error())
	}
	id, err := CgroupID(root)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := CgroupPathByID(root, id); err != nil {
			b.Fatal(err)
		}
	}
}

// The PID of an exited process can be reused. The privileges of the exited process say nothing about children of the
// new one.
func TestPrivilegesOfExitedProcessWithReusedPIDAreIgnored(t *testing.T) {
	table := NewProcessTable(0)
	event := func(kind sensors.Kind, pid, ppid uint32, start uint64, euid uint32) *sensors.Event {
		e := &sensors.Event{Kind: kind, Process: sensors.Process{
			PID: pid, PPID: ppid, StartNS: start, UID: euid, EUID: euid,
			Exe: "/bin/x",
		}}
		table.RecordEvent(e)
		return e
	}
	event(sensors.KindExec, 7, 1, 100, 1000)
	if !event(sensors.KindExec, 8, 7, 200, 0).Process.PrivilegesGained {
		t.Error("its parent had no privileges")
	}
	event(sensors.KindExit, 7, 1, 100, 1000)
	if event(sensors.KindExec, 9, 7, 300, 0).Process.PrivilegesGained {
		t.Error("PID 7 now belongs to a runtime")
	}
}
