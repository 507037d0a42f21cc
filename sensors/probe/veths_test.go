package probe

import (
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pidsOf returns the process IDs of helpers.
func pidsOf(actors ...*helperProcess) []int {
	var pids []int
	for _, a := range actors {
		pids = append(pids, a.cmd.Process.Pid)
	}
	return pids
}

// newHiddenHelper returns a helper in the pod's cgroup and in a network namespace that it created as an unprivileged
// user.
func newHiddenHelper(t *testing.T, dir string) *helperProcess {
	t.Helper()
	if _, err := exec.LookPath("unshare"); err != nil {
		skipOrFail(t, "unshare")
	}
	return startHelperProcess(t, dir, "unshare", "--user", "--map-root-user", "--net")
}

func TestFindVethsInspectsEveryProcess(t *testing.T) {
	n := newNetworkLab(t)
	hidden := newHiddenHelper(t, n.podDir)

	t.Run("a process that left the pod's network", func(t *testing.T) {
		veths, err := FindVeths(pidsOf(hidden, n.pod)...)
		if err != nil || len(veths) != 1 || veths[0].Index != n.veths[0].Index {
			t.Errorf("%+v, %v", veths, err)
		}
	})
	t.Run("only a process that left the network", func(t *testing.T) {
		if veths, err := FindVeths(pidsOf(hidden)...); err != nil || len(veths) != 0 {
			t.Errorf("%+v, %v", veths, err)
		}
	})
	t.Run("one thread of a process that left", func(t *testing.T) {
		left := startHelperProcess(t, n.podDir, "unshare", "--net")
		if got := left.run(t, "enter", netNamespaceOf(t, n.pod)); got != "sent" {
			t.Fatal(got)
		}
		veths, err := FindVeths(pidsOf(left)...)
		if err != nil || len(veths) != 1 || veths[0].Index != n.veths[0].Index {
			t.Errorf("%+v, %v", veths, err)
		}
	})
	t.Run("an open namespace of a process that left", func(t *testing.T) {
		left := startHelperProcess(t, n.podDir, "unshare", "--net")
		if got := left.run(t, "hold", netNamespaceOf(t, n.pod)); got != "sent" {
			t.Fatal(got)
		}
		veths, err := FindVeths(pidsOf(left)...)
		if err != nil || len(veths) != 1 || veths[0].Index != n.veths[0].Index {
			t.Errorf("%+v, %v", veths, err)
		}
	})
	ns := filepath.Base(netNamespaceOf(t, n.pod))
	t.Run("a veth with both ends in the pod", func(t *testing.T) {
		runIPCommand(t, "-n", ns, "link", "add", "inner0", "type", "veth", "peer", "name", "inner1")
		defer runIPCommand(t, "-n", ns, "link", "del", "inner0")
		veths, err := FindVeths(pidsOf(n.pod)...)
		if err != nil || len(veths) != 1 {
			t.Errorf("%+v, %v", veths, err)
		}
	})
	t.Run("a veth into another namespace of the pod", func(t *testing.T) {
		runIPCommand(t, "-n", ns, "link", "add", "inner0", "type", "veth", "peer", "name", "inner1", "netns", pidOf(hidden))
		defer runIPCommand(t, "-n", ns, "link", "del", "inner0")
		veths, err := FindVeths(pidsOf(n.pod, hidden)...)
		if err != nil || len(veths) != 1 {
			t.Errorf("%+v, %v", veths, err)
		}
		// Without the other namespace the search is incomplete, and still returns what it found.
		veths, err = FindVeths(pidsOf(n.pod)...)
		if !errors.Is(err, ErrNotSupported) || len(veths) != 1 {
			t.Errorf("%+v, %v", veths, err)
		}
	})
	t.Run("a veth that imitates a neighbor's", func(t *testing.T) {
		sibling, err := FindVeths(pidsOf(n.sibling)...)
		if err != nil || len(sibling) != 1 {
			t.Fatalf("%+v, %v", sibling, err)
		}
		inside := peerIndexOf(t, sibling[0].Index)
		// The index is free in a namespace that the pod created.
		own := newHiddenHelper(t, n.podDir)
		add := exec.Command("nsenter", "--net=/proc/"+pidOf(own)+"/ns/net", "ip", "link", "add", "inner0", "index",
			itoa(inside),
			"type", "veth", "peer", "name", "inner1", "index", itoa(sibling[0].Index))
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		veths, err := FindVeths(pidsOf(n.pod, own)...)
		if err != nil || len(veths) != 1 || veths[0].Index != n.veths[0].Index {
			t.Errorf("%+v, %v", veths, err)
		}
	})
}

// peerIndexOf returns the interface index of the other end of a host-side veth.
func peerIndexOf(t *testing.T, host int) int {
	t.Helper()
	all, err := listAllInterfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.index == host {
			return i.peer
		}
	}
	t.Fatal("no such interface")
	return 0
}

func TestLockBlocksVethIfFirstProcessLeftTheNetwork(t *testing.T) {
	n := newNetworkLab(t)
	hidden := newHiddenHelper(t, n.podDir)
	veths, err := FindVeths(pidsOf(hidden, n.pod)...)
	if err != nil {
		t.Fatal(err)
	}
	l := openTestLock(t, newLockDir(t))
	st, err := l.Apply(EgressLockRequest{
		LeaseID: "a", Cgroups: []uint64{n.podID}, Veths: veths,
		ExpiresAt: time.Now().Add(time.Minute),
	})
	if err != nil || !st.VethLocked {
		t.Fatalf("%+v, %v", st, err)
	}
	before := n.peerFrameCount(t)
	if got := n.pod.run(t, "packet", "eth0"); !strings.HasPrefix(got, "sent") {
		t.Fatal(got)
	}
	waitUntil(t, "the frame is denied", func() bool { return lockStateOf(t, l, n.podID).DeniedPackets > 0 })
	if n.peerFrameCount(t) != before {
		t.Error("a frame passed the lock")
	}
	if _, err := net.InterfaceByIndex(veths[0].Index); err != nil {
		t.Error(err)
	}
}
