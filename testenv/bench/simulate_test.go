package bench

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/worker"
	"stanch/worker/simulate"
)

// How many recorded incidents a second go through the production workflows, on all processors.
func BenchmarkSimulate(b *testing.B) {
	catalogue := worker.Catalogue()
	var programs []*playbooks.Program
	files, err := filepath.Glob("../../playbooks/library/*.yaml")
	require.NoError(b, err)
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(b, err)
		p, problems := playbooks.Load(file, source, catalogue)
		require.NotNil(b, p, "%v", problems)
		programs = append(programs, p)
	}
	var all []simulate.Loaded
	files, err = filepath.Glob("../recordings/*.json")
	require.NoError(b, err)
	require.NotEmpty(b, files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(b, err)
		r, err := recording.Decode(raw)
		require.NoError(b, err)
		// The window of an ordinary incident: a drill's is 30 s, so that its incident looks up 240 times in two hours.
		r.Incident.QuietMS = (15 * time.Minute).Milliseconds()
		for range 20 {
			all = append(all, simulate.Loaded{File: file, Recording: r})
		}
	}
	o := simulate.Options{Catalogue: catalogue, Playbooks: func(a activities.Authority) simulate.Match { return worker.LibraryOf(a, programs...).Match }}
	n, started := 0, time.Now()
	for b.Loop() {
		for _, r := range simulate.All(b.Context(), all, o) {
			require.Empty(b, r.Error)
			n++
		}
	}
	perSecond := float64(n) / time.Since(started).Seconds()
	b.ReportMetric(perSecond, "incidents/s")
	record(b, map[string]any{"name": "simulate", "n": n, "incidents_per_second": perSecond})
}
