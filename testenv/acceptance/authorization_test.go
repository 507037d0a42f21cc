package acceptance

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/testenv/harness"
)

// While an approval request is open, everything that was done is shown. The request is approved by its name, each
// command reports its result, and the final report starts with the containments.
func TestOpenApprovalRequestShowsProgress(t *testing.T) {
	plays := approvalPlaybook(2, "10m")
	plays["ask.yaml"] = strings.Replace(plays["ask.yaml"], "        for: 20m\n", "        for: 20m\n  - ticket: create\n",
		1)
	s := harness.Start(t, stanchBinary, harness.Options{Playbooks: plays, Config: autoContainConfig +
		"people: [{ name: alice, uid: 0, groups: [responders], break_glass: true }]\n"})
	c := s.NewContainer(t)
	c.StartAttack(t)
	in := s.WaitForIncident(t, c.ID, 30*time.Second, "evidence is shown while it is asked",
		func(in playbooks.Incident) bool {
			return len(in.Evidence) > 0 && len(in.Playbooks) > 0 && in.Playbooks[0].Ended.IsZero() &&
				len(in.Playbooks[0].Steps) > 0
		})
	shown := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := s.Run(t, args...)
		require.Zero(t, code, stderr)
		return stdout
	}
	require.Eventually(t, func() bool { return strings.Contains(shown("incidents"), "for you: isolate the miner") },
		20*time.Second, 100*time.Millisecond)
	text := shown("incidents", in.ID)
	require.Contains(t, text, "waiting     isolate the miner for 20m: 0 of 2 approved; waiting for 2 from "+
		"responders; waiting for you")
	require.Contains(t, text, "process.snapshot succeeded")
	require.Contains(t, text, "evidence    process.snapshot ")
	require.Contains(t, shown("status"), "1 approval waiting, 1 for you")

	require.Contains(t, shown("approve", in.ID, "isolate the miner"),
		`alice approved "isolate the miner" for 20m: 1 of 2 approved (alice); waiting for 1 more from responders`)
	require.Contains(t, shown("approve", in.ID, "isolate the miner"),
		`the approval by alice for "isolate the miner" for 20m was already counted: 1 of 2`)
	require.Contains(t, shown("incidents"), "1 of 2 approved: isolate the miner")
	require.Contains(t, shown("approve", in.ID, "pod.isolate", "--break-glass", "--reason", "nobody else is awake"),
		`alice approved "isolate the miner" for 20m`)

	in = s.WaitForIncident(t, c.ID, 30*time.Second, "held", isIsolated)
	s.WaitForIncident(t, c.ID, 30*time.Second, "its playbook ended", hasPlaybookEnded)
	text = shown("incidents", in.ID)
	require.Contains(t, text, "outcome     ask: contained: pod.isolate on container ")
	require.Contains(t, text, "note: ticket skipped: tickets are not configured")
	require.NotContains(t, text, "stopped, refused")
	require.Contains(t, shown("audit", in.ID), "used break-glass for ")

	_, stderr, code := s.Run(t, "extend", in.Leases[0].ID, "--for", "1m")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "an extension cannot shorten it")
	require.Contains(t, shown("extend", in.Leases[0].ID, "--for", "1d"), "1d from now")
	require.Contains(t, shown("resolve", in.ID, "--as", "false-positive", "--reason", "a test"), in.ID)
	require.Eventually(t, func() bool {
		return strings.Contains(shown("incidents", in.ID),
			"[resolved: false-positive by alice]")
	}, 10*time.Second, 100*time.Millisecond)
	require.Contains(t, shown("incidents"), "resolved: false-positive by alice")
}
