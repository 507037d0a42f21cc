package simulate_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks/recording"
	"stanch/worker/simulate"
	"stanch/worker/simulationreport"
)

// loadedRecording is a recording with its origin.
type loadedRecording struct {
	File      string
	Recording recording.Recording
}

// simulateAll returns the results of all recordings, in their order.
func simulateAll(t testing.TB, all []loadedRecording, o simulate.Options) (results []simulate.Result) {
	t.Helper()
	require.NoError(t, simulate.Each(t.Context(), corpusEntries(all), newPairRunner(newSimulator(t, o), nil),
		func(outcome simulate.RecordingOutcome) error {
			results = append(results, outcome.Result)
			return nil
		}))
	require.Len(t, results, len(all))
	return results
}

// buildReport builds in memory what simulationreport writes incrementally. base is nil without a baseline.
func buildReport(results, base []simulate.Result) simulationreport.Report {
	totals := simulate.NewTotals(base != nil)
	report := simulationreport.Report{Version: 1, Results: results}
	for i := range results {
		outcome := simulate.RecordingOutcome{Result: results[i]}
		if base != nil {
			if outcome.Change = simulate.CompareResults(base[i], results[i]); outcome.Change != nil {
				report.Changes = append(report.Changes, *outcome.Change)
			}
		}
		totals.AddOutcome(outcome)
	}
	report.Totals, report.Summary = *totals, totals.Summarize()
	return report
}

func renderPage(t testing.TB, r simulate.Result) string {
	t.Helper()
	var page strings.Builder
	w, totals := simulationreport.NewHTML(&page, false), simulate.NewTotals(false)
	outcome := simulate.RecordingOutcome{Result: r}
	totals.AddOutcome(outcome)
	require.NoError(t, w.Add(outcome))
	require.NoError(t, w.Close(totals))
	return page.String()
}
