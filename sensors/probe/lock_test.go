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

// networkLab is a node with a bridge like that of a common CNI, a pod, its sibling, and a peer that captures frames.
// Everything is in namespaces of this machine.
type networkLab struct {
	pod, sibling, peer *helperProcess
	podDir             string
	podID              uint64
	veths              []Veth
}

const (
	nodeIP, podIP, siblingIP, peerIP = "10.231.7.1", "10.231.7.2", "10.231.7.3", "10.231.7.4"
	nodeIPv6, podIPv6, peerIPv6      = "fd31:7::1", "fd31:7::2", "fd31:7::4"
)

func runIPCommand(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func newNetworkLab(t *testing.T) *networkLab {
	t.Helper()
	requireKernel(t)
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			skipOrFail(t, tool)
		}
	}
	n := &networkLab{}
	tag := strconv.FormatInt(time.Now().UnixNano()/1000%0xffffffff, 36)
	bridge := "stb" + tag
	runIPCommand(t, "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", bridge).Run() })
	runIPCommand(t, "addr", "add", nodeIP+"/24", "dev", bridge)
	runIPCommand(t, "-6", "addr", "add", nodeIPv6+"/64", "dev", bridge, "nodad")
	runIPCommand(t, "link", "set", bridge, "up")
	podDir, podID := newCgroup(t, "")
	other, _ := newCgroup(t, "")
	n.podDir, n.podID = podDir, podID
	container, _ := newCgroup(t, podDir)
	for i, m := range []struct {
		actor  **helperProcess
		v4, v6 string
		dir    string
	}{
		{&n.pod, podIP, podIPv6, container},
		{&n.sibling, siblingIP, "fd31:7::3", other},
		{&n.peer, peerIP, peerIPv6, other},
	} {
		ns, host := fmt.Sprintf("stn%s-%d", tag, i), fmt.Sprintf("stv%s-%d", tag, i)
		runIPCommand(t, "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		runIPCommand(t, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "link", "del", host).Run() })
		runIPCommand(t, "link", "set", host, "master", bridge, "up")
		runIPCommand(t, "-n", ns, "link", "set", "lo", "up")
		runIPCommand(t, "-n", ns, "addr", "add", m.v4+"/24", "dev", "eth0")
		runIPCommand(t, "-n", ns, "-6", "addr", "add", m.v6+"/64", "dev", "eth0", "nodad")
		runIPCommand(t, "-n", ns, "link", "set", "eth0", "up")
		runIPCommand(t, "-n", ns, "route", "add", "default", "via", nodeIP)
		*m.actor = newHelperProcess(t, ns, m.dir)
	}
	var err error
	if n.veths, err = FindVeths(n.pod.cmd.Process.Pid); err != nil || len(n.veths) != 1 {
		t.Fatalf("FindWires: %+v, %v", n.veths, err)
	}
	return n
}

// helperProcess is a process in a namespace and a cgroup that executes commands (see runHelperProcess).
type helperProcess struct {
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

func newHelperProcess(t *testing.T, ns, dir string) *helperProcess {
	t.Helper()
	return startHelperProcess(t, dir, "nsenter", "--net=/var/run/netns/"+ns)
}

// startHelperProcess starts a helper through another command.
func startHelperProcess(t *testing.T, dir string, by ...string) *helperProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := startCommandInCgroup(t, dir, exec.Command(by[0], append(by[1:], exe, "actor")...))
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
	a := &helperProcess{cmd: cmd, in: w, out: bufio.NewReader(out)}
	t.Cleanup(func() { w.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if got := a.run(t, "hello"); got != "hello" {
		t.Fatalf("actor says %q", got)
	}
	return a
}

// run sends a command and returns the response.
func (a *helperProcess) run(t *testing.T, words ...string) string {
	t.Helper()
	fmt.Fprintln(a.in, strings.Join(words, " "))
	line, err := a.out.ReadString('\n')
	if err != nil {
		t.Fatalf("actor %v: %v", words, err)
	}
	return strings.TrimSpace(line)
}

// peerFrameCount returns how many non-ARP frames from the pod arrived at the peer.
func (n *networkLab) peerFrameCount(t *testing.T) int {
	t.Helper()
	v, err := strconv.Atoi(n.peer.run(t, "frames", formatMAC(n.veths[0].MAC)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func formatMAC(m [6]byte) string { return net.HardwareAddr(m[:]).String() }

func newLockDir(t *testing.T) string {
	t.Helper()
	dir := "/sys/fs/bpf/stanch-test-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() {
		if err := Cleanup(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func openTestLock(t *testing.T, dir string) *EgressLock {
	t.Helper()
	l, err := OpenEgressLock(dir)
	if errors.Is(err, ErrNotSupported) {
		skipOrFail(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// egressAttempts lists ways to send from the pod, each of which succeeds without a lock.
var egressAttempts = [][]string{
	{"tcp", peerIP, "7000"},
	{"tcp", peerIPv6, "7000"},
	{"udp", peerIP, "7001"},
	{"udp", peerIPv6, "7001"},
	{"raw", peerIP},
	{"icmp", peerIP},
	{"packet", "eth0"},
	{"tcp", nodeIP, "1"},
	{"udp", nodeIP, "7001"},
}

func TestLockBlocksEgressAndExpires(t *testing.T) {
	n := newNetworkLab(t)
	for _, way := range egressAttempts[:7] {
		before := n.peerFrameCount(t)
		n.pod.run(t, way...)
		waitUntil(t, "arrives without a lock: "+strings.Join(way, " "), func() bool { return n.peerFrameCount(t) > before })
	}
	if got := n.pod.run(t, "open", peerIP, "7000"); got != "open" {
		t.Fatal(got)
	}
	if got := n.pod.run(t, "say", "before"); got != "said" {
		t.Fatal(got)
	}
	waitUntil(t, "the open connection works", func() bool { return strings.Contains(n.peer.run(t, "text"), "before") })
	n.pod.run(t, "serve", "8080")

	dir := newLockDir(t)
	l := openTestLock(t, dir)
	registerAsKubelet(t, l)
	until := time.Now().Add(6 * time.Second)
	start := time.Now()
	st, err := l.Apply(EgressLockRequest{LeaseID: "lease-1", Cgroups: []uint64{n.podID}, Veths: n.veths, ExpiresAt: until})
	if err != nil || !st.Active || !st.VethLocked || st.VethError != "" {
		t.Fatalf("Apply: %+v, %v", st, err)
	}
	t.Logf("applied in %v", time.Since(start))

	before := n.peerFrameCount(t)
	n.pod.run(t, "say", "held")
	for _, way := range egressAttempts {
		n.pod.run(t, way...)
	}
	if n.peerFrameCount(t) != before || strings.Contains(n.peer.run(t, "text"), "held") {
		t.Errorf("%d frames passed a lock", n.peerFrameCount(t)-before)
	}
	// Loopback, the sibling and the node's own connections still work.
	if got := n.pod.run(t, "ask", "127.0.0.1", "8080"); got != "answer" {
		t.Errorf("loopback in the pod: %s", got)
	}
	if got := n.pod.run(t, "ask", podIP, "8080"); got != "answer" {
		t.Errorf("the pod's own address: %s", got)
	}
	if got := n.sibling.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("the sibling: %s", got)
	}
	for _, host := range []string{podIP, podIPv6} {
		if got, err := dialAndAsk(host, "8080"); got != "answer" {
			t.Errorf("the node's probe of %s: %q, %v", host, got, err)
		}
	}
	// This does not let the pod reach the node: neither a listener nor the port that it replied to.
	local, err := net.Listen("tcp", nodeIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	_, port, _ := net.SplitHostPort(local.Addr().String())
	if got := n.pod.run(t, "tcp", nodeIP, port); got == "sent" {
		t.Error("the pod opened a connection to the node")
	}
	if got := n.sibling.run(t, "ask", podIP, "8080"); got == "answer" {
		t.Error("another pod got a reply")
	}
	st, err = l.StateOfCgroup(n.podID)
	if err != nil || !st.Active || st.DeniedPackets == 0 || st.AnsweredPackets == 0 || st.LeaseID != "lease-1" {
		t.Errorf("State: %+v, %v", st, err)
	}
	for _, kind := range []string{"tcp", "udp", "icmp"} {
		if st.DeniedByProtocol[kind] == 0 {
			t.Errorf("nothing denied as %s: %+v", kind, st.DeniedByProtocol)
		}
	}
	if d := st.ExpiresAt.Sub(until); d < -time.Second || d > time.Second {
		t.Errorf("Until is off by %v", d)
	}
	if _, err := l.Apply(EgressLockRequest{
		LeaseID: "lease-2", Cgroups: []uint64{n.podID},
		ExpiresAt: until,
	}); !errors.Is(err, ErrLockedByOtherLease) {
		t.Errorf("another lease: %v", err)
	}

	// The lock expires on its own, and the open connection delivers what was sent in the meantime.
	waitUntil(t, "the open connection continues", func() bool { return strings.Contains(n.peer.run(t, "text"), "held") })
	if time.Now().Before(until.Add(-50 * time.Millisecond)) {
		t.Errorf("the lock expired %v early", time.Until(until))
	}
	if st, err := l.StateOfCgroup(n.podID); err != nil || st.Active {
		t.Errorf("after its expiry: %+v, %v", st, err)
	}
	before = n.peerFrameCount(t)
	n.pod.run(t, "packet", "eth0")
	waitUntil(t, "packet sockets again", func() bool { return n.peerFrameCount(t) > before })
	if all, err := l.List(); err != nil || len(all) != 0 {
		t.Errorf("List: %+v, %v", all, err)
	}
	if st, err := l.Apply(EgressLockRequest{
		LeaseID: "lease-2", Cgroups: []uint64{n.podID}, Veths: n.veths,
		ExpiresAt: time.Now().Add(time.Minute),
	}); err != nil || !st.VethLocked {
		t.Errorf("another lease afterwards: %+v, %v", st, err)
	}
	if err := l.Release("lease-2"); err != nil {
		t.Error(err)
	}
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("after release: %s", got)
	}
}

func TestLockOutlivesItsOwnerAndExpires(t *testing.T) {
	n := newNetworkLab(t)
	dir := newLockDir(t)
	openTestLock(t, dir).Close()
	// Another process applies the lock and is killed.
	w := n.veths[0]
	owner := selfCommand("lock", dir, fmt.Sprint(n.podID), fmt.Sprint(w.Index), formatMAC(w.MAC), "3s")
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
	before := n.peerFrameCount(t)
	for _, way := range egressAttempts {
		n.pod.run(t, way...)
	}
	if got := n.peerFrameCount(t); got != before {
		t.Errorf("%d frames passed after the owner was killed", got-before)
	}
	// A process in a later container of the pod is locked too.
	later, _ := newCgroup(t, n.podDir)
	child := newHelperProcess(t, filepath.Base(netNamespaceOf(t, n.pod)), later)
	child.run(t, "packet", "eth0")
	if got := child.run(t, "tcp", peerIP, "7000"); got == "sent" || n.peerFrameCount(t) != before {
		t.Errorf("a later container: %s", got)
	}
	waitUntil(t, "it expires", func() bool { return n.pod.run(t, "tcp", peerIP, "7000") == "sent" })

	// The next process adopts the pins and extends nothing. The expired lock is gone, and an active lock stays in
	// force.
	l := openTestLock(t, dir)
	if _, err := l.Apply(EgressLockRequest{
		LeaseID: "x", Cgroups: []uint64{n.podID}, Veths: n.veths,
		ExpiresAt: time.Now().Add(time.Minute),
	}); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	l = openTestLock(t, dir)
	all, err := l.List()
	if err != nil || len(all) != 1 || all[0].LeaseID != "x" || !all[0].VethLocked || len(all[0].Cgroups) != 1 {
		t.Fatalf("adopted: %+v, %v", all, err)
	}
	if got := n.pod.run(t, "udp", peerIP, "7001"); got == "sent" {
		t.Error("an adopted lock is not in force")
	}
	if err := Cleanup(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("Cleanup while another process uses it: %v", err)
	}
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got == "sent" {
		t.Error("a refused Cleanup released the lock")
	}
	_ = l.Close()
	if err := Cleanup(dir); err != nil {
		t.Fatal(err)
	}
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("after Cleanup: %s", got)
	}
}

func TestLockAllowsOnlyTheAllowList(t *testing.T) {
	n := newNetworkLab(t)
	l := openTestLock(t, newLockDir(t))
	st, err := l.Apply(EgressLockRequest{
		LeaseID: "a", Cgroups: []uint64{n.podID}, Veths: n.veths, ExpiresAt: time.Now().Add(time.Minute),
		AllowList: []AllowedDestination{
			{Prefix: mustPrefix(peerIP + "/32"), Port: 7000, Protocol: "tcp"},
			{Prefix: mustPrefix("10.231.7.0/28"), Port: 9, Protocol: "udp"},
		},
	})
	if err != nil || !st.VethLocked {
		t.Fatalf("%+v, %v", st, err)
	}
	n.sibling.run(t, "serve", "7000")
	n.peer.run(t, "serve", "7002")
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("allowed: %s", got)
	}
	if got := n.pod.run(t, "udp", peerIP, "9"); got != "sent" {
		t.Errorf("allowed by the wider prefix: %s", got)
	}
	for to, want := range map[string]bool{
		peerIP + ":7000": false, peerIP + ":7002": true, siblingIP + ":7000": true,
		"127.0.0.1:1": false,
	} {
		if got := l.WouldDeny(n.podID, netip.MustParseAddrPort(to)); got != want {
			t.Errorf("Denies %s: %v, want %v", to, got, want)
		}
	}
	for _, way := range [][]string{{"tcp", peerIP, "7002"}, {"udp", peerIP, "7000"}, {"tcp", siblingIP, "7000"}} {
		if got := n.pod.run(t, way...); got == "sent" {
			t.Errorf("%v passed", way)
		}
	}
}

func TestApplyRejectsInvalidRequests(t *testing.T) {
	requireKernel(t)
	l := openTestLock(t, newLockDir(t))
	for name, r := range map[string]EgressLockRequest{
		"no lease":  {Cgroups: []uint64{2}, ExpiresAt: time.Now().Add(time.Minute)},
		"no cgroup": {LeaseID: "x", ExpiresAt: time.Now().Add(time.Minute)},
		"past":      {LeaseID: "x", Cgroups: []uint64{2}, ExpiresAt: time.Now().Add(-time.Minute)},
		"the root":  {LeaseID: "x", Cgroups: []uint64{1}, ExpiresAt: time.Now().Add(time.Minute)},
	} {
		if st, err := l.Apply(r); err == nil {
			t.Errorf("%s: %+v", name, st)
		}
	}
	if err := l.Release("never held"); err != nil {
		t.Error(err)
	}
	if _, err := FindVeths(os.Getpid()); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("own veths: %v", err)
	}
	if err := Cleanup("/sys/fs/bpf/stanch-test-nothing-here"); err != nil {
		t.Error(err)
	}
}
