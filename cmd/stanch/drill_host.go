package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"stanch/sensors/containermeta"
	"stanch/worker/drills"
)

// drillEnvironment is what a drill attacks in: a victim and a sibling made for it, and the peer that both send lines
// to.
type drillEnvironment interface {
	// TargetID returns the container id or the pod UID of the victim.
	TargetID() string
	// VictimLineCount returns the number of lines that the peer received from the victim.
	VictimLineCount() uint64
	// SiblingLineCount returns the number of lines that the peer received from the sibling.
	SiblingLineCount() uint64
	// Close removes what was created for the drill.
	Close()
}

// hostEnvironment runs the victim and its sibling on this machine, each with namespaces, a cgroup and a veth of its
// own.
type hostEnvironment struct {
	id           string
	victimLines  atomic.Uint64
	siblingLines atomic.Uint64
	closers      []func()
	// register adds the victim to the drill's scope.
	register registerTargetsFunc
}

// registerTargetsFunc registers the targets that a drill created, before its attack starts.
type registerTargetsFunc func(ctx context.Context, targets drills.Targets) error

// TargetID returns the id of the victim's container.
func (s *hostEnvironment) TargetID() string { return s.id }

// VictimLineCount returns the number of lines that the peer received from the victim.
func (s *hostEnvironment) VictimLineCount() uint64 { return s.victimLines.Load() }

// SiblingLineCount returns the number of lines that the peer received from the sibling.
func (s *hostEnvironment) SiblingLineCount() uint64 { return s.siblingLines.Load() }

// Close removes the containers, in reverse order of their creation.
func (s *hostEnvironment) Close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		panic(err)
	}
	return hex.EncodeToString(b)
}

// newHostEnvironment creates the victim and its sibling, and starts the attack. It needs root.
func newHostEnvironment(ctx context.Context, kind string, register registerTargetsFunc) (_ *hostEnvironment,
	err error,
) {
	if os.Getuid() != 0 {
		return nil, errors.New("create the drill's container: root is required; run the drill as root, or in a " +
			"cluster with --kubeconfig")
	}
	s := &hostEnvironment{register: register}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	resolver, err := containermeta.Open(containermeta.Options{CRISocket: "none"})
	if err != nil {
		return nil, fmt.Errorf("find the cgroups: %w", err)
	}
	root := resolver.CgroupRoot()
	_ = resolver.Close()
	name := "stanch-drill-" + randomHex(3)
	if s.id, err = s.startContainer(ctx, root, drillContainer{name, "3333", kind, &s.victimLines}); err != nil {
		return nil, err
	}
	if _, err = s.startContainer(ctx, root, drillContainer{name + "b", "8333", "wait", &s.siblingLines}); err != nil {
		return nil, err
	}
	return s, nil
}

// drillContainer is a container of a drill: what runs in it, its peer's port, and the lines that the peer received.
type drillContainer struct {
	name, port, kind string
	received         *atomic.Uint64
}

// startContainer starts one container and its peer, and returns the container's id. Lines that arrive add to received.
func (s *hostEnvironment) startContainer(ctx context.Context, root string, c drillContainer) (string, error) {
	name, port, kind, received := c.name, c.port, c.kind, c.received
	id := randomHex(32)
	dir := filepath.Join(root, name, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the drill's cgroup: %w", err)
	}
	s.closers = append(s.closers, func() { removeCgroup(dir); removeCgroup(filepath.Dir(dir)) })
	cgroup, err := os.Open(dir)
	if err != nil {
		return "", fmt.Errorf("open the drill's cgroup: %w", err)
	}
	defer func() { _ = cgroup.Close() }()
	if kind != "wait" { // the sibling is not a target
		inode, err := containermeta.CgroupID(dir)
		if err != nil {
			return "", fmt.Errorf("register the drill's container: %w", err)
		}
		container := drills.Container{ID: id, CgroupPath: "/" + name + "/" + id, CgroupID: inode}
		if err := s.register(ctx, drills.Targets{Containers: []drills.Container{container}}); err != nil {
			return "", err
		}
	}

	hostIP, peerIP := randomSubnet()
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the path of this program: %w", err)
	}
	// The peer listens before its address exists, which IP_FREEBIND permits.
	listener, err := (&net.ListenConfig{Control: enableFreebind}).Listen(ctx, "tcp", net.JoinHostPort(hostIP, port))
	if err != nil {
		return "", fmt.Errorf("listen as the drill's peer: %w", err)
	}
	s.closers = append(s.closers, func() { _ = listener.Close() })
	go countLines(listener, kind == "reverse-shell", received)

	attack := exec.CommandContext(ctx, self, drillAttackCommand, kind, listener.Addr().String())
	attack.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	ready, err := attack.StdinPipe()
	if err != nil {
		return "", fmt.Errorf("start the drill's container: %w", err)
	}
	attack.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if err := attack.Start(); err != nil {
		return "", fmt.Errorf("start the drill's container: %w", err)
	}
	s.closers = append(s.closers, func() { _ = attack.Process.Kill(); _ = attack.Wait() })
	if err := connectVeth(attack.Process.Pid, "stdr"+name[len("stanch-drill-"):], hostIP, peerIP); err != nil {
		return "", err
	}
	if err := ready.Close(); err != nil {
		return "", fmt.Errorf("start the attack: %w", err)
	}
	return id, nil
}

// randomSubnet returns two addresses of a random /30 in 198.18.0.0/16, a range for benchmarks that is not routed (RFC
// 2544).
func randomSubnet() (host, peer string) {
	b := make([]byte, 2)
	_, _ = rand.Read(b)
	base := int(b[1]) &^ 3
	return fmt.Sprintf("198.18.%d.%d", b[0], base+1), fmt.Sprintf("198.18.%d.%d", b[0], base+2)
}

// enableFreebind sets IP_FREEBIND on a socket.
func enableFreebind(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

// connectVeth connects the network namespace of a process to the host with a veth pair.
func connectVeth(pid int, name, hostIP, peerIP string) error {
	fail := func(err error) error { return fmt.Errorf("connect the drill's container to the host: %w", err) }
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fail(err)
	}
	host, err := netlink.LinkByName(name)
	if err != nil {
		return fail(err)
	}
	addr, err := netlink.ParseAddr(hostIP + "/30")
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(netlink.AddrAdd(host, addr), netlink.LinkSetUp(host)); err != nil {
		return fail(err)
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = ns.Close() }()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fail(err)
	}
	defer inside.Close()
	if addr, err = netlink.ParseAddr(peerIP + "/30"); err != nil {
		return fail(err)
	}
	for _, dev := range []string{"lo", "eth0"} {
		l, err := inside.LinkByName(dev)
		if err != nil {
			return fail(err)
		}
		if dev == "eth0" {
			if err := inside.AddrAdd(l, addr); err != nil {
				return fail(err)
			}
		}
		if err := inside.LinkSetUp(l); err != nil {
			return fail(err)
		}
	}
	return nil
}

// countLines counts the lines that arrive on l, until it is closed. It sends a reverse shell its commands.
func countLines(l net.Listener, shell bool, received *atomic.Uint64) {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		open.Go(func() {
			defer func() { _ = c.Close() }()
			if shell {
				_, _ = fmt.Fprintln(c, "while echo beat; do sleep 0.05; done")
			}
			lines := bufio.NewScanner(c)
			for lines.Scan() {
				received.Add(1)
			}
		})
	}
}

// removeCgroup kills the processes that are left in a cgroup and removes it.
func removeCgroup(dir string) {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("0"), 0o600)
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o600)
	for range 50 {
		if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil && strings.TrimSpace(string(pids)) == "" {
			_ = os.Remove(dir)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
