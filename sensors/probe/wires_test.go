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

// pidsOf gives the processes of actors.
func pidsOf(actors ...*actor) []int {
	var pids []int
	for _, a := range actors {
		pids = append(pids, a.cmd.Process.Pid)
	}
	return pids
}

// hiddenActor is an actor in the pod's cgroup and in a network namespace of its own, which it made as a user without rights.
func hiddenActor(t *testing.T, dir string) *actor {
	t.Helper()
	if _, err := exec.LookPath("unshare"); err != nil {
		skip(t, "unshare")
	}
	return startActor(t, dir, "unshare", "--user", "--map-root-user", "--net")
}

func TestWiresAreThoseOfEveryProcess(t *testing.T) {
	n := newLab(t)
	hidden := hiddenActor(t, n.podDir)

	t.Run("a process that left the pod's network", func(t *testing.T) {
		wires, err := FindWires(pidsOf(hidden, n.pod)...)
		if err != nil || len(wires) != 1 || wires[0].Index != n.wires[0].Index {
			t.Errorf("%+v, %v", wires, err)
		}
	})
	t.Run("only such a process", func(t *testing.T) {
		if wires, err := FindWires(pidsOf(hidden)...); err != nil || len(wires) != 0 {
			t.Errorf("%+v, %v", wires, err)
		}
	})
	t.Run("one thread of a process that left", func(t *testing.T) {
		left := startActor(t, n.podDir, "unshare", "--net")
		if got := left.do(t, "enter", nsOf(t, n.pod)); got != "sent" {
			t.Fatal(got)
		}
		wires, err := FindWires(pidsOf(left)...)
		if err != nil || len(wires) != 1 || wires[0].Index != n.wires[0].Index {
			t.Errorf("%+v, %v", wires, err)
		}
	})
	t.Run("an open namespace of a process that left", func(t *testing.T) {
		left := startActor(t, n.podDir, "unshare", "--net")
		if got := left.do(t, "hold", nsOf(t, n.pod)); got != "sent" {
			t.Fatal(got)
		}
		wires, err := FindWires(pidsOf(left)...)
		if err != nil || len(wires) != 1 || wires[0].Index != n.wires[0].Index {
			t.Errorf("%+v, %v", wires, err)
		}
	})
	ns := filepath.Base(nsOf(t, n.pod))
	t.Run("a veth with both ends in the pod", func(t *testing.T) {
		ip(t, "-n", ns, "link", "add", "inner0", "type", "veth", "peer", "name", "inner1")
		defer ip(t, "-n", ns, "link", "del", "inner0")
		wires, err := FindWires(pidsOf(n.pod)...)
		if err != nil || len(wires) != 1 {
			t.Errorf("%+v, %v", wires, err)
		}
	})
	t.Run("a veth into another namespace of the pod's", func(t *testing.T) {
		ip(t, "-n", ns, "link", "add", "inner0", "type", "veth", "peer", "name", "inner1", "netns", pidText(hidden))
		defer ip(t, "-n", ns, "link", "del", "inner0")
		wires, err := FindWires(pidsOf(n.pod, hidden)...)
		if err != nil || len(wires) != 1 {
			t.Errorf("%+v, %v", wires, err)
		}
		// Without the other namespace the search is not complete, and still gives what it found.
		wires, err = FindWires(pidsOf(n.pod)...)
		if !errors.Is(err, ErrNotSupported) || len(wires) != 1 {
			t.Errorf("%+v, %v", wires, err)
		}
	})
	t.Run("a veth made to look like a neighbor's", func(t *testing.T) {
		sibling, err := FindWires(pidsOf(n.sibling)...)
		if err != nil || len(sibling) != 1 {
			t.Fatalf("%+v, %v", sibling, err)
		}
		inside := indexOf(t, sibling[0].Index)
		// The index is free in a namespace of the pod's own making.
		own := hiddenActor(t, n.podDir)
		add := exec.Command("nsenter", "--net=/proc/"+pidText(own)+"/ns/net", "ip", "link", "add", "inner0", "index", itoa(inside),
			"type", "veth", "peer", "name", "inner1", "index", itoa(sibling[0].Index))
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		wires, err := FindWires(pidsOf(n.pod, own)...)
		if err != nil || len(wires) != 1 || wires[0].Index != n.wires[0].Index {
			t.Errorf("%+v, %v", wires, err)
		}
	})
}

// indexOf is the index of the other end of a host-side veth.
func indexOf(t *testing.T, host int) int {
	t.Helper()
	all, err := interfaces()
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

func TestALockHoldsTheWireOfAPodWhoseFirstProcessLeftItsNetwork(t *testing.T) {
	n := newLab(t)
	hidden := hiddenActor(t, n.podDir)
	wires, err := FindWires(pidsOf(hidden, n.pod)...)
	if err != nil {
		t.Fatal(err)
	}
	l := openLock(t, lockDir(t))
	st, err := l.Apply(LockRequest{Lease: "a", Cgroups: []uint64{n.podID}, Wires: wires, Until: time.Now().Add(time.Minute)})
	if err != nil || !st.Wire {
		t.Fatalf("%+v, %v", st, err)
	}
	before := n.heard(t)
	if got := n.pod.do(t, "packet", "eth0"); !strings.HasPrefix(got, "sent") {
		t.Fatal(got)
	}
	eventually(t, "the frame is denied", func() bool { return stateOf(t, l, n.podID).Denied > 0 })
	if n.heard(t) != before {
		t.Error("a frame passed the lock")
	}
	if _, err := net.InterfaceByIndex(wires[0].Index); err != nil {
		t.Error(err)
	}
}
