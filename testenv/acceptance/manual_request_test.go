package acceptance

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/testenv/harness"
)

// A responder contains a container of this host without a detection: the command shows the plan, applies it, and names
// the lease. The container's traffic stops, and resumes after the release.
func TestResponderContainsManually(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{Config: autoContainConfig})
	c := s.NewContainer(t)
	c.StartAttack(t, "web-server") // nothing that a rule knows
	require.True(t, c.WaitForTraffic(10*time.Second))

	out, errs, code := s.Run(t, "contain", c.ID, "--for", "10m", "--reason", "beacons to 203.0.113.9", "--dry-run")
	require.Zero(t, code, out+errs)
	require.Contains(t, out, "Dry run: nothing is changed")
	require.Contains(t, out, "pod.isolate: would run: phase 2, requested by")
	require.Contains(t, out, "would block all egress from container "+c.ID[:12])
	require.Empty(t, s.ActiveLocks(t))
	about, err := s.IncidentsAbout(c.ID)
	require.NoError(t, err)
	require.Empty(t, about)

	out, errs, code = s.Run(t, "contain", c.ID, "--for", "10m", "--reason", "beacons to 203.0.113.9")
	require.Zero(t, code, out+errs)
	require.Contains(t, out, "contained, lease LSE-")
	require.True(t, c.IsSilent(500*time.Millisecond))
	require.Len(t, s.ActiveLocks(t), 1)
	_, rest, _ := strings.Cut(out, "end it with `")
	release, _, _ := strings.Cut(rest, "`")
	in := s.WaitForIncident(t, c.ID, 20*time.Second, "it is in the incident",
		func(in playbooks.Incident) bool { return len(in.Leases) == 1 })
	require.Contains(t, in.Summary, "beacons to 203.0.113.9")

	// What is requested again joins the lease; an unknown playbook is refused.
	out, errs, code = s.Run(t, "contain", in.ID, "--for", "5m", "--reason", "again", "-o", "json")
	require.Zero(t, code, out+errs)
	var results []struct {
		Contained bool     `json:"contained"`
		Leases    []string `json:"leases"`
	}
	require.NoError(t, json.Unmarshal([]byte(out), &results))
	require.True(t, results[0].Contained)
	require.Len(t, s.ActiveLocks(t), 1)
	_, errs, code = s.Run(t, "run", "no-such", "--on", c.ID, "--reason", "x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, `unknown playbook "no-such"`)

	// Asked without a configuration, the command lists what the running Stanch uses, whose library is off.
	listed, err := exec.CommandContext(t.Context(), stanchBinary, "playbooks", "--data", s.DataDir).CombinedOutput()
	require.NoError(t, err, string(listed))
	require.NotContains(t, string(listed), "cryptominer")
	listed, err = exec.CommandContext(t.Context(), stanchBinary, "playbooks", in.ID, "--data", s.DataDir).CombinedOutput()
	require.NoError(t, err, string(listed))
	require.Contains(t, string(listed), "contain-pod-isolate-10m  ran")

	words := strings.Fields(release)
	require.Equal(t, "stanch", words[0])
	_, errs, code = s.Run(t, words[1:]...)
	require.Zero(t, code, errs)
	require.Eventually(t, func() bool { return len(s.ActiveLocks(t)) == 0 }, 20*time.Second, 100*time.Millisecond)
	require.True(t, c.WaitForTraffic(10*time.Second))
}
