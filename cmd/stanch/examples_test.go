package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/testenv/clihelp"
	"stanch/worker/authority"
)

// offlineCommands are the commands whose examples run without a running Stanch, a cluster or another sensor.
var offlineCommands = []string{
	"actions", "cert", "evidence", "explain", "manifests", "playbooks", "rules", "schema",
	"simulate", "test", "validate",
}

const exampleIncidentID = "INC-01JABCDEFGHJKMNPQRSTVWXYZ0"

func TestOfflineExamplesSucceed(t *testing.T) {
	stanch, err := exec.LookPath("stanch") // the test binary, see TestMain
	require.NoError(t, err)
	recording, err := os.ReadFile("../../testenv/recordings/cryptominer.json")
	require.NoError(t, err)
	examples, err := clihelp.Examples(rootCommand())
	require.NoError(t, err)
	for _, name := range offlineCommands {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newExampleDir(t, stanch, recording)
			head := storeExampleEvidence(t, filepath.Join(dir, "data"))
			ran := map[string]bool{}
			for _, e := range examples {
				// The playbooks of an incident id are those of a running Stanch.
				if e.Calls[0][0] != name || ran[e.Line] || name == "playbooks" && slices.Contains(e.Calls[0], exampleIncidentID) {
					continue
				}
				ran[e.Line] = true
				c := exec.CommandContext(t.Context(), "sh", "-c", e.Line)
				c.Dir = dir
				c.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+string(filepath.ListSeparator)+os.Getenv("PATH"),
					"HEAD="+head)
				out, err := c.CombinedOutput()
				require.NoError(t, err, "%s\n%s", e.Line, out[:min(len(out), 2000)])
			}
			require.NotEmpty(t, ran)
		})
	}
}

// newExampleDir returns a directory with the files that examples name. In its bin directory, stanch uses the data
// directory DIR/data unless an example sets --data, and kubectl fails without input.
func newExampleDir(t *testing.T, stanch string, recording []byte) string {
	t.Helper()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	const isolate = "steps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    id: isolate\n    for: 1h\n"
	playbook := func(name string) string {
		return "playbook: " + name + "\ndescription: Isolate miners.\nmatch: { objective: crypto-mining }\n" + isolate
	}
	for file, text := range map[string]string{
		"bin/stanch": "#!/bin/sh\ncase \" $* \" in *' --data '*) exec '" + stanch +
			"' \"$@\";; esac\nexec '" + stanch + "' \"$@\" --data '" + data + "'\n",
		"bin/kubectl":                "#!/bin/sh\n[ -n \"$(cat)\" ]\n",
		"stanch.yaml":                "people:\n  - { name: alice, groups: [responders] }\n",
		"mine.yaml":                  playbook("mine"),
		"mine/mine.yaml":             playbook("mine"),
		"old/mine.yaml":              playbook("mine"),
		"new/mine.yaml":              strings.Replace(playbook("mine"), "1h", "2h", 1),
		"playbooks/cryptominer.yaml": playbook("cryptominer"),
		"playbooks/cryptominer_test.yaml": "playbook: cryptominer.yaml\ntests:\n  - name: the pod is isolated\n    detections: [{ rule: miner-process }]\n" +
			"    expect: [{ step: isolate, outcome: changed }]\n",
		"my-rules/pack.yaml": "overrides:\n  - rule: terminal-shell\n    severity: low\n    reason: engineers debug builds there\n",
		"recorded_events.jsonl": `{"id":"1","kind":"exec","process":{"exe":"/bin/sh","tty":"pts0"},"container":{"id":"c"}}` +
			"\n",
		"recording.json":        string(recording),
		"recordings/miner.json": string(recording),
	} {
		path := filepath.Join(dir, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o755))
	}
	require.NoError(t, createAuthority(data))
	require.NoError(t, createAuthority(filepath.Join(dir, "secrets")))
	return dir
}

// storeExampleEvidence stores an artifact in a data directory, with its public keys in authority.pub and a copy in copy
// beside it. It returns the head of the manifest.
func storeExampleEvidence(t *testing.T, data string) string {
	t.Helper()
	auth, err := authority.OpenExisting(filepath.Join(data, "keys"))
	require.NoError(t, err)
	store := &activities.EvidenceStore{Dir: filepath.Join(data, "evidence"), Authority: auth}
	_, err = store.StoreArtifact(exampleIncidentID, "process.snapshot", "pod:a",
		activities.Artifact{Name: "processes.json", Data: []byte("[]")}, time.Now())
	require.NoError(t, err)
	lines, _, err := store.Manifest(exampleIncidentID, auth.Keyring())
	require.NoError(t, err)
	dir := filepath.Dir(data)
	require.NoError(t, os.CopyFS(filepath.Join(dir, "copy"), os.DirFS(store.Dir)))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "authority.pub"),
		[]byte(strings.Join(auth.Keyring().EncodeLines(), "\n")+"\n"), 0o600))
	return activities.LastLineHash(lines)
}
