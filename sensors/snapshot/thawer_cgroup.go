package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors/containermeta"
)

const (
	// thawerCgroup is the cgroup of the thawers, below the root of cgroup v2. They are outside of the sensor's pod,
	// because the container runtime kills every process in the pod's cgroup when the pod is deleted.
	thawerCgroup = "stanch-thawer"
	// maxThawers is the maximum number of frozen cgroups on a node.
	maxThawers = 16
	// thawerStartTimeout is how long a thawer may take to start and freeze.
	thawerStartTimeout = freezeTimeout + 10*time.Second
)

// startThawer starts a thawer and waits for its response. If it returns an error, nothing stays frozen.
func startThawer(root string, program []string, dir *os.File, o thawOrder) error {
	if os.Getpid() == 1 {
		return refusalError(
			"this sensor is the first process of a PID namespace, and all processes in the namespace end with it; run it with hostPID",
		)
	}
	place, err := makeThawerCgroup(root, o.AdoptExisting)
	if err != nil {
		return err
	}
	defer place.Close()
	text, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("start a thawer: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start a thawer: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(
		program[0],
		append(
			slices.Clone(program[1:]),
			string(text),
		)...)
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"} // and no secret of this process
	cmd.ExtraFiles = []*os.File{dir, w}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(place.Fd()),
	}
	err = startInNodeNamespaces(cmd)
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start a thawer in cgroup %s: %w", place.Name(), err)
	}
	go func() { _ = cmd.Wait() }() // the marker says how it ended
	var a thawerResponse
	if err := r.SetReadDeadline(time.Now().Add(thawerStartTimeout)); err != nil {
		return errors.Join(fmt.Errorf("start a thawer: %w", err), cmd.Process.Signal(syscall.SIGTERM))
	}
	if err := json.NewDecoder(r).Decode(&a); err != nil {
		return errors.Join(fmt.Errorf("start a thawer: read its response: %w", err),
			ignoreProcessDone(cmd.Process.Signal(syscall.SIGTERM)))
	}
	switch {
	case a.Refused != "":
		return refusalError(a.Refused)
	case a.NoMark:
		return errNotFrozenByStanch
	case a.Err != "":
		return errors.New(a.Err)
	}
	return nil
}

func ignoreProcessDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// makeThawerCgroup creates and opens the cgroup of the thawers.
func makeThawerCgroup(root string, adopt bool) (*os.File, error) {
	path := filepath.Join(root, thawerCgroup)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("create the thawers' cgroup: %w", err)
	}
	running, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("count the thawers: %w", err)
	}
	if n := strings.Count(string(running), "\n"); n >= maxThawers && !adopt {
		return nil, refusalError(fmt.Sprintf("%d cgroups on this node are already frozen, which is the maximum", n))
	}
	return openCgroup(path, 0)
}

// startInNodeNamespaces starts a program in the node's mount and cgroup namespaces, if this process may enter them. A
// process cannot be moved out of its cgroup namespace (mount option nsdelegate), and a process that outlives its
// container would keep the container's mounts alive.
func startInNodeNamespaces(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has changed its namespaces and ends with this goroutine
		enterNodeNamespaces()
		done <- cmd.Start()
	}()
	return <-done
}

// enterNodeNamespaces moves the calling thread into the namespaces of the node's first process. If that is not
// allowed, the thread stays, and the kernel decides whether a process can be put into the thawers' cgroup.
func enterNodeNamespaces() {
	for _, ns := range []struct {
		name string
		flag int
	}{{"mnt", unix.CLONE_NEWNS}, {"cgroup", unix.CLONE_NEWCGROUP}} {
		theirs, err := os.Open("/proc/1/ns/" + ns.name)
		if err != nil {
			continue
		}
		var a, b unix.Stat_t
		same := unix.Fstat(int(theirs.Fd()), &a) == nil && unix.Stat("/proc/thread-self/ns/"+ns.name, &b) == nil &&
			a.Ino == b.Ino
		if !same && (ns.flag != unix.CLONE_NEWNS || unix.Unshare(unix.CLONE_FS) == nil) {
			_ = unix.Setns(int(theirs.Fd()), ns.flag)
		}
		_ = theirs.Close()
	}
}

// cgroupV1Roots returns the real roots of the cgroup v1 hierarchies by their controllers. The result is empty on a
// machine without cgroup v1.
func cgroupV1Roots(mountinfo string) map[string]string {
	roots, depth := map[string]string{}, map[string]int{}
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(g) < 3 || g[0] != "cgroup" || strings.Trim(f[3], "/.") != "" {
			continue
		}
		// In a cgroup namespace, the real root is as many levels up as the namespace is deep: "/../..".
		up := strings.Count(f[3], "..")
		if _, seen := roots[g[2]]; !seen || up > depth[g[2]] {
			roots[g[2]], depth[g[2]] = f[4], up
		}
	}
	return roots
}

// leaveCgroupV1 moves this process to the root of every cgroup v1 hierarchy, because a container runtime also kills by
// these.
func leaveCgroupV1() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("leave the sensor's cgroups: %w", err)
	}
	for _, root := range cgroupV1Roots(string(mounts)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("leave the sensor's cgroups: %w", err)
		}
	}
	return nil
}

// checkForeignFreeze refuses a cgroup that is already stopped by the freeze of an ancestor or by the freezer of cgroup
// v1.
func (t *thawer) checkForeignFreeze() error {
	above := ".."
	for range 64 { // deeper than any runtime nests cgroups
		f, err := openCgroupFile(t.cgroupDir, above+"/cgroup.freeze", unix.O_RDONLY)
		if err != nil {
			break // the root cgroup has no such file
		}
		asked, err := readCgroupFile(f)
		_ = f.Close()
		if err == nil && strings.TrimSpace(asked) == "1" {
			return refusalError("a parent cgroup is already frozen")
		}
		above += "/.."
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read the freezer of cgroup v1: %w", err)
	}
	for options, root := range cgroupV1Roots(string(mounts)) {
		if slices.Contains(strings.Split(options, ","), "freezer") {
			return t.checkFrozenByV1(root)
		}
	}
	return nil
}

// checkFrozenByV1 refuses a cgroup whose first processes are frozen by cgroup v1. runc uses it to pause on hybrid
// machines.
func (t *thawer) checkFrozenByV1(root string) error {
	f, err := openCgroupFile(t.cgroupDir, "cgroup.procs", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := readCgroupFile(f)
	if err != nil {
		return nil
	}
	for _, field := range slices.Collect(strings.FieldsSeq(list))[:min(3, len(strings.Fields(list)))] {
		pid, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		// /proc shows paths relative to this process's namespace; the tree shows all.
		path, ok := containermeta.ProcessCgroupPath(root, pid)
		if !ok {
			continue
		}
		state, err := os.ReadFile(filepath.Join(root, path, "freezer.state"))
		if err == nil && strings.TrimSpace(string(state)) != "THAWED" {
			return refusalError("the container is already paused by the cgroup v1 freezer")
		}
	}
	return nil
}
