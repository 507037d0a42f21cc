package acceptance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/testenv/harness"
	"stanch/worker/audit"
	"stanch/worker/simulate"
	"stanch/worker/simulationreport"
)

// approvalConfig is a configuration under which alice, who is root here, is asked before anything is contained.
const approvalConfig = `phase: 2
idle_timeout: 3s
library: {enabled: false}
playbooks: [DIR/playbooks]
scopes: [{ name: host, namespaces: [""], phase: 2, confidence: 0.97, approvers: { groups: [responders], quorum: 1, timeout: 1m } }]
people: [{ name: alice, uid: 0, groups: [responders] }]
`

func isClosed(in playbooks.Incident) bool { return in.Status == "closed" }

// The audit of an incident verifies, and a change of one byte in any of its records is detected.
func TestAuditVerifiesIncidentAndDetectsTampering(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    approvalConfig,
		Playbooks: isolatePlaybook(5 * time.Second),
	})
	c := s.NewContainer(t)
	c.StartAttack(t)
	in := s.WaitForIncident(t, c.ID, 30*time.Second, "started",
		func(in playbooks.Incident) bool { return len(in.Playbooks) > 0 })
	require.Eventually(t, func() bool {
		_, _, code := s.Run(t, "approve", in.ID, "--reason", "a miner \u202e<script>alert(1)</script>")
		return code == 0
	}, 20*time.Second, 100*time.Millisecond)
	s.WaitForIncident(t, c.ID, 30*time.Second, "held", isIsolated)
	require.Eventually(t, func() bool {
		var now playbooks.Incident
		return s.Get("/v1/incidents/"+in.ID, &now) == nil && isClosed(now)
	}, time.Minute, 200*time.Millisecond)

	assertSimulationMatches(t, s, in.ID, "asked", filepath.Join(s.ConfigDir, "playbooks"))

	stdout, stderr, code := s.Run(t, "audit", in.ID, "--verify")
	require.Zero(t, code, "%s%s", stdout, stderr)
	t.Log("\n" + stdout)
	at := 0
	for _, next := range []string{
		"  opened ", "  detection ", "  playbook ", "  evidence ", "Requires approval before pod.isolate",
		"  approval-request ", "alice (uid 0 on the local socket) approved \"pod.isolate\"", "  approval-result ", "  grant ",
		"  effect ", "was applied", "  verification ", "was undone and verified: it expired", "  closed ",
		"verified: no differences",
	} {
		i := strings.Index(stdout[at:], next)
		require.GreaterOrEqual(t, i, 0, "after the line before, the story says %q", next)
		at += i
	}
	require.NotContains(t, stdout, "\u202e", "what turns the direction of writing is not obeyed")
	line := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}  .*  \[\S.* #\d+\]$`)
	for text := range strings.Lines(stdout) {
		if regexp.MustCompile(`^\d\d:\d\d:`).MatchString(text) {
			require.Regexp(t, line, strings.TrimSuffix(text, "\n"), "every line ends with its event of history")
		}
	}
	page, _, code := s.Run(t, "audit", in.ID, "-o", "html")
	require.Zero(t, code)
	require.NotContains(t, page, "<script>", "an attacker's markup is text")
	require.Contains(t, page, "&lt;script&gt;")

	// The archive is written when Stanch starts; the story is then told from it, also while nothing runs.
	s.Stop()
	s.StartAndWait(t)
	file := filepath.Join(s.DataDir, "archive", in.ID+".json.gz")
	require.Eventually(t, func() bool { _, err := os.Stat(file); return err == nil }, 30*time.Second, 100*time.Millisecond)
	stdout, stderr, code = s.Run(t, "audit", in.ID, "--verify")
	require.Zero(t, code, "%s%s", stdout, stderr)
	require.Contains(t, stdout, "Temporal's histories against the archive")
	rec, _, code := s.Run(t, "record", in.ID)
	require.Zero(t, code)
	s.Stop()
	_ = os.Remove(s.SocketPath())
	stdout, stderr, code = s.Run(t, "audit", in.ID, "--verify", "-o", "json")
	require.Zero(t, code, "%s%s", stdout, stderr)
	var story audit.Timeline
	require.NoError(t, json.Unmarshal([]byte(stdout), &story))
	require.Equal(t, "archive", story.Source)
	require.NotEmpty(t, story.Evidence)

	blob := filepath.Join(s.DataDir, "evidence", "blobs", story.Evidence[0].SHA256[:2], story.Evidence[0].SHA256)
	manifest := filepath.Join(s.DataDir, "evidence", "incidents", in.ID+".jsonl")
	for name, what := range map[string]string{
		blob: story.Evidence[0].SHA256, manifest: "manifest of " + in.ID,
		file: "archive",
	} {
		undo := flipByte(t, name)
		stdout, stderr, code = s.Run(t, "audit", in.ID, "--verify")
		require.Equal(t, 1, code, name)
		require.Contains(t, stdout+stderr, what, "the difference is named")
		undo()
	}
	stdout, stderr, code = s.Run(t, "audit", in.ID, "--verify")
	require.Zero(t, code, "%s%s", stdout, stderr)

	// What is left of a manifest whose end was cut off is in order by itself: the history knows what it had.
	whole, err := os.ReadFile(manifest)
	require.NoError(t, err)
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	// the archive's line, and the undoing's
	require.NoError(t, os.WriteFile(manifest, []byte(strings.Join(lines[:len(lines)-2], "")), 0o600))
	stdout, _, code = s.Run(t, "audit", in.ID, "--verify")
	require.Equal(t, 1, code)
	require.Contains(t, stdout, "undoing pod.isolate")
	require.Contains(t, stdout, "which is missing")
	require.NoError(t, os.WriteFile(manifest, whole, 0o600))

	changed := filepath.Join(t.TempDir(), "recording.json")
	require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(rec, `"severity": "high"`, `"severity": "info"`, 1)),
		0o600))
	stdout, _, code = s.Run(t, "audit", in.ID, "--verify", "--recording", changed)
	require.Equal(t, 1, code)
	require.Contains(t, stdout, "was changed after it was created")
	_, stderr, code = s.Run(t, "simulate", "--playbooks", filepath.Join(s.ConfigDir, "playbooks"), "--incident", changed)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "was changed after it was created")
}

// flipByte changes one byte in the middle of a file, and gives what changes it back.
func flipByte(t *testing.T, file string) (undo func()) {
	t.Helper()
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	raw[len(raw)/2] ^= 1
	write := func() {
		require.NoError(t, os.Chmod(file, 0o600))
		require.NoError(t, os.WriteFile(file, raw, 0o600))
	}
	write()
	return func() { raw[len(raw)/2] ^= 1; write() }
}

// The simulation of each recorded drill repeats what happened. With STANCH_RECORDINGS the recordings are written there.
func TestRecordedDrillSimulatesIdentically(t *testing.T) {
	harness.SkipUnlessSupported(t)
	out := os.Getenv("STANCH_RECORDINGS")
	s := harness.Start(t, stanchBinary, harness.Options{})
	for _, name := range []string{"cryptominer", "shell", "reverse-shell"} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := s.Run(t, "drill", name, "-o", "json")
			require.Zero(t, code, "%s%s", stdout, stderr)
			var drill struct {
				Incident string `json:"incident"`
			}
			require.NoError(t, json.Unmarshal([]byte(stdout), &drill))
			if out != "" {
				require.Eventually(t, func() bool {
					var now playbooks.Incident
					return s.Get("/v1/incidents/"+drill.Incident, &now) == nil && isClosed(now)
				}, 2*time.Minute, 500*time.Millisecond)
			}
			assertSimulationMatches(t, s, drill.Incident, name, "../../playbooks/library")
		})
	}
}

// assertSimulationMatches records an incident and simulates it with the playbooks that ran: it must go as it went.
func assertSimulationMatches(t *testing.T, s *harness.Harness, id, name, plays string) {
	t.Helper()
	raw, stderr, code := s.Run(t, "record", id, "--anonymize")
	require.Zero(t, code, stderr)
	rec, err := recording.Decode([]byte(raw))
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), name+".json")
	require.NoError(t, os.WriteFile(file, []byte(raw), 0o600))
	if out := os.Getenv("STANCH_RECORDINGS"); out != "" {
		require.NoError(
			t,
			os.WriteFile(filepath.Join(out, name+".json"), []byte(raw), 0o644),
		)
	}
	command := s.Command("simulate", "--playbooks", plays, "--incident", file, "-o", "json")
	// Without its configuration: as it was is known from the recording alone.
	command.Args = slices.DeleteFunc(command.Args, func(a string) bool {
		return a == "--config" ||
			strings.HasSuffix(a, "stanch.yaml")
	})
	stdout, err := command.Output()
	require.NoError(t, err)
	var report simulationreport.Report
	require.NoError(t, json.Unmarshal(stdout, &report))
	require.Len(t, report.Results, 1)
	require.Empty(t, simulate.Divergences(rec, report.Results[0]))
}
