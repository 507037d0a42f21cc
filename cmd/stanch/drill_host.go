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
	"stanch/worker/gateway"
)

// drillEnvironment is where a drill attacks: a container made for it, and the peer that it talks to.
type drillEnvironment interface {
	// TargetID is what the incident must be about: a container's id or a pod's UID.
	TargetID() string
	// VictimLineCount is how many lines the peer got from the attacked, SiblingHeard from its sibling.
	VictimLineCount() uint64
	SiblingLineCount() uint64
	Close()
}

// hostEnvironment is a container of this machine: namespaces and a cgroup of its own, a cable to the drill's peer.
type hostEnvironment struct {
	id           string
	victimLines  atomic.Uint64
	siblingLines atomic.Uint64
	closers      []func()
	// register puts the attacked container into the drill's scope.
	register registerTargetsFunc
}

// registerTargetsFunc registers what a drill created, before its attack starts.
type registerTargetsFunc func(ctx context.Context, targets gateway.DrillTargets) error

func (s *hostEnvironment) TargetID() string         { return s.id }
func (s *hostEnvironment) VictimLineCount() uint64  { return s.victimLines.Load() }
func (s *hostEnvironment) SiblingLineCount() uint64 { return s.siblingLines.Load() }

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

// newHostEnvironment makes the attacked container and a sibling, and starts the attack.
func newHostEnvironment(ctx context.Context, kind string, register registerTargetsFunc) (_ *hostEnvironment, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("a drill on this host makes a container and needs root")
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
	if s.id, err = s.startContainer(ctx, root, name, "3333", kind, &s.victimLines); err != nil {
		return nil, err
	}
	if _, err = s.startContainer(ctx, root, name+"b", "8333", "wait", &s.siblingLines); err != nil {
		return nil, err
	}
	return s, nil
}

// startContainer starts one container whose process attacks the peer that it makes.
func (s *hostEnvironment) startContainer(ctx context.Context, root, name, port, kind string, heard *atomic.Uint64) (string, error) {
	id := randomHex(32)
	dir := filepath.Join(root, name, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the drill's cgroup: %w", err)
	}
	s.closers = append(s.closers, func() { removeCgroup(dir); removeCgroup(filepath.Dir(dir)) })
	cgroup, err := os.Open(dir)
	if err != nil {
		return "", fmt.Errorf("open the drill's cgroup: %w", err)
	}
	defer func() { _ = cgroup.Close() }()
	if kind != "wait" { // the sibling is nobody's target
		inode, err := containermeta.CgroupID(dir)
		if err != nil {
			return "", fmt.Errorf("register the drill's container: %w", err)
		}
		container := gateway.DrillContainer{ID: id, CgroupPath: "/" + name + "/" + id, CgroupID: inode}
		if err := s.register(ctx, gateway.DrillTargets{Containers: []gateway.DrillContainer{container}}); err != nil {
			return "", err
		}
	}

	hostIP, peerIP := randomSubnet()
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	// The peer listens before its address exists: the kernel allows it with IP_FREEBIND.
	listener, err := (&net.ListenConfig{Control: enableFreebind}).Listen(ctx, "tcp", net.JoinHostPort(hostIP, port))
	if err != nil {
		return "", fmt.Errorf("listen as the drill's peer: %w", err)
	}
	s.closers = append(s.closers, func() { _ = listener.Close() })
	go countLines(listener, kind == "reverse-shell", heard)

	c := exec.CommandContext(ctx, self, drillAttackCommand, kind, listener.Addr().String())
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	ready, err := c.StdinPipe()
	if err != nil {
		return "", fmt.Errorf("start the drill's container: %w", err)
	}
	c.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if err := c.Start(); err != nil {
		return "", fmt.Errorf("start the drill's container: %w", err)
	}
	s.closers = append(s.closers, func() { _ = c.Process.Kill(); _ = c.Wait() })
	if err := connectVeth(c.Process.Pid, "stdr"+name[len("stanch-drill-"):], hostIP, peerIP); err != nil {
		return "", err
	}
	if err := ready.Close(); err != nil {
		return "", fmt.Errorf("start the attack: %w", err)
	}
	return id, nil
}

// randomSubnet picks two addresses of the range for benchmarks (RFC 2544), which nobody routes.
func randomSubnet() (host, peer string) {
	b := make([]byte, 2)
	_, _ = rand.Read(b)
	base := int(b[1]) &^ 3
	return fmt.Sprintf("198.18.%d.%d", b[0], base+1), fmt.Sprintf("198.18.%d.%d", b[0], base+2)
}

func enableFreebind(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

// connectVeth connects the network namespace of a process to this machine.
func connectVeth(pid int, name, hostIP, peerIP string) error {
	fail := func(err error) error { return fmt.Errorf("cable the drill's container: %w", err) }
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

// countLines counts the lines that arrive. To a reverse shell it says what to do.
func countLines(l net.Listener, shell bool, heard *atomic.Uint64) {
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
				heard.Add(1)
			}
		})
	}
}

// removeCgroup kills what is left in a cgroup and removes it.
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
