package interpreter

import (
	"compress/gzip"
	"context"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/sdk/client"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/worker/codec"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// historiesDir is where the history of each construct's scenario is stored, as the version wrote it that had it first.
// With STANCH_HISTORIES=1 the scenarios write theirs anew: only ever for constructs that have none yet.
const historiesDir = "testdata/histories"

var unsafeFileChars = regexp.MustCompile(`[^a-z0-9]+`)

// storeHistory writes the history of a run that has ended, if it is asked for and there is none.
func storeHistory(t *testing.T, c client.Client, id string) {
	t.Helper()
	if os.Getenv("STANCH_HISTORIES") == "" {
		return
	}
	dir := filepath.Join(historiesDir, unsafeFileChars.ReplaceAllString(strings.ToLower(strings.TrimPrefix(t.Name(),
		"Test")), "-"))
	if _, err := os.Stat(dir); err == nil {
		return
	}
	all := &historypb.History{}
	events := c.GetWorkflowHistory(context.WithoutCancel(t.Context()), id, "", false,
		enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		e, err := events.Next()
		require.NoError(t, err)
		all.Events = append(all.Events, e)
	}
	raw, err := temporalproto.CustomJSONMarshalOptions{}.Marshal(all)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(dir, 0o750))
	f, err := os.Create(filepath.Join(dir, "history.json.gz"))
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	_, err = z.Write(raw)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.NoError(t, f.Close())
	key, err := os.ReadFile(filepath.Join(sharedTemporal.dir, "codec.key"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "codec.key"), key, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "id"), []byte(id), 0o600))
}

// replayHistory runs this version's interpreter, or another, against a stored history.
func replayHistory(t *testing.T, dir string, interpreter any) error {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "codec.key"))
	require.NoError(t, err)
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	require.NoError(t, err)
	c, err := codec.New(codec.KeyID(key), map[string][]byte{codec.KeyID(key): key})
	require.NoError(t, err)
	r, err := sdkworker.NewWorkflowReplayerWithOptions(sdkworker.WorkflowReplayerOptions{
		DataConverter:    c.DataConverter(),
		FailureConverter: c.FailureConverter(),
	})
	require.NoError(t, err)
	r.RegisterWorkflowWithOptions(interpreter, workflow.RegisterOptions{Name: "Playbook"})
	f, err := os.Open(filepath.Join(dir, "history.json.gz"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	text, err := io.ReadAll(z)
	require.NoError(t, err)
	history, err := client.HistoryFromJSON(strings.NewReader(string(text)), client.HistoryJSONOptions{})
	require.NoError(t, err)
	id, err := os.ReadFile(filepath.Join(dir, "id"))
	require.NoError(t, err)
	return r.ReplayWorkflowHistoryWithOptions(discardLogger{}, history,
		sdkworker.ReplayWorkflowHistoryOptions{OriginalExecution: workflow.Execution{ID: string(id)}})
}

// A run continues after an upgrade: this version replays every construct as the version that started the run. A version
// that behaves differently is detected for every construct.
func TestStoredRunsOfEveryConstructReplay(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(historiesDir, "*"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(dirs), 25,
		"histories are missing: STANCH_HISTORIES=1 go test ./testenv/interpreter writes those of new scenarios")
	w := &fakeBackend{}
	set := activities.NewActivities(w.fakeActions()...)
	plays := &playbook.Workflows{Catalog: set.Catalog(), Leases: &lease.Workflows{Catalog: set.Catalog()}}
	other := func(ctx workflow.Context, in playbook.Input) (playbook.Report, error) {
		// Something that the stored run did not do, at its very end.
		report, err := plays.Playbook(ctx, in)
		if err == nil {
			err = workflow.Sleep(ctx, time.Second)
		}
		return report, err
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			require.NoError(t, replayHistory(t, dir, plays.Playbook))
			require.ErrorContains(t, replayHistory(t, dir, other), "nondeterministic")
		})
	}
}
