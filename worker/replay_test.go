package worker_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	sdkworker "go.temporal.io/sdk/worker"

	"stanch/worker"
	"stanch/worker/codec"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// replayer runs this version's workflow code against histories that earlier versions wrote. A lease outlives an
// upgrade: what fails here would leave one stuck.
func replayer(t *testing.T, dir string) sdkworker.WorkflowReplayer {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "codec.key"))
	require.NoError(t, err)
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	require.NoError(t, err)
	c, err := codec.New(worker.CodecKeyID(key), map[string][]byte{worker.CodecKeyID(key): key})
	require.NoError(t, err)
	r, err := sdkworker.NewWorkflowReplayerWithOptions(sdkworker.WorkflowReplayerOptions{DataConverter: c.Converter(), FailureConverter: c.Failures()})
	require.NoError(t, err)
	catalogue := worker.Catalogue()
	leases := &lease.Workflows{Catalogue: catalogue}
	plays := &playbook.Workflows{Catalogue: catalogue, Leases: leases}
	r.RegisterWorkflow(leases.Lease)
	r.RegisterWorkflow(plays.Playbook)
	r.RegisterWorkflow((&incident.Workflows{Playbooks: plays}).Incident)
	return r
}

func TestStoredHistoriesReplay(t *testing.T) {
	dirs, err := filepath.Glob("testdata/histories/*")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			t.Run(filepath.Base(dir)+"/"+filepath.Base(file), func(t *testing.T) {
				require.NoError(t, replayer(t, dir).ReplayWorkflowHistoryFromJSONFile(nil, file))
			})
		}
	}
}

// A history in which something else was done than this code would do must fail: a replay test that passes
// everything would be worth nothing.
func TestAHistoryOfOtherCodeFails(t *testing.T) {
	files, err := filepath.Glob("testdata/histories/*/lease-*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	raw, err := os.ReadFile(files[0])
	require.NoError(t, err)
	require.Contains(t, string(raw), `"Apply"`)
	other := filepath.Join(t.TempDir(), "other.json")
	require.NoError(t, os.WriteFile(other, []byte(strings.ReplaceAll(string(raw), `"Apply"`, `"Verify"`)), 0o600))
	require.ErrorContains(t, replayer(t, filepath.Dir(files[0])).ReplayWorkflowHistoryFromJSONFile(nil, other), "nondeterministic")
}
