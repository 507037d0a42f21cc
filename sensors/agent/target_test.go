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
	"stanch/sensors/link"
	"stanch/sensors/probe"
)

// detected is what the kernel's event about a container says.
func (n *node) detected(t *testing.T, c *container) {
	t.Helper()
	require.NoError(t, n.sightings.note(&sensors.Container{ID: c.id, CgroupID: c.cgroup, CgroupPath: strings.TrimPrefix(c.dir, n.root)}))
}

func (n *node) holds(t *testing.T, c *container) bool {
	t.Helper()
	st, err := n.Lock.State(c.cgroup)
	require.NoError(t, err)
	return st.Held
}

func (n *node) inForce(t *testing.T) []probe.LockState {
	t.Helper()
	held, err := n.Lock.List()
	require.NoError(t, err)
	return held
}

func TestADecoyDoesNotTakeTheLock(t *testing.T) {
	n := newNode(t)
	id := containerID()
	decoy := n.run(t, "a", id)
	victim := n.run(t, "z", id)
	l := n.permit(t, "L", link.NodeTarget{ContainerID: id}, `{}`)

	_, err := n.apply(l, nil)
	require.ErrorIs(t, err, link.ErrRefused, "nothing says which of them it is")
	require.ErrorContains(t, err, strings.TrimPrefix(decoy.dir, n.root))
	require.Empty(t, n.inForce(t))

	n.detected(t, victim)
	st, err := n.apply(l, nil)
	require.NoError(t, err)
	require.True(t, st.Held)
	require.True(t, n.holds(t, victim))
	require.False(t, n.holds(t, decoy))
	require.Eventually(t, func() bool {
		reported := n.Health().Decoys
		return len(reported) == 1 && reported[0].Target == "container:"+id &&
			len(reported[0].Own) == 1 && reported[0].Own[0] == strings.TrimPrefix(victim.dir, n.root) &&
			len(reported[0].Others) == 1 && reported[0].Others[0] == strings.TrimPrefix(decoy.dir, n.root)
	}, 5*time.Second, 5*time.Millisecond)

	// What was detected is known after the sensor started again, too.
	require.NoError(t, n.Lock.Close())
	n.start(t)
	st, err = n.apply(l, nil)
	require.NoError(t, err)
	require.True(t, st.Held && n.holds(t, victim) && !n.holds(t, decoy))
}

func TestADetectionOfAnotherBootIsNotBelieved(t *testing.T) {
	dir := t.TempDir()
	s, err := openSightings(dir, "one")
	require.NoError(t, err)
	require.NoError(t, s.note(&sensors.Container{ID: "c", CgroupID: 7, CgroupPath: "/docker/c"}))
	again, err := openSightings(dir, "one")
	require.NoError(t, err)
	require.Len(t, again.of("container:c"), 1)
	other, err := openSightings(dir, "two")
	require.NoError(t, err)
	require.Empty(t, other.of("container:c"))
}

func TestALockFollowsAContainerThatRestartsUnderItsID(t *testing.T) {
	n := newNode(t)
	id := containerID()
	first := n.run(t, "z", id)
	n.detected(t, first)
	l := n.permit(t, "L", link.NodeTarget{ContainerID: id}, `{}`)
	_, err := n.apply(l, nil)
	require.NoError(t, err)

	first.kill(t)
	decoy := n.run(t, "a", id)
	second := n.run(t, "z", id)
	require.NotEqual(t, first.cgroup, second.cgroup)
	st, err := n.send(link.CommandLockState, link.StateCommand{Target: l.target})
	require.NoError(t, err)
	require.False(t, st.Held, "its lock holds a cgroup that is gone")

	t.Run("when the lease is applied again", func(t *testing.T) {
		st, err = n.apply(l, nil)
		require.NoError(t, err)
		require.True(t, st.Held)
		require.Equal(t, "L", st.Lease)
		require.True(t, n.holds(t, second) && !n.holds(t, decoy))
		require.Len(t, n.inForce(t), 1)
		require.Equal(t, []uint64{second.cgroup}, n.inForce(t)[0].Cgroups, "what is gone is forgotten")
	})
	t.Run("by itself", func(t *testing.T) {
		second.kill(t)
		third := n.run(t, "z", id)
		require.NoError(t, n.follow(t.Context(), n.inForce(t)[0]))
		require.True(t, n.holds(t, third) && !n.holds(t, decoy))
	})
}

func TestALeaseIsForOneTarget(t *testing.T) {
	n := newNode(t)
	a, b := n.run(t, "a", containerID()), n.run(t, "b", containerID())
	_, err := n.apply(n.permit(t, "L", link.NodeTarget{ContainerID: a.id}, `{}`), nil)
	require.NoError(t, err)
	_, err = n.apply(n.permit(t, "L", link.NodeTarget{ContainerID: b.id}, `{}`), nil)
	require.ErrorIs(t, err, link.ErrRefused)
	require.True(t, n.holds(t, a) && !n.holds(t, b))
}

func TestReleaseEndsALockWhoseTargetIsGone(t *testing.T) {
	n := newNode(t)
	c := n.run(t, "a", containerID())
	l := n.permit(t, "L", link.NodeTarget{ContainerID: c.id}, `{}`)
	_, err := n.apply(l, nil)
	require.NoError(t, err)
	c.kill(t)
	_, err = n.send(link.CommandUnlock, link.EndCommand{Target: l.target, Lease: l.id})
	require.ErrorIs(t, err, link.ErrRefused, "not without a grant")
	require.Len(t, n.inForce(t), 1)

	st, err := n.release(t, l)
	require.NoError(t, err)
	require.False(t, st.Held)
	require.Empty(t, n.inForce(t))
	_, err = n.apply(l, nil)
	require.ErrorIs(t, err, link.ErrRefused, "its token is spent")
}

func TestAReleaseCountsForTheTargetOfItsLease(t *testing.T) {
	n := newNode(t)
	a, b := n.run(t, "a", containerID()), n.run(t, "b", containerID())
	l := n.permit(t, "L", link.NodeTarget{ContainerID: a.id}, `{}`)
	_, err := n.apply(l, nil)
	require.NoError(t, err)
	before := time.Now().Add(-time.Second)
	l.target = link.NodeTarget{ContainerID: b.id} // somebody else's, in the same command
	_, err = n.release(t, l)
	require.NoError(t, err)
	require.True(t, n.released.isReleased("container:"+a.id, before))
	require.False(t, n.released.isReleased("container:"+b.id, before))
}

func TestContainersThatShareANetworkAreNamed(t *testing.T) {
	n := newNode(t)
	first := n.run(t, "a", containerID(), "unshare", "--net")
	pid := strconv.Itoa(first.cmd.Process.Pid)
	require.Eventually(t, func() bool {
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		return err == nil && strings.TrimSpace(string(name)) == "sleep"
	}, 5*time.Second, 2*time.Millisecond)
	// The kernel tells when a process started in hundredths of a second: two of one are taken for one that was there before.
	began := time.Now()
	require.Eventually(t, func() bool { return time.Since(began) > 20*time.Millisecond }, time.Second, time.Millisecond)
	second := n.run(t, "b", containerID(), "nsenter", "--net=/proc/"+pid+"/ns/net")
	require.Eventually(t, func() bool {
		return netSpaceOf(second.cmd.Process.Pid) == netSpaceOf(first.cmd.Process.Pid)
	}, 5*time.Second, 2*time.Millisecond)

	st, err := n.send(link.CommandLockState, link.StateCommand{Target: link.NodeTarget{ContainerID: second.id}})
	require.NoError(t, err)
	require.Equal(t, []link.Sharer{{Container: first.id, Before: true}}, st.Shared, "it joined what was there")
	st, err = n.send(link.CommandLockState, link.StateCommand{Target: link.NodeTarget{ContainerID: first.id}})
	require.NoError(t, err)
	require.Equal(t, []link.Sharer{{Container: second.id}}, st.Shared, "the other one came later")

	st, err = n.apply(n.permit(t, "L", link.NodeTarget{ContainerID: first.id}, `{}`), nil)
	require.NoError(t, err)
	require.True(t, st.Held)
	st, err = n.send(link.CommandLockState, link.StateCommand{Target: link.NodeTarget{ContainerID: first.id}})
	require.NoError(t, err)
	require.True(t, st.Held)
	require.Equal(t, []link.Sharer{{Container: second.id}}, st.Shared, "also while it is held")
}
