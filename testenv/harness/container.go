package harness

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/containermeta"
)

// ContainerIDPrefix is the prefix of the container ids of all harnesses; Harness.ContainerPrefix extends it with the
// harness's own.
const ContainerIDPrefix = "acce97"

// MinerCommand is the command line of an attack that the rules detect immediately.
var MinerCommand = []string{"xmrig", "--url", "stratum+tcp://pool.example:3333", "--donate-level", "1"}

// Container is a container of this host: a cgroup like those of a runtime, with the host's network, and a peer that
// counts what its processes send.
type Container struct {
	ID  string
	dir string
	udp *net.UDPConn
	tcp net.Listener

	datagrams    atomic.Uint64
	lines        atomic.Uint64
	lastReceived atomic.Int64
}

// NewContainer creates an empty container. Every Stanch on this machine observes it; the id shows its harness.
func (s *Harness) NewContainer(t testing.TB) *Container {
	t.Helper()
	return createContainer(t, s.ContainerPrefix)
}

// NewContainer creates an empty container that belongs to no harness.
func NewContainer(t testing.TB) *Container {
	t.Helper()
	return createContainer(t, ContainerIDPrefix)
}

func createContainer(t testing.TB, mark string) *Container {
	t.Helper()
	resolver, err := containermeta.Open(containermeta.Options{CRISocket: "none"})
	require.NoError(t, err)
	root := resolver.CgroupRoot()
	require.NoError(t, resolver.Close())
	c := &Container{ID: mark + randomHex(32-len(mark)/2)}
	parent := filepath.Join(root, "stand-"+randomHex(3))
	c.dir = filepath.Join(parent, c.ID)
	require.NoError(t, os.MkdirAll(c.dir, 0o755))
	t.Cleanup(func() { removeCgroup(c.dir); removeCgroup(parent) })
	c.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.udp.Close() })
	c.tcp, err = net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.tcp.Close() })
	go c.countDatagrams()
	go c.countLines()
	return c
}

func (c *Container) countDatagrams() {
	b := make([]byte, 2048)
	for {
		if _, err := c.udp.Read(b); err != nil {
			return
		}
		c.lastReceived.Store(time.Now().UnixNano())
		c.datagrams.Add(1)
	}
}

func (c *Container) countLines() {
	for {
		conn, err := c.tcp.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				c.lines.Add(1)
			}
		}()
	}
}

// StartAttack starts a process in the container, under the given command line, that sends to the peer until it is
// killed.
func (c *Container) StartAttack(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	if len(args) == 0 {
		args = MinerCommand
	}
	cgroup, err := os.Open(c.dir)
	require.NoError(t, err)
	defer func() { _ = cgroup.Close() }()
	self, err := os.Executable()
	require.NoError(t, err)
	p := &exec.Cmd{Path: self, Args: args, Env: []string{"PATH=/usr/bin:/bin", attackBeaconEnv + "=" +
		c.udp.LocalAddr().String() + " " + c.tcp.Addr().String()}}
	p.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true,
		Pdeathsig: syscall.SIGKILL,
	}
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	return p
}

// Command returns a command that runs in the container, with the test's environment.
func (c *Container) Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cgroup, err := os.Open(c.dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cgroup.Close() })
	p := exec.Command(name, args...)
	p.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true,
		Pdeathsig: syscall.SIGKILL,
	}
	return p
}

// CgroupDir returns the container's directory in cgroup v2.
func (c *Container) CgroupDir() string { return c.dir }

// CPUTime returns the CPU time of the container's processes, including those that have exited.
func (c *Container) CPUTime(t testing.TB) time.Duration {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.dir, "cpu.stat"))
	require.NoError(t, err)
	var usec int64
	_, err = fmt.Sscanf(string(raw), "usage_usec %d", &usec)
	require.NoError(t, err)
	return time.Duration(usec) * time.Microsecond
}

// ReceivedCount returns how many datagrams and lines the peer received.
func (c *Container) ReceivedCount() uint64 { return c.datagrams.Load() + c.lines.Load() }

// LastReceived returns when the peer received the last datagram.
func (c *Container) LastReceived() time.Time { return time.Unix(0, c.lastReceived.Load()) }

// IsSilent reports whether nothing arrives for the duration d, after the packets in flight have arrived.
func (c *Container) IsSilent(d time.Duration) bool {
	time.Sleep(60 * time.Millisecond)
	before := c.ReceivedCount()
	time.Sleep(d)
	return c.ReceivedCount() == before
}

// WaitForTraffic waits until traffic arrives again.
func (c *Container) WaitForTraffic(limit time.Duration) bool {
	before := c.datagrams.Load()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c.datagrams.Load() > before {
			return true
		}
	}
	return false
}

const attackBeaconEnv = "STAND_BEACON"

// RunBeaconIfRequested turns this process into the attacker if it was started as one. TestMain must call it first.
func RunBeaconIfRequested() {
	udp, tcp, ok := strings.Cut(os.Getenv(attackBeaconEnv), " ")
	if !ok {
		return
	}
	c, err := net.Dial("udp", udp) //nolint:noctx // until killed
	if err != nil {
		os.Exit(1)
	}
	lines, _ := net.DialTimeout("tcp", tcp, time.Second) //nolint:noctx // until killed
	for n := 0; ; n++ {
		_, _ = fmt.Fprintf(c, "beat %d\n", n)
		if lines != nil && n%5 == 0 {
			_ = lines.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
			_, _ = fmt.Fprintf(lines, "line %d\n", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		panic(err)
	}
	return hex.EncodeToString(b)
}

func removeCgroup(dir string) {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("0"), 0o600)
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o600)
	for range 50 {
		if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
