package simulate_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/testenv/corpus"
	"stanch/worker/simulate"
)

func made(t testing.TB, o corpus.Options) []simulate.Loaded {
	t.Helper()
	all, err := corpus.All(o)
	require.NoError(t, err)
	var out []simulate.Loaded
	for _, r := range all {
		out = append(out, simulate.Loaded{File: r.Incident.Config, Recording: r})
	}
	return out
}

func BenchmarkCorpus(b *testing.B) {
	all := made(b, corpus.Options{Seed: 1, Count: 1000})
	o := with(b)
	for b.Loop() {
		for _, r := range simulate.All(b.Context(), all, o) {
			require.Empty(b, r.Error)
		}
	}
	b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "incidents/s")
}
