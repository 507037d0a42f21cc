package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
)

// recordDetection records the cgroup of a container, as a kernel event would.
func (n *testNode) recordDetection(t *testing.T, c *testContainer) {
	t.Helper()
	require.NoError(t, n.detectedCgroups.record(&sensors.Container{
		ID: c.id, CgroupID: c.cgroup,
		CgroupPath: strings.TrimPrefix(c.dir, n.cgroupRoot),
	}))
}

func (n *testNode) isLocked(t *testing.T, c *testContainer) bool {
	t.Helper()
	st, err := n.EgressLock.StateOfCgroup(c.cgroup)
	require.NoError(t, err)
	return st.Active
}

func (n *testNode) activeLocks(t *testing.T) []probe.EgressLockState {
	t.Helper()
	held, err := n.EgressLock.List()
	require.NoError(t, err)
	return held
}

func TestLockIsNotAppliedToDecoyCgroup(t *testing.T) {
	n := newTestNode(t)
	id := newContainerID()
	decoy := n.runContainer(t, "a", id)
	victim := n.runContainer(t, "z", id)
	l := n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: id}, `{}`)

	_, err := n.sendLock(l, nil)
	require.ErrorIs(t, err, gatewayrpc.ErrRefused, "ambiguous cgroups")
	require.ErrorContains(t, err, strings.TrimPrefix(decoy.dir, n.cgroupRoot))
	require.Empty(t, n.activeLocks(t))

	n.recordDetection(t, victim)
	st, err := n.sendLock(l, nil)
	require.NoError(t, err)
	require.True(t, st.Active)
	require.True(t, n.isLocked(t, victim))
	require.False(t, n.isLocked(t, decoy))
	require.Eventually(t, func() bool {
		reported := n.Health().SpoofedCgroups
		return len(reported) == 1 && reported[0].TargetID == "container:"+id &&
			len(reported[0].GenuinePaths) == 1 && reported[0].GenuinePaths[0] == strings.TrimPrefix(victim.dir, n.cgroupRoot) &&
			len(reported[0].SpoofedPaths) == 1 && reported[0].SpoofedPaths[0] == strings.TrimPrefix(decoy.dir, n.cgroupRoot)
	}, 5*time.Second, 5*time.Millisecond)

	// The detections survive a restart of the sensor.
	require.NoError(t, n.EgressLock.Close())
	n.startAgent(t)
	st, err = n.sendLock(l, nil)
	require.NoError(t, err)
	require.True(t, st.Active && n.isLocked(t, victim) && !n.isLocked(t, decoy))
}

func TestDetectionOfAnotherBootIsIgnored(t *testing.T) {
	dir := t.TempDir()
	s, err := openDetectedCgroups(dir, "one")
	require.NoError(t, err)
	require.NoError(t, s.record(&sensors.Container{ID: "c", CgroupID: 7, CgroupPath: "/docker/c"}))
	again, err := openDetectedCgroups(dir, "one")
	require.NoError(t, err)
	require.Len(t, again.cgroupsOf("container:c"), 1)
	other, err := openDetectedCgroups(dir, "two")
	require.NoError(t, err)
	require.Empty(t, other.cgroupsOf("container:c"))
}

func TestLockFollowsRestartedContainerWithTheSameID(t *testing.T) {
	n := newTestNode(t)
	id := newContainerID()
	first := n.runContainer(t, "z", id)
	n.recordDetection(t, first)
	l := n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: id}, `{}`)
	_, err := n.sendLock(l, nil)
	require.NoError(t, err)

	first.kill(t)
	decoy := n.runContainer(t, "a", id)
	second := n.runContainer(t, "z", id)
	require.NotEqual(t, first.cgroup, second.cgroup)
	st, err := n.sendCommand(gatewayrpc.CommandLockState, gatewayrpc.StateQuery{Target: l.target})
	require.NoError(t, err)
	require.False(t, st.Active, "its lock contains a removed cgroup")

	t.Run("when the lease is applied again", func(t *testing.T) {
		st, err = n.sendLock(l, nil)
		require.NoError(t, err)
		require.True(t, st.Active)
		require.Equal(t, "L", st.LeaseID)
		require.True(t, n.isLocked(t, second) && !n.isLocked(t, decoy))
		require.Len(t, n.activeLocks(t), 1)
		require.Equal(t, []uint64{second.cgroup}, n.activeLocks(t)[0].Cgroups, "removed cgroups are dropped")
	})
	t.Run("by itself", func(t *testing.T) {
		second.kill(t)
		third := n.runContainer(t, "z", id)
		require.NoError(t, n.extendLock(t.Context(), n.activeLocks(t)[0]))
		require.True(t, n.isLocked(t, third) && !n.isLocked(t, decoy))
	})
}

func TestLeaseIsForOneTarget(t *testing.T) {
	n := newTestNode(t)
	a, b := n.runContainer(t, "a", newContainerID()), n.runContainer(t, "b", newContainerID())
	_, err := n.sendLock(n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: a.id}, `{}`), nil)
	require.NoError(t, err)
	_, err = n.sendLock(n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: b.id}, `{}`), nil)
	require.ErrorIs(t, err, gatewayrpc.ErrRefused)
	require.True(t, n.isLocked(t, a) && !n.isLocked(t, b))
}

func TestReleaseEndsLockOfMissingTarget(t *testing.T) {
	n := newTestNode(t)
	c := n.runContainer(t, "a", newContainerID())
	l := n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: c.id}, `{}`)
	_, err := n.sendLock(l, nil)
	require.NoError(t, err)
	c.kill(t)
	_, err = n.sendCommand(gatewayrpc.CommandUnlock, gatewayrpc.ReleaseCommand{Target: l.target, LeaseID: l.id})
	require.ErrorIs(t, err, gatewayrpc.ErrRefused, "not without a grant")
	require.Len(t, n.activeLocks(t), 1)

	st, err := n.sendUnlock(t, l)
	require.NoError(t, err)
	require.False(t, st.Active)
	require.Empty(t, n.activeLocks(t))
	_, err = n.sendLock(l, nil)
	require.ErrorIs(t, err, gatewayrpc.ErrRefused, "its token is no longer valid")
}

func TestReleaseCountsForTheTargetOfItsLease(t *testing.T) {
	n := newTestNode(t)
	a, b := n.runContainer(t, "a", newContainerID()), n.runContainer(t, "b", newContainerID())
	l := n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: a.id}, `{}`)
	_, err := n.sendLock(l, nil)
	require.NoError(t, err)
	before := time.Now().Add(-time.Second)
	l.target = gatewayrpc.NodeTarget{ContainerID: b.id} // another target, in the same command
	_, err = n.sendUnlock(t, l)
	require.NoError(t, err)
	require.True(t, n.revocations.isTargetReleased("container:"+a.id, before))
	require.False(t, n.revocations.isTargetReleased("container:"+b.id, before))
}

func TestNetworkSharersAreListed(t *testing.T) {
	n := newTestNode(t)
	first := n.runContainer(t, "a", newContainerID(), "unshare", "--net")
	pid := strconv.Itoa(first.cmd.Process.Pid)
	require.Eventually(t, func() bool {
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		return err == nil && strings.TrimSpace(string(name)) == "sleep"
	}, 5*time.Second, 2*time.Millisecond)
	// The kernel reports start times in hundredths of a second. Two processes with the same start time count as
	// started before.
	began := time.Now()
	require.Eventually(t, func() bool { return time.Since(began) > 20*time.Millisecond }, time.Second, time.Millisecond)
	second := n.runContainer(t, "b", newContainerID(), "nsenter", "--net=/proc/"+pid+"/ns/net")
	require.Eventually(t, func() bool {
		return netnsInodeOfProcess(second.cmd.Process.Pid) == netnsInodeOfProcess(first.cmd.Process.Pid)
	}, 5*time.Second, 2*time.Millisecond)

	st, err := n.sendCommand(gatewayrpc.CommandLockState,
		gatewayrpc.StateQuery{Target: gatewayrpc.NodeTarget{ContainerID: second.id}})
	require.NoError(t, err)
	require.Equal(t, []gatewayrpc.NetworkSharer{{ContainerID: first.id, StartedBeforeTarget: true}}, st.NetworkSharers,
		"it joined an existing network")
	st, err = n.sendCommand(gatewayrpc.CommandLockState,
		gatewayrpc.StateQuery{Target: gatewayrpc.NodeTarget{ContainerID: first.id}})
	require.NoError(t, err)
	require.Equal(t, []gatewayrpc.NetworkSharer{{ContainerID: second.id}}, st.NetworkSharers,
		"the other one started later")

	st, err = n.sendLock(n.issueLease(t, "L", gatewayrpc.NodeTarget{ContainerID: first.id}, `{}`), nil)
	require.NoError(t, err)
	require.True(t, st.Active)
	st, err = n.sendCommand(gatewayrpc.CommandLockState,
		gatewayrpc.StateQuery{Target: gatewayrpc.NodeTarget{ContainerID: first.id}})
	require.NoError(t, err)
	require.True(t, st.Active)
	require.Equal(t, []gatewayrpc.NetworkSharer{{ContainerID: second.id}}, st.NetworkSharers, "also while it is locked")
}
