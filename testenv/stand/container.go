package stand

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

// Prefix begins the id of every container of any stand; Stand.Mark goes on with the stand's own.
const Prefix = "acce97"

// Miner is the command line of the attack that rules see at once.
var Miner = []string{"xmrig", "--url", "stratum+tcp://pool.example:3333", "--donate-level", "1"}

// Container is a container of this host: a cgroup such as a runtime makes, with the host's network, and a peer that
// counts what its processes send.
type Container struct {
	ID  string
	dir string
	udp *net.UDPConn
	tcp net.Listener

	datagrams atomic.Uint64
	lines     atomic.Uint64
	last      atomic.Int64
}

// Container makes an empty container. Every Stanch of this machine sees it: its id says whose it is.
func (s *Stand) Container(t testing.TB) *Container {
	t.Helper()
	return newContainer(t, s.Mark)
}

// NewContainer makes an empty container of no particular stand.
func NewContainer(t testing.TB) *Container {
	t.Helper()
	return newContainer(t, Prefix)
}

func newContainer(t testing.TB, mark string) *Container {
	t.Helper()
	resolver, err := containermeta.Open(containermeta.Options{CRISocket: "none"})
	require.NoError(t, err)
	root := resolver.CgroupRoot()
	require.NoError(t, resolver.Close())
	c := &Container{ID: mark + randomHex(32-len(mark)/2)}
	parent := filepath.Join(root, "stand-"+randomHex(3))
	c.dir = filepath.Join(parent, c.ID)
	require.NoError(t, os.MkdirAll(c.dir, 0o755)) //nolint:gosec // a cgroup
	t.Cleanup(func() { removeCgroup(c.dir); removeCgroup(parent) })
	c.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.udp.Close() })
	c.tcp, err = net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.tcp.Close() })
	go c.hear()
	go c.accept()
	return c
}

func (c *Container) hear() {
	b := make([]byte, 2048)
	for {
		if _, err := c.udp.Read(b); err != nil {
			return
		}
		c.last.Store(time.Now().UnixNano())
		c.datagrams.Add(1)
	}
}

func (c *Container) accept() {
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

// Attack starts a process in the container that sends to the peer until it is killed, under the command line given.
func (c *Container) Attack(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	if len(args) == 0 {
		args = Miner
	}
	cgroup, err := os.Open(c.dir)
	require.NoError(t, err)
	defer func() { _ = cgroup.Close() }()
	self, err := os.Executable()
	require.NoError(t, err)
	p := &exec.Cmd{Path: self, Args: args, Env: []string{"PATH=/usr/bin:/bin", beaconEnv + "=" + c.udp.LocalAddr().String() + " " + c.tcp.Addr().String()}}
	p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	return p
}

// Command is a command that runs in the container, with the test's own environment.
func (c *Container) Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cgroup, err := os.Open(c.dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cgroup.Close() })
	p := exec.Command(name, args...) //nolint:gosec,noctx // what the test says
	p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true, Pdeathsig: syscall.SIGKILL}
	return p
}

// Cgroup is the container's directory in cgroup v2.
func (c *Container) Cgroup() string { return c.dir }

// CPU is the time that the container's processes have used, those that ended included.
func (c *Container) CPU(t testing.TB) time.Duration {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.dir, "cpu.stat"))
	require.NoError(t, err)
	var usec int64
	_, err = fmt.Sscanf(string(raw), "usage_usec %d", &usec)
	require.NoError(t, err)
	return time.Duration(usec) * time.Microsecond
}

// Heard is how many datagrams and lines the peer got.
func (c *Container) Heard() uint64 { return c.datagrams.Load() + c.lines.Load() }

// LastHeard is when the last datagram came.
func (c *Container) LastHeard() time.Time { return time.Unix(0, c.last.Load()) }

// Silent tells whether nothing arrives for so long, after what was on its way has arrived.
func (c *Container) Silent(d time.Duration) bool {
	time.Sleep(60 * time.Millisecond)
	before := c.Heard()
	time.Sleep(d)
	return c.Heard() == before
}

// Resumed waits until something arrives again.
func (c *Container) Resumed(limit time.Duration) bool {
	before := c.datagrams.Load()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c.datagrams.Load() > before {
			return true
		}
	}
	return false
}

const beaconEnv = "STAND_BEACON"

// Beacon turns this process into the attacker if it was started as one. TestMain calls it first.
func Beacon() {
	udp, tcp, ok := strings.Cut(os.Getenv(beaconEnv), " ")
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
