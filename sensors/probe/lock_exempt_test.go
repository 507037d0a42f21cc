package probe

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stanch/sensors/containermeta"
)

// registerAsKubelet registers this test process as the node's kubelet.
func registerAsKubelet(t *testing.T, l *EgressLock) {
	t.Helper()
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	id, _, ok := processCgroup(root, os.Getpid())
	if !ok {
		t.Fatal("this process has no cgroup")
	}
	if err := l.SetProbers([]Prober{{Cgroup: id}}); err != nil {
		t.Fatal(err)
	}
}

// newLockedLab returns a lab whose pod is locked, serves on port 8080 and was probed by the kubelet over IPv4 and
// IPv6.
func newLockedLab(t *testing.T) (*networkLab, *EgressLock) {
	t.Helper()
	n := newNetworkLab(t)
	n.pod.run(t, "serve", "8080")
	l := openTestLock(t, newLockDir(t))
	registerAsKubelet(t, l)
	st, err := l.Apply(EgressLockRequest{
		LeaseID: "lease-1", Cgroups: []uint64{n.podID}, Veths: n.veths,
		ExpiresAt: time.Now().Add(5 * time.Minute),
	})
	if err != nil || !st.Active || !st.VethLocked {
		t.Fatalf("Apply: %+v, %v", st, err)
	}
	for _, host := range []string{podIP, podIPv6} {
		if got, err := dialAndAsk(host, "8080"); got != "answer" {
			t.Fatalf("the kubelet's probe of %s: %q, %v", host, got, err)
		}
	}
	return n, l
}

func lockStateOf(t *testing.T, l *EgressLock, id uint64) EgressLockState {
	t.Helper()
	st, err := l.StateOfCgroup(id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// assertFrameDenied sends a frame from the pod and requires that it is dropped.
func assertFrameDenied(t *testing.T, n *networkLab, l *EgressLock, frame []byte) {
	t.Helper()
	before := lockStateOf(t, l, n.podID)
	if got := n.pod.run(t, "frame", "eth0", formatHex(frame), "20"); got != "sent" {
		t.Fatal(got)
	}
	deadline := time.Now().Add(2 * time.Second)
	for lockStateOf(t, l, n.podID).DeniedPackets < before.DeniedPackets+20 {
		if time.Now().After(deadline) {
			t.Errorf("%d of 20 frames passed", before.DeniedPackets+20-lockStateOf(t, l, n.podID).DeniedPackets)
			return
		}
	}
}

func TestLockAllowsOnlyValidNeighborDiscovery(t *testing.T) {
	n, l := newLockedLab(t)
	pod, peer, node := n.veths[0].MAC[:], parseMAC(t, n.peer.run(t, "mac", "eth0")), bridgeMAC(t)
	groupIP, groupMAC := solicitedNodeGroup(nodeIPv6)
	true6 := neighborSolicitation(podIPv6, groupIP, nodeIPv6, 255, pod, nil)

	// The pod's own kernel sends reports of its multicast groups, which are denied and counted too: at random times, but
	// not with every solicitation.
	denied := func() uint64 { return lockStateOf(t, l, n.podID).DeniedByProtocol["icmp"] }
	passed := false
	for range 5 {
		before, deniedBefore := n.peerFrameCount(t), denied()
		n.pod.run(t, "frame", "eth0", formatHex(ethernetFrame(groupMAC, pod, 0x86dd, true6)), "1")
		waitUntil(t, "a solicitation from the kernel arrives at the node", func() bool { return n.peerFrameCount(t) > before })
		if passed = denied() == deniedBefore; passed {
			break
		}
	}
	if !passed {
		t.Error("each valid solicitation was denied")
	}

	inside := make([]byte, 52)
	inside[0] = 135
	copy(inside[8:24], netip.MustParseAddr("::ffff:"+nodeIP).AsSlice())
	copy(inside[24:], "28 bytes of a secret and so on")
	badSum := append([]byte{}, true6...)
	badSum[42] ^= 0x55
	flow := append([]byte{}, true6...)
	flow[3] = 7
	long := append(append([]byte{}, true6...), "more"...)
	arp := func(to []byte) []byte {
		b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
		a, c := netip.MustParseAddr(podIP).As4(), netip.MustParseAddr(nodeIP).As4()
		b = append(append(b, pod...), a[:]...)
		b = append(append(b, 0, 0, 0, 0, 0, 0), c[:]...)
		return ethernetFrame(to, pod, 0x0806, b)
	}
	for name, frame := range map[string][]byte{
		"ICMPv6 in IPv4 to the peer": ethernetFrame(peer, pod, 0x0800, ipv4Packet(podIP, peerIP, 58, inside)),
		"ICMPv6 in IPv4 to anywhere": ethernetFrame(peer, pod, 0x0800, ipv4Packet(podIP, "203.0.113.9", 58, inside)),
		"to another prefix": ethernetFrame(peer, pod, 0x86dd,
			neighborSolicitation(podIPv6, "2001:db8:bad::1", nodeIPv6, 255, pod, nil)),
		"to the peer": ethernetFrame(peer, pod, 0x86dd,
			neighborSolicitation(podIPv6, peerIPv6, nodeIPv6, 255, pod, nil)),
		"to the node's address and the peer": ethernetFrame(peer, pod, 0x86dd,
			neighborSolicitation(podIPv6, nodeIPv6, nodeIPv6, 255, pod, nil)),
		"to the group and the peer": ethernetFrame(peer, pod, 0x86dd, true6),
		"with another hop limit": ethernetFrame(groupMAC, pod, 0x86dd,
			neighborSolicitation(podIPv6, groupIP, nodeIPv6, 64, pod, nil)),
		"with reserved bytes": ethernetFrame(groupMAC, pod, 0x86dd,
			neighborSolicitation(podIPv6, groupIP, nodeIPv6, 255, pod, func(m []byte) { m[5] = 'x' })),
		"with a code": ethernetFrame(groupMAC, pod, 0x86dd,
			neighborSolicitation(podIPv6, groupIP, nodeIPv6, 255, pod, func(m []byte) { m[1] = 'x' })),
		"with another address in its option": ethernetFrame(groupMAC, pod, 0x86dd,
			neighborSolicitation(podIPv6, groupIP, nodeIPv6, 255, []byte("secret"), nil)),
		"with another option": ethernetFrame(groupMAC, pod, 0x86dd,
			neighborSolicitation(podIPv6, groupIP, nodeIPv6, 255, pod, func(m []byte) { m[24] = 14 })),
		"with a wrong checksum": ethernetFrame(groupMAC, pod, 0x86dd, badSum),
		"with a flow label":     ethernetFrame(groupMAC, pod, 0x86dd, flow),
		"with trailing bytes":   ethernetFrame(groupMAC, pod, 0x86dd, long),
		"with another source address": ethernetFrame(groupMAC, pod, 0x86dd,
			neighborSolicitation("fd31:7::9", groupIP, nodeIPv6, 255, pod, nil)),
		"with another source MAC": ethernetFrame(groupMAC, []byte("secret"), 0x86dd, true6),
		"for the peer's address": ethernetFrame(groupMAC, pod, 0x86dd,
			neighborSolicitation(podIPv6, groupIP, peerIPv6, 255, pod, nil)),
		"an advertisement to the peer's MAC": ethernetFrame(peer, pod, 0x86dd,
			neighborSolicitation(podIPv6, nodeIPv6, podIPv6, 255, pod, func(m []byte) { m[0], m[4], m[24] = 136, 0x60, 2 })),
		"an ARP request to the peer's MAC":  arp(peer),
		"an ARP request to an invented MAC": arp([]byte("\x02ecret")),
		"an advertisement with an extra flag": ethernetFrame(node, pod, 0x86dd,
			neighborSolicitation(podIPv6, nodeIPv6, podIPv6, 255, pod, func(m []byte) { m[0], m[4], m[24] = 136, 0x61, 2 })),
	} {
		t.Run(name, func(t *testing.T) { assertFrameDenied(t, n, l, frame) })
	}
}

func TestRepliesReachOnlyTheNode(t *testing.T) {
	n, l := newLockedLab(t)
	pod, peer, node := n.veths[0].MAC[:], parseMAC(t, n.peer.run(t, "mac", "eth0")), bridgeMAC(t)
	c, err := net.Dial("tcp", podIP+":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	answer := ipv4Packet(podIP, nodeIP, 6, tcpSegment(8080, port, make([]byte, 1400)))
	t.Run("a neighbor's MAC address", func(t *testing.T) {
		assertFrameDenied(t, n, l, ethernetFrame(peer, pod, 0x0800,
			answer))
	})

	t.Run("more than the bytes per second", func(t *testing.T) {
		before, start := lockStateOf(t, l, n.podID), time.Now()
		n.pod.run(t, "frame", "eth0", formatHex(ethernetFrame(node, pod, 0x0800, answer)), "400")
		waitUntil(t, "all frames are processed", func() bool {
			st := lockStateOf(t, l, n.podID)
			return st.DeniedPackets+st.AnsweredPackets-before.DeniedPackets-before.AnsweredPackets >= 400
		})
		passed := lockStateOf(t, l, n.podID).AnsweredPackets - before.AnsweredPackets
		seconds := uint64(time.Since(start)/time.Second) + 2
		if most := seconds * (64<<10/1454 + 1); passed == 0 || passed > most {
			t.Errorf("%d frames passed, at most %d may", passed, most)
		}
	})

	t.Run("a connection that the node closed", func(t *testing.T) {
		if err := c.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		c.Close() // closed at once, with a reset
		assertFrameDenied(t, n, l, ethernetFrame(node, pod, 0x0800, answer))
		// The node replies to unknown segments with resets. They must not renew the exemption.
		assertFrameDenied(t, n, l, ethernetFrame(node, pod, 0x0800, answer))
	})
}

func TestOnlyKubeletConnectionsGetReplies(t *testing.T) {
	n, l := newLockedLab(t)
	t.Run("another user's process on the node", func(t *testing.T) {
		asker := selfCommand("ask", podIP, "8080")
		asker.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := asker.CombinedOutput(); err == nil {
			t.Errorf("got a reply: %s", out)
		}
	})
	t.Run("root process in another cgroup", func(t *testing.T) {
		dir, _ := newCgroup(t, "")
		if out, err := startCommandInCgroup(t, dir, selfCommand("ask", podIP, "8080")).CombinedOutput(); err == nil {
			t.Errorf("got a reply: %s", out)
		}
	})
	t.Run("a neighbor with the node's address", func(t *testing.T) {
		before := lockStateOf(t, l, n.podID)
		if got := n.sibling.run(t, "pretend", nodeIP, "33333", podIP, "8080"); got != "sent" {
			t.Fatal(got)
		}
		sibling := parseMAC(t, n.sibling.run(t, "mac", "eth0"))
		assertFrameDenied(t, n, l, ethernetFrame(sibling, n.veths[0].MAC[:], 0x0800,
			ipv4Packet(podIP, nodeIP, 6, tcpSegment(8080, 33333, []byte("secret")))))
		if got := lockStateOf(t, l, n.podID).AnsweredPackets; got != before.AnsweredPackets {
			t.Errorf("%d replies", got-before.AnsweredPackets)
		}
	})
	if got, err := dialAndAsk(podIP, "8080"); got != "answer" {
		t.Errorf("the kubelet afterwards: %q, %v", got, err)
	}

	// If no kubelet is known, the lock allows replies only to root in the node's network.
	if err := l.SetProbers(nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := dialAndAsk(podIP, "8080"); got == "answer" {
		t.Error("got a reply although no kubelet is known")
	}
	if _, err := l.Apply(EgressLockRequest{
		LeaseID: "lease-1", Cgroups: []uint64{n.podID}, Veths: n.veths,
		AnswerRootSockets: true, ExpiresAt: time.Now().Add(time.Minute),
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := dialAndAsk(podIP, "8080"); got != "answer" {
		t.Errorf("root of the node: %q, %v", got, err)
	}
	asker := selfCommand("ask", podIP, "8080")
	asker.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := asker.CombinedOutput(); err == nil {
		t.Errorf("another user got a reply: %s", out)
	}
}

func TestOnlyRootOfTheNodeCountsAsKubelet(t *testing.T) {
	requireKernel(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		skipOrFail(t, "sleep")
	}
	raw, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	program := folder + "/kubelet"
	if err := os.WriteFile(program, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	writable := t.TempDir() + "/kubelet"
	if err := os.WriteFile(writable, raw, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(writable, 0o777); err != nil {
		t.Fatal(err)
	}
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	podDir := root + "/stanch-test-kubepods-" + strconv.Itoa(os.Getpid())
	if err := os.MkdirAll(podDir+"/pod0f0e0d0c-0000-4000-8000-000000000001", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		waitUntil(t, "cgroups are removed", func() bool {
			return os.Remove(podDir+"/pod0f0e0d0c-0000-4000-8000-000000000001") == nil && os.Remove(podDir) == nil
		})
	})
	for name, c := range map[string]struct {
		program string
		attr    *syscall.SysProcAttr
		pod     bool
		want    bool
	}{
		"root of the node": {program: program, want: true},
		"another user": {program: program, attr: &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: 65534,
			Gid: 65534,
		}}},
		"another network namespace": {program: program, attr: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}},
		"another PID namespace":     {program: program, attr: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}},
		"another user namespace": {program: program, attr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{{Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{Size: 1}},
		}},
		"a file that others can write": {program: writable},
		"a pod's cgroup":               {program: program, pod: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, id := "", uint64(0)
			if c.pod {
				dir = podDir + "/pod0f0e0d0c-0000-4000-8000-000000000001"
				if id, err = containermeta.CgroupID(dir); err != nil {
					t.Fatal(err)
				}
			} else {
				dir, id = newCgroup(t, "")
			}
			cmd := exec.Command(c.program, "60")
			cmd.SysProcAttr = c.attr
			if err := startCommandInCgroup(t, dir, cmd).Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				var exit *exec.ExitError
				if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
					t.Error(err)
				}
			})
			waitUntil(t, "the program runs", func() bool {
				b, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
				return err == nil && strings.Contains(string(b), "(sleeping)")
			})
			found, err := FindKubelets("")
			if err != nil {
				t.Fatal(err)
			}
			got := false
			for _, p := range found {
				got = got || p == Prober{Cgroup: id}
			}
			if got != c.want {
				t.Errorf("counts as a kubelet: %v, want %v", got, c.want)
			}
		})
	}
}
