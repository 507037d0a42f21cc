package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/identity"
	"stanch/sensors/link"
	"stanch/sensors/probe"
	"stanch/sensors/proof"
	lacking "stanch/testenv/require"
)

// node is an agent with a lock of its own, and an authority's key.
type node struct {
	*Agent
	root  string // of the cgroup tree
	under string // where this test's cgroups are
	key   proof.Key
	dir   string // of pins
	state string
}

func newNode(t *testing.T) *node {
	t.Helper()
	lacking.Root(t)
	root, err := identity.FindCgroupRoot()
	if err != nil {
		lacking.Lacking(t, "%v", err)
	}
	n := &node{root: root, dir: "/sys/fs/bpf/stanch-agent-" + strconv.Itoa(os.Getpid()), state: t.TempDir()}
	n.under, err = os.MkdirTemp(root, "stanch-agent-")
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(n.under, "cgroup.kill"), []byte("1"), 0)
		require.Eventually(t, func() bool { return removeTree(n.under) == nil }, 10*time.Second, 5*time.Millisecond)
	})
	n.key, err = proof.NewKey(make([]byte, 32))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, probe.Disarm(n.dir)) })
	n.start(t)
	return n
}

// start makes the agent, as a sensor that starts does.
func (n *node) start(t *testing.T) {
	t.Helper()
	r, err := identity.Open(identity.Options{CRISocket: "none"})
	require.NoError(t, err)
	l, err := probe.OpenLock(n.dir)
	if errors.Is(err, probe.ErrNotSupported) {
		lacking.Lacking(t, "%v", err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close(); _ = r.Close() })
	n.Agent, err = New(Options{Node: "node-1", Resolver: r, Lock: l, StateDir: n.state}, nil)
	require.NoError(t, err)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

func containerID() string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(rand.Uint32()) //nolint:gosec // a name
	}
	return hex.EncodeToString(b)
}

// container is a process in a cgroup that is named as Docker does.
type container struct {
	id, dir string
	cgroup  uint64
	cmd     *exec.Cmd
}

// run starts a container below a folder of the test's; by is what the process is started with.
func (n *node) run(t *testing.T, folder, id string, by ...string) *container {
	t.Helper()
	c := &container{id: id, dir: filepath.Join(n.under, folder, "docker", id)}
	require.NoError(t, os.MkdirAll(c.dir, 0o755))
	var err error
	c.cgroup, err = identity.CgroupID(c.dir)
	require.NoError(t, err)
	fd, err := os.Open(c.dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, fd.Close()) }()
	args := append(by, "sleep", "600") //nolint:gocritic // a new list
	c.cmd = exec.Command(args[0], args[1:]...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	require.NoError(t, c.cmd.Start())
	t.Cleanup(func() { c.kill(t) })
	return c
}

func (c *container) kill(t *testing.T) {
	t.Helper()
	_ = c.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := c.cmd.Wait(); err != nil && !errors.As(err, &exit) && c.cmd.ProcessState == nil {
		t.Error(err)
	}
	require.Eventually(t, func() bool { err := os.Remove(c.dir); return err == nil || os.IsNotExist(err) }, 5*time.Second, 2*time.Millisecond)
}

// lease is what the authority permitted for one target.
type lease struct {
	id     string
	target link.NodeTarget
	until  time.Time
	params json.RawMessage
	token  proof.Signed
}

func (n *node) permit(t *testing.T, id string, target link.NodeTarget, params string) lease {
	t.Helper()
	l := lease{id: id, target: target, until: time.Now().Add(10 * time.Minute), params: json.RawMessage(params)}
	var err error
	l.token, err = n.key.Sign(proof.PurposeToken, proof.Token{
		Nonce: "n", Lease: id, Action: "pod.isolate", Target: target.ID(), Params: proof.Hash(l.params), Issued: time.Now(), Until: l.until,
	})
	require.NoError(t, err)
	return l
}

func (n *node) send(kind link.CommandKind, command any) (link.HoldState, error) {
	body, err := json.Marshal(command)
	if err != nil {
		return link.HoldState{}, err
	}
	out, _, err := n.Handle(context.Background(), kind, body, proof.NewKeyring(n.key.Public()))
	state, _ := out.(link.HoldState)
	return state, err
}

// apply asks for a lease's lock; edit changes the command before it is sent.
func (n *node) apply(l lease, edit func(*link.HoldCommand)) (link.HoldState, error) {
	c := link.HoldCommand{Target: l.target, Action: "pod.isolate", Lease: l.id, Until: l.until, Params: l.params, Token: l.token}
	if edit != nil {
		edit(&c)
	}
	return n.send(link.CommandLock, c)
}

func (n *node) release(t *testing.T, l lease) (link.HoldState, error) {
	t.Helper()
	grant, err := n.key.Sign(proof.PurposeGrant, proof.Grant{
		Nonce: "g", Operation: proof.OperationRelease, Lease: l.id, People: []string{"somebody"}, Issued: time.Now(), Expires: time.Now().Add(time.Minute),
	})
	require.NoError(t, err)
	return n.send(link.CommandUnlock, link.EndCommand{Target: l.target, Lease: l.id, Grant: &grant})
}

func TestALockDoesNotEndEarlierByManySmallSteps(t *testing.T) {
	n := newNode(t)
	c := n.run(t, "a", containerID())
	l := n.permit(t, "L", link.NodeTarget{ContainerID: c.id}, `{}`)
	_, err := n.apply(l, nil)
	require.NoError(t, err)
	refusals := 0
	for step := 1; step <= 600; step++ {
		if _, err := n.apply(l, func(c *link.HoldCommand) { c.Until = l.until.Add(-time.Duration(step) * 990 * time.Millisecond) }); err != nil {
			require.ErrorIs(t, err, link.ErrRefused)
			refusals++
		}
	}
	require.Equal(t, 599, refusals, "only the first step is within the tolerance")
	held, err := n.Lock.Lease("L")
	require.NoError(t, err)
	require.WithinDuration(t, l.until, held.Until, 2*time.Second)
}

func TestAFirstLockIsNotShorterThanItsToken(t *testing.T) {
	n := newNode(t)
	c := n.run(t, "a", containerID())
	l := n.permit(t, "L", link.NodeTarget{ContainerID: c.id}, `{}`)
	_, err := n.apply(l, func(c *link.HoldCommand) { c.Until = time.Now().Add(2 * time.Second) })
	require.ErrorIs(t, err, link.ErrRefused)
}

func TestALockLeavesOpenOnlyWhatItsTokenCovers(t *testing.T) {
	n := newNode(t)
	c := n.run(t, "a", containerID())
	target := link.NodeTarget{ContainerID: c.id}
	closed := n.permit(t, "L", target, `{}`)
	for name, params := range map[string]string{"another allow list": `{"allow":["0.0.0.0/0"]}`, "one more parameter": `{"ingress":true}`, "none": ``} {
		_, err := n.apply(closed, func(c *link.HoldCommand) { c.Params = json.RawMessage(params) })
		require.ErrorIs(t, err, link.ErrRefused, name)
		require.ErrorIs(t, err, proof.ErrUnproved, name)
	}
	open := n.permit(t, "M", target, `{"allow":["192.0.2.0/24"]}`)
	st, err := n.apply(open, nil)
	require.NoError(t, err)
	require.True(t, st.Held)
	allowed := n.Lock.Open("M")
	require.Len(t, allowed, 1)
	require.Equal(t, "192.0.2.0/24", allowed[0].Prefix.String())
}

func TestALockWithoutAWireIsNotVerified(t *testing.T) {
	n := newNode(t)
	t.Run("a process that left its network", func(t *testing.T) {
		c := n.run(t, "a", containerID(), "unshare", "--user", "--net")
		require.Eventually(t, func() bool { // unshare has become sleep
			name, err := os.ReadFile("/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/comm")
			return err == nil && strings.TrimSpace(string(name)) == "sleep"
		}, 5*time.Second, 2*time.Millisecond)
		l := n.permit(t, "L1", link.NodeTarget{ContainerID: c.id}, `{}`)
		st, err := n.apply(l, nil)
		require.NoError(t, err)
		require.True(t, st.Held, "the lock is in force")
		require.False(t, st.Wire)
		require.Contains(t, st.Unverified, "no network interface")
		st, err = n.send(link.CommandLockState, link.StateCommand{Target: l.target})
		require.NoError(t, err)
		require.True(t, st.Held)
		require.Contains(t, st.Unverified, "no network interface")
	})
	t.Run("a process in the node's network", func(t *testing.T) {
		c := n.run(t, "b", containerID())
		st, err := n.apply(n.permit(t, "L2", link.NodeTarget{ContainerID: c.id}, `{}`), nil)
		require.NoError(t, err)
		require.True(t, st.Held)
		require.Contains(t, st.Unverified, "shares the node's network")
	})
}
