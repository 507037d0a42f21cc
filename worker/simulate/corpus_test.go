package simulate_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/corpus"
	"stanch/worker/simulate"
)

func generateCorpus(t testing.TB, o corpus.Options) []loadedRecording {
	t.Helper()
	all, err := corpus.Generate(o)
	require.NoError(t, err)
	var out []loadedRecording
	for _, r := range all {
		out = append(out, loadedRecording{File: r.Incident.ConfigHash, Recording: r})
	}
	return out
}

func BenchmarkCorpus(b *testing.B) {
	all := generateCorpus(b, corpus.Options{Seed: 1, Count: 1000})
	o := optionsWith(b)
	for b.Loop() {
		for _, r := range simulateAll(b, all, o) {
			require.Empty(b, r.Error)
		}
	}
	b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "incidents/s")
}

// BenchmarkKinds measures the CPU time of each kind.
func BenchmarkKinds(b *testing.B) {
	for _, k := range corpus.Kinds {
		b.Run(k.Name, func(b *testing.B) {
			all := generateCorpus(b, corpus.Options{Seed: 1, Count: 60, Kinds: []string{k.Name}})
			m, err := simulate.NewSimulator(optionsWith(b))
			require.NoError(b, err)
			began, n, activities := cpuTime(b), 0, 0
			for b.Loop() {
				for _, one := range all {
					r := m.Run(b.Context(), one.File, one.Recording)
					require.Empty(b, r.Error)
					activities += r.ActivityCount
					n++
				}
			}
			b.ReportMetric((cpuTime(b)-began).Seconds()*1000/float64(n), "cpu-ms/incident")
			b.ReportMetric(float64(activities)/float64(n), "activities")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
