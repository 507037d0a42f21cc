// Package acceptance plays the scenarios of the acceptance list against the real `stanch up` on this host: its kernel,
// its Temporal, its certificates, and processes that really send.
//
// It refuses to believe Stanch about itself: what holds is read from the kernel's maps and from what arrives at a peer.
package acceptance

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/testenv/harness"
)

// stanchBinary is the program under test; TestMain sets it once.
var stanchBinary string

func TestMain(m *testing.M) {
	harness.RunBeaconIfRequested()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // every scenario says that it is skipped
	}
	dir, err := os.MkdirTemp("", "acceptance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if stanchBinary, err = harness.BuildBinary(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// autoContainConfig is a configuration in which containments of this host run by themselves, for the stand's containers
// only.
const autoContainConfig = "phase: 2\nlibrary: {enabled: false}\nplaybooks: [DIR/playbooks]\nbudget: {per_hour: 1000}\n"

// isolatePlaybook is a playbook that isolates the stand's containers for so long.
func isolatePlaybook(d time.Duration) map[string]string {
	return map[string]string{"hold.yaml": fmt.Sprintf(`playbook: hold
match:
  objective: crypto-mining
  when: incident.workload.name startsWith "MARK"
steps:
  - evidence: process.snapshot
  - contain: pod.isolate
    for: %s
`, d)}
}

// isIsolated: the containers of these tests share this machine's network, so their locks hold and are never verified.
func isIsolated(in playbooks.Incident) bool {
	return len(in.Leases) > 0 && in.Leases[0].State == "held" &&
		(in.Leases[0].Verified || in.Leases[0].Outcome == playbooks.OutcomeUnverified)
}

func isUndone(in playbooks.Incident) bool {
	return len(in.Leases) > 0 && in.Leases[0].State == "ended" && in.Leases[0].Undone
}

func hasPlaybookEnded(in playbooks.Incident) bool {
	return len(in.Playbooks) > 0 && !in.Playbooks[0].Ended.IsZero()
}

// startIsolatedContainer attacks in a new container and waits until it is held.
func startIsolatedContainer(t *testing.T, s *harness.Harness) (*harness.Container, playbooks.Incident) {
	t.Helper()
	c := s.NewContainer(t)
	c.StartAttack(t)
	in := s.WaitForIncident(t, c.ID, 30*time.Second, "held", isIsolated)
	require.True(t, c.IsSilent(300*time.Millisecond), "nothing arrives at the peer while the lease is in force")
	return c, in
}
