package playbooks_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
)

const evidenceAndContainSteps = "  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 1h\n"

// newPlaybookFile returns a short playbook; head precedes its match, match is inside it.
func newPlaybookFile(name, head, match string, steps ...string) playbooks.SourceFile {
	text := fmt.Sprintf("playbook: %s\ndescription: x\n%smatch: { %s }\nsteps:\n", name, head, match)
	if len(steps) == 0 {
		steps = []string{evidenceAndContainSteps}
	}
	for _, s := range steps {
		text += s
	}
	return playbooks.SourceFile{File: name + ".yaml", Content: []byte(text)}
}

func markShipped(s playbooks.SourceFile) playbooks.SourceFile {
	s.File, s.Shipped = "library/"+s.File, true
	return s
}

// selectForMining loads the sources and returns the selection result of each playbook for a cryptomining incident.
func selectForMining(t *testing.T, in playbooks.Incident,
	sources ...playbooks.SourceFile,
) map[string]playbooks.SelectionResult {
	t.Helper()
	programs, problems := playbooks.LoadPlaybooks(sources, newTestCatalog())
	require.NoError(t, problems.WithoutWarnings().Err())
	out := map[string]playbooks.SelectionResult{}
	for _, c := range playbooks.SelectPlaybooks(programs, in) {
		out[c.Name] = c
	}
	return out
}

var miningIncident = playbooks.Incident{Objective: "crypto-mining", Severity: sensors.SeverityHigh, Confidence: 0.9}

// Of the matching playbooks that contain, only the first starts. A user's playbook comes first unless priorities say
// otherwise.
func TestOnlyOneContainingPlaybookStarts(t *testing.T) {
	const objective = "objective: crypto-mining"
	for _, c := range []struct {
		name    string
		sources []playbooks.SourceFile
		starts  []string
		next    []string
		why     map[string]string
	}{
		{
			"a user's comes before a shipped one",
			[]playbooks.SourceFile{
				markShipped(newPlaybookFile("cryptominer", "", objective)),
				newPlaybookFile("mine", "", objective),
			},
			[]string{"mine"},
			[]string{"cryptominer"},
			map[string]string{"cryptominer": "it matches, but mine also includes a containment and takes precedence (priority 100 over 0)"},
		},
		{
			"also before an exclusive one of the highest shipped priority",
			[]playbooks.SourceFile{
				markShipped(newPlaybookFile("mass", "", objective+", priority: 100, exclusive: true")),
				newPlaybookFile("mine", "", objective),
			},
			[]string{"mine"},
			[]string{"mass"},
			map[string]string{"mass": "it matches, but mine also includes a containment and takes precedence (same priority 100; your playbook takes precedence over a shipped one)"},
		},
		{
			"unless it gives a lower priority",
			[]playbooks.SourceFile{
				markShipped(newPlaybookFile("cryptominer", "", objective+", priority: 20")),
				newPlaybookFile("mine", "", objective+", priority: 10"),
			},
			[]string{"cryptominer"},
			[]string{"mine"},
			nil,
		},
		{
			"what contains nothing starts beside it",
			[]playbooks.SourceFile{
				markShipped(newPlaybookFile("cryptominer", "", objective)),
				newPlaybookFile("mine", "", objective), newPlaybookFile("note", "", objective, "  - notify: log\n"),
			},
			[]string{"mine", "note"},
			[]string{"cryptominer"},
			nil,
		},
		{
			"but not beside an exclusive one",
			[]playbooks.SourceFile{
				markShipped(newPlaybookFile("note", "", objective, "  - notify: log\n")),
				newPlaybookFile("mine", "", objective+", exclusive: true"),
			},
			[]string{"mine"},
			nil,
			map[string]string{"note": "it matches, but mine is exclusive with priority 100"},
		},
		{
			"one of the same name replaces the shipped one",
			[]playbooks.SourceFile{markShipped(newPlaybookFile("cryptominer", "", objective)), newPlaybookFile("cryptominer", "",
				objective)},
			[]string{"cryptominer"},
			nil, nil,
		},
		{
			"one that says so replaces it",
			[]playbooks.SourceFile{
				markShipped(newPlaybookFile("cryptominer", "", objective)),
				newPlaybookFile("mine", "replaces: cryptominer\n", "objective: discovery"),
			},
			nil, nil,
			map[string]string{"cryptominer": "your playbook mine replaces it"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := selectForMining(t, miningIncident, c.sources...)
			var starts, next []string
			for _, name := range []string{"mine", "cryptominer", "mass", "note"} {
				if got[name].Program != nil && got[name].Selected {
					starts = append(starts, name)
				}
				if got[name].Program != nil && got[name].IsFallback {
					next = append(next, name)
				}
			}
			require.Equal(t, c.starts, starts)
			require.Equal(t, c.next, next)
			for name, why := range c.why {
				require.Equal(t, why, got[name].Reason)
			}
		})
	}
}

// A shipped playbook waits only if a user's playbook may still match after enrichment.
func TestShippedPlaybookWaitsForEnrichment(t *testing.T) {
	library := markShipped(newPlaybookFile("cryptominer", "", "objective: crypto-mining"))
	for when, waits := range map[string]bool{
		`'incident.workload.labels["tier"] == "prod"'`:    true,
		`incident.blast_radius.same_digest_pod_count > 3`: true,
		`len(incident.changes) > 0`:                       true,
		`incident.confidence > 0.95`:                      false, // enrichment does not change it
		`incident.drill`:                                  false,
	} {
		got := selectForMining(t, miningIncident, library, newPlaybookFile("mine", "", "objective: crypto-mining, when: "+
			when))
		require.True(t, got["cryptominer"].Selected, when)
		require.Equal(t, waits, got["cryptominer"].WaitsForEnrichment, when)
	}
	enriched := miningIncident
	enriched.Context.Enriched = true
	later := newPlaybookFile("mine", "", "objective: crypto-mining, when: len(incident.changes) > 0")
	require.False(t, selectForMining(t, enriched, library, later)["cryptominer"].WaitsForEnrichment)
	other := newPlaybookFile("mine", "", "objective: escape, when: len(incident.changes) > 0")
	require.False(t, selectForMining(t, miningIncident, library, other)["cryptominer"].WaitsForEnrichment,
		"its objective is different")
	observing := newPlaybookFile("mine", "", "objective: crypto-mining, when: len(incident.changes) > 0",
		"  - notify: log\n")
	require.False(t, selectForMining(t, miningIncident, library, observing)["cryptominer"].WaitsForEnrichment,
		"it has no containment")
}

func TestReplacementWithFewerSafeguardsIsAWarning(t *testing.T) {
	const asking = "  - evidence: process.snapshot\n  - approval: cut\n    ask: Really?\n    from: { groups: [a] }\n    timeout: 5m\n    on_timeout: deny\n    steps:\n      - contain: pod.isolate\n        for: 1h\n"
	library := markShipped(newPlaybookFile("cryptominer", "", "objective: crypto-mining", asking,
		"  - evidence: pod.logs\n"))
	warnings := func(sources ...playbooks.SourceFile) (out []string) {
		_, problems := playbooks.LoadPlaybooks(sources, newTestCatalog())
		for _, p := range problems {
			out = append(out, p.String())
		}
		return out
	}
	const lacks = "warning: the playbook replaces the shipped playbook `cryptominer`, but lacks its `approval`, `evidence: pod.logs` [replacement]"
	require.Equal(t, []string{"mine.yaml:3:11: " + lacks},
		warnings(library, newPlaybookFile("mine", "replaces: cryptominer\n", "objective: crypto-mining")))
	require.Equal(t, []string{"cryptominer.yaml:1:11: " + lacks},
		warnings(library, newPlaybookFile("cryptominer", "", "objective: crypto-mining")))
	require.Empty(t, warnings(library, newPlaybookFile("mine", "replaces: cryptominer\n", "objective: crypto-mining",
		asking, "  - evidence: pod.logs\n")))
	require.Equal(t, []string{"mine.yaml:3:11: error: unknown shipped playbook `cryptomine` [replaces]"},
		warnings(library, newPlaybookFile("mine", "replaces: cryptomine\n", "objective: crypto-mining")))

	// An invalid playbook replaces nothing, and a diagnostic says so.
	broken := newPlaybookFile("mine", "replaces: cryptominer\n", "objective: crypto-mining",
		"  - contain: pod.isolat\n    for: 1h\n")
	require.Contains(t, warnings(library, broken),
		"mine.yaml:3:11: error: the shipped playbook `cryptominer` stays in use until then [replaced]")
}

func TestOverlapsNameTheSelectedPlaybook(t *testing.T) {
	programs, problems := playbooks.LoadPlaybooks([]playbooks.SourceFile{
		markShipped(newPlaybookFile("cryptominer", "", "objective: crypto-mining")),
		markShipped(newPlaybookFile("other", "", "objective: crypto-mining")),
		newPlaybookFile("mine", "", "objective: [escape, crypto-mining]"),
		newPlaybookFile("yours", "", "objective: escape, priority: 7"), newPlaybookFile("quiet", "", "objective: escape",
			"  - notify: log\n"),
	}, newTestCatalog())
	require.NoError(t, problems.WithoutWarnings().Err())
	var got []string
	for _, o := range playbooks.FindOverlaps(programs) {
		got = append(got, fmt.Sprintf("%s before %s: %s", o.First.Name, o.Second.Name, o.Reason))
	}
	require.Equal(t, []string{
		"mine before yours: priority 100 over 7", "mine before cryptominer: priority 100 over 0",
		"mine before other: priority 100 over 0",
	}, got)
}
