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

const id = "INC-01JABCDEFGHJKMNPQRSTVWXYZ0"

// stored are histories of a real installation.
func stored(t testing.TB) []audit.Run {
	t.Helper()
	files, err := filepath.Glob("../testdata/histories/*/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var runs []audit.Run
	for _, file := range files[:min(4, len(files))] {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		h, err := client.HistoryFromJSON(bytes.NewReader(raw), client.HistoryJSONOptions{})
		require.NoError(t, err)
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		runs = append(runs, audit.Run{Workflow: name, ID: "run-" + name, Type: "Incident", Events: h.GetEvents()})
	}
	return runs
}

func written(t testing.TB) (archive.Store, *authority.Authority, []audit.Run) {
	t.Helper()
	auth, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	s, runs := archive.Store{Dir: t.TempDir()}, stored(t)
	require.NoError(t, s.Write(id, runs, auth, time.Now()))
	return s, auth, runs
}

func TestWhatIsArchivedIsReadAsItWas(t *testing.T) {
	s, auth, runs := written(t)
	got, err := s.Read(id, auth.Keys())
	require.NoError(t, err)
	require.Empty(t, got.Differences)
	require.Empty(t, archive.Compare(runs, got.Runs))
	require.Len(t, got.Runs, len(runs))

	sum, err := s.Sum(id)
	require.NoError(t, err)
	require.NoError(t, s.Write(id, runs[:1], auth, time.Now()), "what is archived is not written again")
	again, err := s.Sum(id)
	require.NoError(t, err)
	require.Equal(t, sum, again)
	_, err = s.Read("INC-01JABCDEFGHJKMNPQRSTVWXYZ1", auth.Keys())
	require.ErrorIs(t, err, archive.ErrNone)
	_, err = s.Path("../../etc/passwd")
	require.Error(t, err)
}

func TestWhatIsStillOpenIsNotArchived(t *testing.T) {
	auth, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	runs := stored(t)
	runs[1].Open = true
	require.ErrorContains(t, archive.Store{Dir: t.TempDir()}.Write(id, runs, auth, time.Now()), runs[1].Workflow)
}

// unpacked is the archive's JSON, to be changed and packed again by somebody who has the file and no key.
func unpacked(t *testing.T, s archive.Store) map[string]any {
	t.Helper()
	path, err := s.Path(id)
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

func TestEachChangeOfAnArchiveIsNamed(t *testing.T) {
	s, auth, _ := written(t)
	path, err := s.Path(id)
	require.NoError(t, err)
	packed, err := os.ReadFile(path)
	require.NoError(t, err)
	for i := 0; i < len(packed); i += 1 + len(packed)/200 {
		changed := bytes.Clone(packed)
		changed[i] ^= 0x10
		require.NoError(t, os.WriteFile(path, changed, 0o600))
		got, err := s.Read(id, auth.Keys())
		// Some of the header's bytes (its time, its system) carry nothing of the archive.
		require.True(t, err != nil || len(got.Differences) > 0 || i < 10, "byte %d", i)
	}
	require.NoError(t, os.WriteFile(path, packed, 0o600))

	histories := func(v map[string]any) []any { return v["histories"].([]any) }
	for name, c := range map[string]struct {
		change func(v map[string]any)
		want   string
	}{
		"a history": {func(v map[string]any) {
			h := histories(v)[1].(map[string]any)
			h["history"] = "AA" + h["history"].(string)[2:]
		}, "was changed"},
		"a history with its hash": {func(v map[string]any) {
			a, b := histories(v)[0].(map[string]any), histories(v)[1].(map[string]any)
			a["history"], a["sha256"] = b["history"], b["sha256"]
		}, "is not in the signed statement"},
		"a history left out": {func(v map[string]any) { v["histories"] = histories(v)[1:] }, "missing or changed in the archive"},
		"the statement": {func(v map[string]any) {
			st := v["statement"].(map[string]any)
			st["body"] = "e30="
		}, "statement does not hold"},
		"another incident": {func(v map[string]any) { v["incident"] = "INC-01JABCDEFGHJKMNPQRSTVWXYZ9" }, "the archive is of INC-01JABCDEFGHJKMNPQRSTVWXYZ9"},
	} {
		v := unpacked(t, s)
		c.change(v)
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		got, err := archive.Decode(raw, id, auth.Keys())
		require.NoError(t, err, name)
		require.NotEmpty(t, got.Differences, name)
		var all []string
		for _, d := range got.Differences {
			all = append(all, d.What)
		}
		require.Contains(t, strings.Join(all, "\n"), c.want, name)
	}
	stranger, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	got, err := s.Read(id, stranger.Keys())
	require.NoError(t, err)
	require.NotEmpty(t, got.Differences, "a statement of another key is none")
}

func TestLiveHistoryIsComparedEventByEvent(t *testing.T) {
	s, auth, _ := written(t)
	kept, err := s.Read(id, auth.Keys())
	require.NoError(t, err)
	live := stored(t)
	live[2].Events[3].TaskId++
	different := archive.Compare(live, kept.Runs)
	require.Len(t, different, 1)
	require.Equal(t, live[2].Workflow, different[0].Workflow)
	require.EqualValues(t, 4, different[0].Event)
	live = stored(t)
	live[0].Events = live[0].Events[:10]
	live = append(live, audit.Run{Workflow: "extra", ID: "x", Events: live[1].Events})
	require.Len(t, archive.Compare(live, kept.Runs), 2)
	require.Empty(t, archive.Compare(stored(t)[1:], kept.Runs), "what Temporal no longer has is no difference")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"incident":"INC-01JABCDEFGHJKMNPQRSTVWXYZ0","statement":{},"histories":[{"history":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := archive.Decode(raw, id, nil)
		require.True(t, err != nil || len(got.Differences) > 0, "without a key nothing holds")
	})
}
