package acceptance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors/snapshot"
	"stanch/testenv/harness"
)

// freezePlaybook is a playbook that freezes the stand's containers for so long.
func freezePlaybook(d time.Duration) map[string]string {
	return map[string]string{"freeze.yaml": fmt.Sprintf(`playbook: freeze
match:
  objective: crypto-mining
  when: incident.workload.name startsWith "MARK"
steps:
  - evidence: process.snapshot
  - contain: pod.freeze
    for: %s
`, d)}
}

// startFrozenContainer attacks in a new container and waits until it is frozen. It returns the end of the freeze.
func startFrozenContainer(t *testing.T, s *harness.Harness) (*harness.Container, playbooks.LeaseReport) {
	t.Helper()
	c := s.NewContainer(t)
	c.StartAttack(t)
	in := s.WaitForIncident(t, c.ID, 30*time.Second, "frozen", func(in playbooks.Incident) bool {
		return len(in.Leases) > 0 && in.Leases[0].State == "held" && in.Leases[0].Verified
	})
	require.True(t, isFrozen(t, c))
	return c, in.Leases[0]
}

func isFrozen(t *testing.T, c *harness.Container) bool {
	t.Helper()
	state, err := snapshot.ReadFreezeState(c.CgroupDir())
	require.NoError(t, err)
	return state.Requested && state.Frozen
}

// thawerPID reads which process ends the freeze of a container.
func thawerPID(t *testing.T, c *harness.Container) int {
	t.Helper()
	b := make([]byte, 1024)
	n, err := syscall.Getxattr(c.CgroupDir(), "trusted.stanch.freeze", b)
	require.NoError(t, err)
	var mark struct {
		PID int `json:"thawer_pid"`
	}
	require.NoError(t, json.Unmarshal(b[:n], &mark))
	return mark.PID
}

func TestFreezeEndsOnTimeAfterStanchIsKilled(t *testing.T) {
	harness.SkipUnlessSupported(t)
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: freezePlaybook(10 * time.Second),
	})
	c, lease := startFrozenContainer(t, s)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thawerPID(t, c)))
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "Threads") {
			t.Log("thawer: ", strings.Join(strings.Fields(line), " "))
		}
	}
	require.NoError(t, syscall.Kill(-s.PID(), syscall.SIGKILL))
	s.Kill()
	require.True(t, isFrozen(t, c), "the freeze goes on without Stanch")
	require.True(t, c.WaitForTraffic(20*time.Second), "it thaws without Stanch")
	require.WithinDuration(t, lease.ExpiresAt, time.Now(), time.Second)

	s.StartAndWait(t)
	s.WaitForIncident(t, c.ID, 70*time.Second, "undone", isUndone)
}

func TestFreezeSurvivesRestartAndIsReleased(t *testing.T) {
	harness.SkipUnlessSupported(t)
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: freezePlaybook(2 * time.Minute),
	})
	c, lease := startFrozenContainer(t, s)
	for _, end := range []func(){s.Stop, s.Kill} {
		end()
		require.True(t, isFrozen(t, c))
		s.StartAndWait(t)
		in := s.WaitForIncident(t, c.ID, 30*time.Second, "held",
			func(in playbooks.Incident) bool { return in.Leases[0].State == "held" && in.Leases[0].Verified })
		require.WithinDuration(t, lease.ExpiresAt, in.Leases[0].ExpiresAt, time.Second)
	}
	_, stderr, code := s.Run(t, "release", lease.ID)
	require.Zero(t, code, stderr)
	s.WaitForIncident(t, c.ID, 30*time.Second, "undone", isUndone)
	require.True(t, c.WaitForTraffic(2*time.Second))
}

func TestPauseByAnOperatorSurvivesTheEndOfAFreeze(t *testing.T) {
	harness.SkipUnlessSupported(t)
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: freezePlaybook(8 * time.Second),
	})
	c, lease := startFrozenContainer(t, s)
	require.NoError(t, os.WriteFile(filepath.Join(c.CgroupDir(), "cgroup.freeze"), []byte("1"), 0))
	in := s.WaitForIncident(t, c.ID, 60*time.Second, "ended", func(in playbooks.Incident) bool {
		return in.Leases[0].State != "held" && time.Now().After(lease.ExpiresAt.Add(time.Second))
	})
	t.Logf("the lease: %s, undone %t, %s", in.Leases[0].State, in.Leases[0].Undone, in.Leases[0].Reason)
	require.True(t, isFrozen(t, c), "the operator's pause holds")
}
