package corpus_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks/recording"
	"stanch/testenv/corpus"
)

func writeAndReadBack(t *testing.T, o corpus.Options) [][]byte {
	t.Helper()
	all, err := corpus.Generate(o)
	require.NoError(t, err)
	var out [][]byte
	for _, r := range all {
		raw, err := recording.Encode(r)
		require.NoError(t, err)
		out = append(out, raw)
	}
	return out
}

// The same seed gives the same bytes, and a recording does not depend on the number of recordings.
func TestCorpusIsReproducible(t *testing.T) {
	a := writeAndReadBack(t, corpus.Options{Seed: 7, Count: 50})
	require.Equal(t, a, writeAndReadBack(t, corpus.Options{Seed: 7, Count: 50}))
	require.Equal(t, a[:20], writeAndReadBack(t, corpus.Options{Seed: 7, Count: 20}))
	require.NotEqual(t, a[0], writeAndReadBack(t, corpus.Options{Seed: 8, Count: 1})[0])
}

// Generated recordings are read like those of `stanch record`, and each has a unique id.
func TestRecordingsAreValidAndUnique(t *testing.T) {
	ids := map[string]bool{}
	for i, raw := range writeAndReadBack(t, corpus.Options{Seed: 1, Count: 1000, StormDetections: 50}) {
		r, err := recording.Decode(raw)
		require.NoError(t, err, "recording %d", i)
		require.False(t, ids[r.Incident.ID], "%s twice", r.Incident.ID)
		require.Regexp(t, `^INC-[0-9A-Z]{26}$`, r.Incident.ID)
		ids[r.Incident.ID] = true
	}
}

// Any thousand consecutive recordings contain every kind in its proportion.
func TestMixtureOfKindsIsExact(t *testing.T) {
	all, err := corpus.Generate(corpus.Options{Seed: 9, Count: 1000, StormDetections: 5})
	require.NoError(t, err)
	got, sum := map[string]int{}, 0
	for _, r := range all {
		got[r.Incident.ConfigHash]++
	}
	for _, k := range corpus.Kinds {
		require.Equal(t, k.PerMille, got["corpus:"+k.Name], k.Name)
		sum += k.PerMille
	}
	require.Equal(t, 1000, sum)
	_, err = corpus.Generate(corpus.Options{Kinds: []string{"peace"}})
	require.ErrorContains(t, err, `no kind "peace"`)
}

// A file with one recording per line has the same content as a directory.
func TestLinesFileEqualsDirectory(t *testing.T) {
	o := corpus.Options{Seed: 4, Count: 30, StormDetections: 10}
	file := filepath.Join(t.TempDir(), "all.jsonl")
	_, err := corpus.WriteLines(o, file)
	require.NoError(t, err)
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	want, n := writeAndReadBack(t, o), 0
	require.NoError(t, recording.ReadLines(f, func(_ int, line []byte) error {
		r, err := recording.Decode(line)
		require.NoError(t, err)
		raw, err := recording.Encode(r)
		require.NoError(t, err)
		require.Equal(t, string(want[n]), string(raw))
		n++
		changed := bytes.Replace(line, []byte(`"batch":1`), []byte(`"batch":2`), 1)
		_, err = recording.Decode(changed)
		require.ErrorContains(t, err, "was changed after it was created")
		return nil
	}))
	require.Equal(t, 30, n)
	dir := t.TempDir()
	_, err = corpus.Write(o, dir)
	require.NoError(t, err)
	raw, err := os.ReadFile(filepath.Join(dir, "0000", "000007.json"))
	require.NoError(t, err)
	require.Equal(t, string(want[7]), string(raw))
}
