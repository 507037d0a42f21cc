package archive_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"stanch/worker/archive"
	"stanch/worker/audit"
	"stanch/worker/authority"
)

const testIncidentID = "INC-01JABCDEFGHJKMNPQRSTVWXYZ0"

// loadTestHistories returns the histories of a real installation.
func loadTestHistories(t testing.TB) []audit.WorkflowRun {
	t.Helper()
	files, err := filepath.Glob("../testdata/histories/*/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var runs []audit.WorkflowRun
	for _, file := range files[:min(4, len(files))] {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		h, err := client.HistoryFromJSON(bytes.NewReader(raw), client.HistoryJSONOptions{})
		require.NoError(t, err)
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		runs = append(runs, audit.WorkflowRun{
			WorkflowID: name, RunID: "run-" + name, WorkflowType: "Incident",
			Events: h.GetEvents(),
		})
	}
	return runs
}

func writeTestArchive(t testing.TB) (archive.Store, *authority.Authority, []audit.WorkflowRun) {
	t.Helper()
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	s, runs := archive.Store{Dir: t.TempDir()}, loadTestHistories(t)
	require.NoError(t, s.Write(testIncidentID, runs, auth, time.Now()))
	return s, auth, runs
}

func TestArchiveRoundTrip(t *testing.T) {
	s, auth, runs := writeTestArchive(t)
	got, err := s.Read(testIncidentID, auth.Keyring())
	require.NoError(t, err)
	require.Empty(t, got.Differences)
	require.Empty(t, archive.CompareHistories(runs, got.Runs))
	require.Len(t, got.Runs, len(runs))

	sum, err := s.FileSHA256(testIncidentID)
	require.NoError(t, err)
	require.NoError(t, s.Write(testIncidentID, runs[:1], auth, time.Now()), "an archive is not overwritten")
	again, err := s.FileSHA256(testIncidentID)
	require.NoError(t, err)
	require.Equal(t, sum, again)
	_, err = s.Read("INC-01JABCDEFGHJKMNPQRSTVWXYZ1", auth.Keyring())
	require.ErrorIs(t, err, archive.ErrNotFound)
	_, err = s.FilePath("../../etc/passwd")
	require.Error(t, err)
}

func TestOpenIncidentIsNotArchived(t *testing.T) {
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	runs := loadTestHistories(t)
	runs[1].IsOpen = true
	require.ErrorContains(t, archive.Store{Dir: t.TempDir()}.Write(testIncidentID, runs, auth, time.Now()),
		runs[1].WorkflowID)
}

// unpackArchiveJSON returns the archive's JSON, which a test changes and packs again as someone without the signing
// key could.
func unpackArchiveJSON(t *testing.T, s archive.Store) map[string]any {
	t.Helper()
	path, err := s.FilePath(testIncidentID)
	require.NoError(t, err)
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	raw, err := io.ReadAll(z)
	require.NoError(t, err)
	var v map[string]any
	require.NoError(t, json.Unmarshal(raw, &v))
	return v
}

func TestReadReportsEachChangeOfArchive(t *testing.T) {
	s, auth, _ := writeTestArchive(t)
	path, err := s.FilePath(testIncidentID)
	require.NoError(t, err)
	packed, err := os.ReadFile(path)
	require.NoError(t, err)
	for i := 0; i < len(packed); i += 1 + len(packed)/200 {
		changed := bytes.Clone(packed)
		changed[i] ^= 0x10
		require.NoError(t, os.WriteFile(path, changed, 0o600))
		got, err := s.Read(testIncidentID, auth.Keyring())
		// Some bytes of the header (time, system) do not affect the archive.
		require.True(t, err != nil || len(got.Differences) > 0 || i < 10, "byte %d", i)
	}
	require.NoError(t, os.WriteFile(path, packed, 0o600))

	histories := func(v map[string]any) []any { return v["histories"].([]any) }
	for name, c := range map[string]struct {
		change func(v map[string]any)
		want   string
	}{
		"changed history": {func(v map[string]any) {
			h := histories(v)[1].(map[string]any)
			h["history"] = "AA" + h["history"].(string)[2:]
		}, "was changed"},
		"changed history with its hash": {func(v map[string]any) {
			a, b := histories(v)[0].(map[string]any), histories(v)[1].(map[string]any)
			a["history"], a["sha256"] = b["history"], b["sha256"]
		}, "is not in the signed statement"},
		"missing history": {
			func(v map[string]any) { v["histories"] = histories(v)[1:] },
			"missing or changed in the archive",
		},
		"changed statement": {func(v map[string]any) {
			st := v["statement"].(map[string]any)
			st["payload"] = "e30="
		}, "signed statement is invalid"},
		"another incident": {
			func(v map[string]any) { v["incident"] = "INC-01JABCDEFGHJKMNPQRSTVWXYZ9" },
			"the archive is for INC-01JABCDEFGHJKMNPQRSTVWXYZ9",
		},
	} {
		v := unpackArchiveJSON(t, s)
		c.change(v)
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		got, err := archive.Decode(raw, testIncidentID, auth.Keyring())
		require.NoError(t, err, name)
		require.NotEmpty(t, got.Differences, name)
		var all []string
		for _, d := range got.Differences {
			all = append(all, d.Description)
		}
		require.Contains(t, strings.Join(all, "\n"), c.want, name)
	}
	stranger, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	got, err := s.Read(testIncidentID, stranger.Keyring())
	require.NoError(t, err)
	require.NotEmpty(t, got.Differences, "a statement signed with another key is invalid")
}

func TestCompareHistoriesReportsChangedEvents(t *testing.T) {
	s, auth, _ := writeTestArchive(t)
	kept, err := s.Read(testIncidentID, auth.Keyring())
	require.NoError(t, err)
	live := loadTestHistories(t)
	live[2].Events[3].TaskId++
	different := archive.CompareHistories(live, kept.Runs)
	require.Len(t, different, 1)
	require.Equal(t, live[2].WorkflowID, different[0].WorkflowID)
	require.EqualValues(t, 4, different[0].EventID)
	live = loadTestHistories(t)
	live[0].Events = live[0].Events[:10]
	live = append(live, audit.WorkflowRun{WorkflowID: "extra", RunID: "x", Events: live[1].Events})
	require.Len(t, archive.CompareHistories(live, kept.Runs), 2)
	require.Empty(t, archive.CompareHistories(loadTestHistories(t)[1:], kept.Runs),
		"a history that Temporal deleted is no difference")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1}`))
	f.Add(
		[]byte(`{"version":1,"incident":"INC-01JABCDEFGHJKMNPQRSTVWXYZ0","statement":{},"histories":[{"history":"AA=="}]}`),
	)
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := archive.Decode(raw, testIncidentID, nil)
		require.True(t, err != nil || len(got.Differences) > 0, "nothing verifies without a key")
	})
}
