package probe

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
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
