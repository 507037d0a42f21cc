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

	"stanch/sensors/attestation"
	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	lacking "stanch/testenv/prereq"
)

// testNode is an agent with its own lock, and an authority key.
type testNode struct {
	*Agent
	cgroupRoot   string // the root of the cgroup tree
	cgroupParent string // the cgroup that contains this test's cgroups
	authorityKey attestation.SigningKey
	pinDir       string // the directory of the BPF pins
	stateDir     string
}

func newTestNode(t *testing.T) *testNode {
	t.Helper()
	lacking.RequireRoot(t)
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		lacking.SkipOrFail(t, "%v", err)
	}
	n := &testNode{
		cgroupRoot: root, pinDir: "/sys/fs/bpf/stanch-agent-" + strconv.Itoa(os.Getpid()),
		stateDir: t.TempDir(),
	}
	n.cgroupParent, err = os.MkdirTemp(root, "stanch-agent-")
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(n.cgroupParent, "cgroup.kill"), []byte("1"), 0)
		require.Eventually(t, func() bool { return removeTree(n.cgroupParent) == nil }, 10*time.Second, 5*time.Millisecond)
	})
	n.authorityKey, err = attestation.NewSigningKey(make([]byte, 32))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, probe.Cleanup(n.pinDir)) })
	n.startAgent(t)
	return n
}

// startAgent starts the agent like a sensor that starts.
func (n *testNode) startAgent(t *testing.T) {
	t.Helper()
	r, err := containermeta.Open(containermeta.Options{CRISocket: "none"})
	require.NoError(t, err)
	l, err := probe.OpenEgressLock(n.pinDir)
	if errors.Is(err, probe.ErrNotSupported) {
		lacking.SkipOrFail(t, "%v", err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close(); _ = r.Close() })
	n.Agent, err = New(Options{Node: "node-1", Resolver: r, EgressLock: l, StateDir: n.stateDir}, nil)
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

func newContainerID() string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return hex.EncodeToString(b)
}

// testContainer is a process in a cgroup with the name that Docker would use.
type testContainer struct {
	id, dir string
	cgroup  uint64
	cmd     *exec.Cmd
}

// runContainer starts a container below a cgroup of the test. by is the command that starts the process.
func (n *testNode) runContainer(t *testing.T, folder, id string, by ...string) *testContainer {
	t.Helper()
	c := &testContainer{id: id, dir: filepath.Join(n.cgroupParent, folder, "docker", id)}
	require.NoError(t, os.MkdirAll(c.dir, 0o755))
	var err error
	c.cgroup, err = containermeta.CgroupID(c.dir)
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

func (c *testContainer) kill(t *testing.T) {
	t.Helper()
	_ = c.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := c.cmd.Wait(); err != nil && !errors.As(err, &exit) && c.cmd.ProcessState == nil {
		t.Error(err)
	}
	require.Eventually(t, func() bool { err := os.Remove(c.dir); return err == nil || os.IsNotExist(err) }, 5*time.Second,
		2*time.Millisecond)
}

// testLease is a lease that the authority permitted for one target.
type testLease struct {
	id        string
	target    gatewayrpc.NodeTarget
	expiresAt time.Time
	params    json.RawMessage
	token     attestation.Envelope
}

func (n *testNode) issueLease(t *testing.T, id string, target gatewayrpc.NodeTarget, params string) testLease {
	t.Helper()
	l := testLease{id: id, target: target, expiresAt: time.Now().Add(10 * time.Minute), params: json.RawMessage(params)}
	var err error
	l.token, err = n.authorityKey.Sign(attestation.PayloadTypeLeaseToken, attestation.LeaseToken{
		Nonce: "n", LeaseID: id, Action: "pod.isolate", TargetID: target.ID(), ParamsHash: attestation.HashJSON(l.params),
		IssuedAt: time.Now(), ExpiresAt: l.expiresAt,
	})
	require.NoError(t, err)
	return l
}

func (n *testNode) sendCommand(kind gatewayrpc.CommandKind, command any) (gatewayrpc.ContainmentState, error) {
	body, err := json.Marshal(command)
	if err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	out, _, err := n.Handle(context.Background(), kind, body, attestation.NewKeyring(n.authorityKey.PublicKey()))
	state, _ := out.(gatewayrpc.ContainmentState)
	return state, err
}

// sendLock sends the lock command of a lease. edit changes the command first.
func (n *testNode) sendLock(l testLease, edit func(*gatewayrpc.ContainmentCommand)) (gatewayrpc.ContainmentState,
	error,
) {
	c := gatewayrpc.ContainmentCommand{
		Target: l.target, Action: "pod.isolate", LeaseID: l.id, ExpiresAt: l.expiresAt,
		Params: l.params, Token: l.token,
	}
	if edit != nil {
		edit(&c)
	}
	return n.sendCommand(gatewayrpc.CommandLock, c)
}

func (n *testNode) sendUnlock(t *testing.T, l testLease) (gatewayrpc.ContainmentState, error) {
	t.Helper()
	grant, err := n.authorityKey.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: "g", Operation: attestation.OperationRelease, LeaseID: l.id, GrantedBy: []string{"someone"},
		IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Minute),
	})
	require.NoError(t, err)
	return n.sendCommand(gatewayrpc.CommandUnlock, gatewayrpc.ReleaseCommand{
		Target: l.target, LeaseID: l.id,
		Grant: &grant,
	})
}

func TestLockCannotBeShortenedInSmallSteps(t *testing.T) {
	n := newTestNode(t)
	c := n.runContainer(t, "a", newContainerID())
	l := n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: c.id}, `{}`)
	_, err := n.sendLock(l, nil)
	require.NoError(t, err)
	refusals := 0
	for step := 1; step <= 600; step++ {
		if _, err := n.sendLock(l, func(c *gatewayrpc.ContainmentCommand) {
			c.ExpiresAt = l.expiresAt.Add(-time.Duration(step) * 990 * time.Millisecond)
		}); err != nil {
			require.ErrorIs(t, err, gatewayrpc.ErrRefused)
			refusals++
		}
	}
	require.Equal(t, 599, refusals, "only the first step is within the tolerance")
	held, err := n.EgressLock.StateOfLease("L")
	require.NoError(t, err)
	require.WithinDuration(t, l.expiresAt, held.ExpiresAt, 2*time.Second)
}

func TestFirstLockIsNotShorterThanItsToken(t *testing.T) {
	n := newTestNode(t)
	c := n.runContainer(t, "a", newContainerID())
	l := n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: c.id}, `{}`)
	_, err := n.sendLock(l, func(c *gatewayrpc.ContainmentCommand) { c.ExpiresAt = time.Now().Add(2 * time.Second) })
	require.ErrorIs(t, err, gatewayrpc.ErrRefused)
}

func TestLockAllowsOnlyDestinationsOfItsToken(t *testing.T) {
	n := newTestNode(t)
	c := n.runContainer(t, "a", newContainerID())
	target := gatewayrpc.NodeTarget{ContainerID: c.id}
	closed := n.issueLease(t, "L", target, `{}`)
	for name, params := range map[string]string{
		"another allow list": `{"allow":["0.0.0.0/0"]}`,
		"one more parameter": `{"ingress":true}`, "none": ``,
	} {
		_, err := n.sendLock(closed, func(c *gatewayrpc.ContainmentCommand) { c.Params = json.RawMessage(params) })
		require.ErrorIs(t, err, gatewayrpc.ErrRefused, name)
		require.ErrorIs(t, err, attestation.ErrUnverified, name)
	}
	open := n.issueLease(t, "M", target, `{"allow":["192.0.2.0/24"]}`)
	st, err := n.sendLock(open, nil)
	require.NoError(t, err)
	require.True(t, st.Active)
	allowed := n.EgressLock.AllowList("M")
	require.Len(t, allowed, 1)
	require.Equal(t, "192.0.2.0/24", allowed[0].Prefix.String())
}

func TestLockWithoutVethIsNotVerified(t *testing.T) {
	n := newTestNode(t)
	t.Run("process that left its network", func(t *testing.T) {
		c := n.runContainer(t, "a", newContainerID(), "unshare", "--user", "--net")
		require.Eventually(t, func() bool { // unshare has executed sleep
			name, err := os.ReadFile("/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/comm")
			return err == nil && strings.TrimSpace(string(name)) == "sleep"
		}, 5*time.Second, 2*time.Millisecond)
		l := n.issueLease(t, "L1", gatewayrpc.NodeTarget{ContainerID: c.id}, `{}`)
		st, err := n.sendLock(l, nil)
		require.NoError(t, err)
		require.True(t, st.Active, "the lock is in force")
		require.False(t, st.VethLocked)
		require.Contains(t, st.UnverifiedReason, "no host-side veth")
		st, err = n.sendCommand(gatewayrpc.CommandLockState, gatewayrpc.StateQuery{Target: l.target})
		require.NoError(t, err)
		require.True(t, st.Active)
		require.Contains(t, st.UnverifiedReason, "no host-side veth")
	})
	t.Run("process in the node's network", func(t *testing.T) {
		c := n.runContainer(t, "b", newContainerID())
		st, err := n.sendLock(n.issueLease(t, "L2", gatewayrpc.NodeTarget{ContainerID: c.id}, `{}`), nil)
		require.NoError(t, err)
		require.True(t, st.Active)
		require.Contains(t, st.UnverifiedReason, "shares the node's network")
	})
}
