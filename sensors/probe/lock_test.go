package probe

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lab is a node with a bridge as the usual CNI makes it, a pod, its sibling, and a peer that listens on the wire.
// Everything lives in namespaces and on addresses of this machine.
type lab struct {
	pod, sibling, peer *actor
	podDir             string
	podID              uint64
	wires              []Wire
}

const (
	nodeIP, podIP, siblingIP, peerIP = "10.231.7.1", "10.231.7.2", "10.231.7.3", "10.231.7.4"
	node6, pod6, peer6               = "fd31:7::1", "fd31:7::2", "fd31:7::4"
)

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func newLab(t *testing.T) *lab {
	t.Helper()
	needKernel(t)
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, tool)
		}
	}
	n := &lab{}
	tag := strconv.FormatInt(time.Now().UnixNano()/1000%0xffffffff, 36)
	bridge := "stb" + tag
	ip(t, "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", bridge).Run() })
	ip(t, "addr", "add", nodeIP+"/24", "dev", bridge)
	ip(t, "-6", "addr", "add", node6+"/64", "dev", bridge, "nodad")
	ip(t, "link", "set", bridge, "up")
	podDir, podID := cgroup(t, "")
	other, _ := cgroup(t, "")
	n.podDir, n.podID = podDir, podID
	container, _ := cgroup(t, podDir)
	for i, m := range []struct {
		actor  **actor
		v4, v6 string
		dir    string
	}{{&n.pod, podIP, pod6, container}, {&n.sibling, siblingIP, "fd31:7::3", other}, {&n.peer, peerIP, peer6, other}} {
		ns, host := fmt.Sprintf("stn%s-%d", tag, i), fmt.Sprintf("stv%s-%d", tag, i)
		ip(t, "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		ip(t, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "link", "del", host).Run() })
		ip(t, "link", "set", host, "master", bridge, "up")
		ip(t, "-n", ns, "link", "set", "lo", "up")
		ip(t, "-n", ns, "addr", "add", m.v4+"/24", "dev", "eth0")
		ip(t, "-n", ns, "-6", "addr", "add", m.v6+"/64", "dev", "eth0", "nodad")
		ip(t, "-n", ns, "link", "set", "eth0", "up")
		ip(t, "-n", ns, "route", "add", "default", "via", nodeIP)
		*m.actor = newActor(t, ns, m.dir)
	}
	var err error
	if n.wires, err = FindWires(n.pod.cmd.Process.Pid); err != nil || len(n.wires) != 1 {
		t.Fatalf("FindWires: %+v, %v", n.wires, err)
	}
	return n
}

// actor is a process in a namespace and a cgroup that does what it is told (see helperActor).
type actor struct {
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

func newActor(t *testing.T, ns, dir string) *actor {
	t.Helper()
	return startActor(t, dir, "nsenter", "--net=/var/run/netns/"+ns)
}

// startActor starts an actor by way of another command.
func startActor(t *testing.T, dir string, by ...string) *actor {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := inCgroup(t, dir, exec.Command(by[0], append(by[1:], exe, "actor")...))
	cmd.Env = append(os.Environ(), "STANCH_TEST_HELPER=1")
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	a := &actor{cmd: cmd, in: w, out: bufio.NewReader(out)}
	t.Cleanup(func() { w.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if got := a.do(t, "hello"); got != "hello" {
		t.Fatalf("actor says %q", got)
	}
	return a
}

// do sends a command and gives the answer.
func (a *actor) do(t *testing.T, words ...string) string {
	t.Helper()
	fmt.Fprintln(a.in, strings.Join(words, " "))
	line, err := a.out.ReadString('\n')
	if err != nil {
		t.Fatalf("actor %v: %v", words, err)
	}
	return strings.TrimSpace(line)
}

// heard is how many frames from the pod arrived at the peer's wire that were not ARP.
func (n *lab) heard(t *testing.T) int {
	t.Helper()
	v, err := strconv.Atoi(n.peer.do(t, "frames", mac(n.wires[0].MAC)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mac(m [6]byte) string { return net.HardwareAddr(m[:]).String() }

func lockDir(t *testing.T) string {
	t.Helper()
	dir := "/sys/fs/bpf/stanch-test-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() {
		if err := Disarm(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func openLock(t *testing.T, dir string) *Lock {
	t.Helper()
	l, err := OpenLock(dir)
	if errors.Is(err, ErrNotSupported) {
		skip(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// everything is every way out of the pod, each in a form that arrives when nothing holds it.
var everything = [][]string{
	{"tcp", peerIP, "7000"},
	{"tcp", peer6, "7000"},
	{"udp", peerIP, "7001"},
	{"udp", peer6, "7001"},
	{"raw", peerIP},
	{"icmp", peerIP},
	{"packet", "eth0"},
	{"tcp", nodeIP, "1"},
	{"udp", nodeIP, "7001"},
}

func TestTheLockHoldsEverythingAndLetsGo(t *testing.T) {
	n := newLab(t)
	for _, way := range everything[:7] {
		before := n.heard(t)
		n.pod.do(t, way...)
		eventually(t, "arrives without a lock: "+strings.Join(way, " "), func() bool { return n.heard(t) > before })
	}
	if got := n.pod.do(t, "open", peerIP, "7000"); got != "open" {
		t.Fatal(got)
	}
	if got := n.pod.do(t, "say", "before"); got != "said" {
		t.Fatal(got)
	}
	eventually(t, "the open connection works", func() bool { return strings.Contains(n.peer.do(t, "text"), "before") })
	n.pod.do(t, "serve", "8080")

	dir := lockDir(t)
	l := openLock(t, dir)
	asKubelet(t, l)
	until := time.Now().Add(6 * time.Second)
	start := time.Now()
	st, err := l.Apply(LockRequest{Lease: "lease-1", Cgroups: []uint64{n.podID}, Wires: n.wires, Until: until})
	if err != nil || !st.Held || !st.Wire || st.WireProblem != "" {
		t.Fatalf("Apply: %+v, %v", st, err)
	}
	t.Logf("applied in %v", time.Since(start))

	before := n.heard(t)
	n.pod.do(t, "say", "held")
	for _, way := range everything {
		n.pod.do(t, way...)
	}
	if n.heard(t) != before || strings.Contains(n.peer.do(t, "text"), "held") {
		t.Errorf("%d frames passed a lock", n.heard(t)-before)
	}
	// Loopback, the sibling, and the node's own connections go on.
	if got := n.pod.do(t, "ask", "127.0.0.1", "8080"); got != "answer" {
		t.Errorf("loopback in the pod: %s", got)
	}
	if got := n.pod.do(t, "ask", podIP, "8080"); got != "answer" {
		t.Errorf("the pod's own address: %s", got)
	}
	if got := n.sibling.do(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("the sibling: %s", got)
	}
	for _, host := range []string{podIP, pod6} {
		if got, err := ask(host, "8080"); got != "answer" {
			t.Errorf("the node's probe of %s: %q, %v", host, got, err)
		}
	}
	// The pod reaches nothing of the node's by that, neither a listener nor the port that it answered.
	local, err := net.Listen("tcp", nodeIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	_, port, _ := net.SplitHostPort(local.Addr().String())
	if got := n.pod.do(t, "tcp", nodeIP, port); got == "sent" {
		t.Error("the pod opened a connection to the node")
	}
	if got := n.sibling.do(t, "ask", podIP, "8080"); got == "answer" {
		t.Error("another pod was answered")
	}
	st, err = l.State(n.podID)
	if err != nil || !st.Held || st.Denied == 0 || st.Answered == 0 || st.Lease != "lease-1" {
		t.Errorf("State: %+v, %v", st, err)
	}
	for _, kind := range []string{"tcp", "udp", "icmp"} {
		if st.DeniedBy[kind] == 0 {
			t.Errorf("nothing denied as %s: %+v", kind, st.DeniedBy)
		}
	}
	if d := st.Until.Sub(until); d < -time.Second || d > time.Second {
		t.Errorf("Until is off by %v", d)
	}
	if _, err := l.Apply(LockRequest{Lease: "lease-2", Cgroups: []uint64{n.podID}, Until: until}); !errors.Is(err, ErrHeld) {
		t.Errorf("another lease: %v", err)
	}

	// It lapses by itself, and the open connection goes on with what was said meanwhile.
	eventually(t, "the open connection goes on", func() bool { return strings.Contains(n.peer.do(t, "text"), "held") })
	if time.Now().Before(until.Add(-50 * time.Millisecond)) {
		t.Errorf("the lock lapsed %v early", time.Until(until))
	}
	if st, err := l.State(n.podID); err != nil || st.Held {
		t.Errorf("after its end: %+v, %v", st, err)
	}
	before = n.heard(t)
	n.pod.do(t, "packet", "eth0")
	eventually(t, "packet sockets again", func() bool { return n.heard(t) > before })
	if all, err := l.List(); err != nil || len(all) != 0 {
		t.Errorf("List: %+v, %v", all, err)
	}
	if st, err := l.Apply(LockRequest{Lease: "lease-2", Cgroups: []uint64{n.podID}, Wires: n.wires, Until: time.Now().Add(time.Minute)}); err != nil || !st.Wire {
		t.Errorf("another lease afterwards: %+v, %v", st, err)
	}
	if err := l.Release("lease-2"); err != nil {
		t.Error(err)
	}
	if got := n.pod.do(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("after release: %s", got)
	}
}

func TestTheLockOutlivesItsOwnerAndLapses(t *testing.T) {
	n := newLab(t)
	dir := lockDir(t)
	openLock(t, dir).Close()
	// Another process applies it and is killed.
	w := n.wires[0]
	owner := self("lock", dir, fmt.Sprint(n.podID), fmt.Sprint(w.Index), mac(w.MAC), "3s")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	owner.Stderr = os.Stderr
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if !strings.HasPrefix(line, "locked") {
		t.Fatalf("owner says %q", line)
	}
	if err := owner.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	before := n.heard(t)
	for _, way := range everything {
		n.pod.do(t, way...)
	}
	if got := n.heard(t); got != before {
		t.Errorf("%d frames passed after the owner was killed", got-before)
	}
	// A child that is born later in a new container of the pod is held too.
	later, _ := cgroup(t, n.podDir)
	child := newActor(t, filepath.Base(nsOf(t, n.pod)), later)
	child.do(t, "packet", "eth0")
	if got := child.do(t, "tcp", peerIP, "7000"); got == "sent" || n.heard(t) != before {
		t.Errorf("a later container: %s", got)
	}
	eventually(t, "it lapses", func() bool { return n.pod.do(t, "tcp", peerIP, "7000") == "sent" })

	// The next process adopts the pins, extends nothing and sees it gone; a fresh one is adopted in force.
	l := openLock(t, dir)
	if _, err := l.Apply(LockRequest{Lease: "x", Cgroups: []uint64{n.podID}, Wires: n.wires, Until: time.Now().Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	l = openLock(t, dir)
	all, err := l.List()
	if err != nil || len(all) != 1 || all[0].Lease != "x" || !all[0].Wire || len(all[0].Cgroups) != 1 {
		t.Fatalf("adopted: %+v, %v", all, err)
	}
	if got := n.pod.do(t, "udp", peerIP, "7001"); got == "sent" {
		t.Error("an adopted lock does not hold")
	}
	if err := Disarm(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("Disarm beside the process that has it open: %v", err)
	}
	if got := n.pod.do(t, "tcp", peerIP, "7000"); got == "sent" {
		t.Error("a refused Disarm lifted the lock")
	}
	_ = l.Close()
	if err := Disarm(dir); err != nil {
		t.Fatal(err)
	}
	if got := n.pod.do(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("after Disarm: %s", got)
	}
}

func TestAnAllowListIsTheOnlyWayOut(t *testing.T) {
	n := newLab(t)
	l := openLock(t, lockDir(t))
	st, err := l.Apply(LockRequest{
		Lease: "a", Cgroups: []uint64{n.podID}, Wires: n.wires, Until: time.Now().Add(time.Minute),
		Allow: []Allow{{Prefix: mustPrefix(peerIP + "/32"), Port: 7000, Protocol: "tcp"}, {Prefix: mustPrefix("10.231.7.0/28"), Port: 9, Protocol: "udp"}},
	})
	if err != nil || !st.Wire {
		t.Fatalf("%+v, %v", st, err)
	}
	n.sibling.do(t, "serve", "7000")
	n.peer.do(t, "serve", "7002")
	if got := n.pod.do(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("allowed: %s", got)
	}
	if got := n.pod.do(t, "udp", peerIP, "9"); got != "sent" {
		t.Errorf("allowed by the wider prefix: %s", got)
	}
	for to, want := range map[string]bool{peerIP + ":7000": false, peerIP + ":7002": true, siblingIP + ":7000": true, "127.0.0.1:1": false} {
		if got := l.Denies(n.podID, netip.MustParseAddrPort(to)); got != want {
			t.Errorf("Denies %s: %v, want %v", to, got, want)
		}
	}
	for _, way := range [][]string{{"tcp", peerIP, "7002"}, {"udp", peerIP, "7000"}, {"tcp", siblingIP, "7000"}} {
		if got := n.pod.do(t, way...); got == "sent" {
			t.Errorf("%v passed", way)
		}
	}
}

func TestRefusals(t *testing.T) {
	needKernel(t)
	l := openLock(t, lockDir(t))
	for name, r := range map[string]LockRequest{
		"no lease":  {Cgroups: []uint64{2}, Until: time.Now().Add(time.Minute)},
		"no cgroup": {Lease: "x", Until: time.Now().Add(time.Minute)},
		"past":      {Lease: "x", Cgroups: []uint64{2}, Until: time.Now().Add(-time.Minute)},
		"the root":  {Lease: "x", Cgroups: []uint64{1}, Until: time.Now().Add(time.Minute)},
	} {
		if st, err := l.Apply(r); err == nil {
			t.Errorf("%s: %+v", name, st)
		}
	}
	if err := l.Release("never held"); err != nil {
		t.Error(err)
	}
	if _, err := FindWires(os.Getpid()); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("own wires: %v", err)
	}
	if err := Disarm("/sys/fs/bpf/stanch-test-nothing-here"); err != nil {
		t.Error(err)
	}
}
