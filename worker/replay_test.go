package worker_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/worker/actions"
	"stanch/worker/codec"
	"stanch/worker/tracing"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// newReplayer returns a replayer of this version's workflow code for histories of earlier versions. A lease outlives an
// upgrade: a failure here would leave one stuck.
func newReplayer(t *testing.T, dir string, traced ...interceptor.WorkerInterceptor) sdkworker.WorkflowReplayer {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "codec.key"))
	require.NoError(t, err)
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	require.NoError(t, err)
	c, err := codec.New(codec.KeyID(key), map[string][]byte{codec.KeyID(key): key})
	require.NoError(t, err)
	r, err := sdkworker.NewWorkflowReplayerWithOptions(sdkworker.WorkflowReplayerOptions{
		DataConverter:    c.DataConverter(),
		FailureConverter: c.FailureConverter(), Interceptors: traced,
	})
	require.NoError(t, err)
	catalog := actions.Catalog()
	leases := &lease.Workflows{Catalog: catalog}
	plays := &playbook.Workflows{Catalog: catalog, Leases: leases}
	r.RegisterWorkflow(leases.Lease)
	r.RegisterWorkflow(plays.Playbook)
	r.RegisterWorkflow((&incident.Workflows{Playbooks: plays}).Incident)
	return r
}

// replayHistory replays a stored history, after a change, with its original id.
func replayHistory(t *testing.T, dir, file string, change func(string) string,
	traced ...interceptor.WorkerInterceptor,
) error {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "ids"))
	require.NoError(t, err)
	var ids map[string]string
	require.NoError(t, json.Unmarshal(raw, &ids))
	raw, err = os.ReadFile(file)
	require.NoError(t, err)
	history, err := client.HistoryFromJSON(strings.NewReader(change(string(raw))), client.HistoryJSONOptions{})
	require.NoError(t, err)
	return newReplayer(t, dir, traced...).ReplayWorkflowHistoryWithOptions(nil, history,
		sdkworker.ReplayWorkflowHistoryOptions{OriginalExecution: workflow.Execution{ID: ids[filepath.Base(file)]}})
}

func TestStoredHistoriesReplay(t *testing.T) {
	dirs, err := filepath.Glob("testdata/histories/*")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	traces := tracing.NewTraces()
	t.Cleanup(traces.Close)
	var traced []interceptor.WorkerInterceptor
	for _, i := range traces.WithTracing(client.Options{}).Interceptors {
		traced = append(traced, i.(interceptor.WorkerInterceptor))
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			t.Run(filepath.Base(dir)+"/"+filepath.Base(file), func(t *testing.T) {
				same := func(s string) string { return s }
				require.NoError(t, replayHistory(t, dir, file, same))
				require.NoError(t, replayHistory(t, dir, file, same, traced...),
					"enabling tracing must not break running workflows")
			})
		}
	}
}

// A history of different code must fail: otherwise the replay tests would prove nothing.
func TestReplayOfChangedHistoryFails(t *testing.T) {
	files, err := filepath.Glob("testdata/histories/*/lease-*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	changed := false
	err = replayHistory(t, filepath.Dir(files[0]), files[0], func(s string) string {
		changed = strings.Contains(s, `"Apply"`)
		return strings.ReplaceAll(s, `"Apply"`, `"Verify"`)
	})
	require.True(t, changed)
	require.ErrorContains(t, err, "nondeterministic")
}
