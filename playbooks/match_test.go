package playbooks_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
)

const containing = "  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 1h\n"

// book is a playbook of a few lines; head stands before its match, match inside of it.
func book(name, head, match string, steps ...string) playbooks.Source {
	text := fmt.Sprintf("playbook: %s\ndescription: x\n%smatch: { %s }\nsteps:\n", name, head, match)
	if len(steps) == 0 {
		steps = []string{containing}
	}
	for _, s := range steps {
		text += s
	}
	return playbooks.Source{File: name + ".yaml", Source: []byte(text)}
}

func shipped(s playbooks.Source) playbooks.Source {
	s.File, s.Shipped = "library/"+s.File, true
	return s
}

// chosen loads the sources and says of each playbook what becomes of it for an incident of mining.
func chosen(t *testing.T, in playbooks.Incident, sources ...playbooks.Source) map[string]playbooks.Choice {
	t.Helper()
	programs, problems := playbooks.LoadAll(sources, catalogue())
	require.NoError(t, problems.WithoutWarnings().Err())
	out := map[string]playbooks.Choice{}
	for _, c := range playbooks.Choose(programs, in) {
		out[c.Name] = c
	}
	return out
}

var mining = playbooks.Incident{Objective: "crypto-mining", Severity: sensors.SeverityHigh, Confidence: 0.9}

// Of the playbooks that match and contain only the first starts, and who comes first is a user's unless somebody says otherwise.
func TestOnlyOneOfThePlaybooksThatContainStarts(t *testing.T) {
	const objective = "objective: crypto-mining"
	for _, c := range []struct {
		name    string
		sources []playbooks.Source
		starts  []string
		next    []string
		why     map[string]string
	}{
		{
			"a user's comes before a shipped one",
			[]playbooks.Source{shipped(book("cryptominer", "", objective)), book("mine", "", objective)},
			[]string{"mine"},
			[]string{"cryptominer"},
			map[string]string{"cryptominer": "it matches, and mine contains too and comes first (priority 100 over 0)"},
		},
		{
			"also before an exclusive one of the highest shipped priority",
			[]playbooks.Source{shipped(book("mass", "", objective+", priority: 100, exclusive: true")), book("mine", "", objective)},
			[]string{"mine"},
			[]string{"mass"},
			map[string]string{"mass": "it matches, and mine contains too and comes first (priority 100 as well, and yours before a shipped one)"},
		},
		{
			"unless it gives a lower priority",
			[]playbooks.Source{shipped(book("cryptominer", "", objective+", priority: 20")), book("mine", "", objective+", priority: 10")},
			[]string{"cryptominer"},
			[]string{"mine"},
			nil,
		},
		{
			"what contains nothing starts beside it",
			[]playbooks.Source{shipped(book("cryptominer", "", objective)), book("mine", "", objective), book("note", "", objective, "  - notify: log\n")},
			[]string{"mine", "note"},
			[]string{"cryptominer"},
			nil,
		},
		{
			"but not beside an exclusive one",
			[]playbooks.Source{shipped(book("note", "", objective, "  - notify: log\n")), book("mine", "", objective+", exclusive: true")},
			[]string{"mine"},
			nil,
			map[string]string{"note": "it matches, and mine is exclusive with priority 100"},
		},
		{
			"one of the same name replaces the shipped one",
			[]playbooks.Source{shipped(book("cryptominer", "", objective)), book("cryptominer", "", objective)},
			[]string{"cryptominer"},
			nil, nil,
		},
		{
			"one that says so replaces it",
			[]playbooks.Source{shipped(book("cryptominer", "", objective)), book("mine", "replaces: cryptominer\n", "objective: discovery")},
			nil, nil,
			map[string]string{"cryptominer": "your playbook mine replaces it"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := chosen(t, mining, c.sources...)
			var starts, next []string
			for _, name := range []string{"mine", "cryptominer", "mass", "note"} {
				if got[name].Program != nil && got[name].Chosen {
					starts = append(starts, name)
				}
				if got[name].Program != nil && got[name].Next {
					next = append(next, name)
				}
			}
			require.Equal(t, c.starts, starts)
			require.Equal(t, c.next, next)
			for name, why := range c.why {
				require.Equal(t, why, got[name].Why)
			}
		})
	}
}

// A shipped playbook waits only where a user's may match once more is known.
func TestAShippedPlaybookWaitsForWhatEnrichmentMayDecide(t *testing.T) {
	library := shipped(book("cryptominer", "", "objective: crypto-mining"))
	for when, waits := range map[string]bool{
		`'incident.workload.labels["tier"] == "prod"'`: true,
		`incident.blast_radius.same_digest_pods > 3`:   true,
		`len(incident.changes) > 0`:                    true,
		`incident.confidence > 0.95`:                   false, // enrichment does not change it
		`incident.drill`:                               false,
	} {
		got := chosen(t, mining, library, book("mine", "", "objective: crypto-mining, when: "+when))
		require.True(t, got["cryptominer"].Chosen, when)
		require.Equal(t, waits, got["cryptominer"].Waits, when)
	}
	enriched := mining
	enriched.Context.Enriched = true
	later := book("mine", "", "objective: crypto-mining, when: len(incident.changes) > 0")
	require.False(t, chosen(t, enriched, library, later)["cryptominer"].Waits)
	other := book("mine", "", "objective: escape, when: len(incident.changes) > 0")
	require.False(t, chosen(t, mining, library, other)["cryptominer"].Waits, "its objective is another")
	observing := book("mine", "", "objective: crypto-mining, when: len(incident.changes) > 0", "  - notify: log\n")
	require.False(t, chosen(t, mining, library, observing)["cryptominer"].Waits, "it contains nothing")
}

func TestAReplacementThatDoesLessIsAWarning(t *testing.T) {
	const asking = "  - evidence: process.snapshot\n  - approval: cut\n    ask: Really?\n    from: { groups: [a] }\n    timeout: 5m\n    on_timeout: deny\n    steps:\n      - contain: pod.isolate\n        for: 1h\n"
	library := shipped(book("cryptominer", "", "objective: crypto-mining", asking, "  - evidence: pod.logs\n"))
	warnings := func(sources ...playbooks.Source) (out []string) {
		_, problems := playbooks.LoadAll(sources, catalogue())
		for _, p := range problems {
			out = append(out, p.String())
		}
		return out
	}
	const lacks = "warning: it replaces the shipped playbook `cryptominer` and lacks its `approval`, `evidence: pod.logs` [replacement]"
	require.Equal(t, []string{"mine.yaml:3:11: " + lacks}, warnings(library, book("mine", "replaces: cryptominer\n", "objective: crypto-mining")))
	require.Equal(t, []string{"cryptominer.yaml:1:11: " + lacks}, warnings(library, book("cryptominer", "", "objective: crypto-mining")))
	require.Empty(t, warnings(library, book("mine", "replaces: cryptominer\n", "objective: crypto-mining", asking, "  - evidence: pod.logs\n")))
	require.Equal(t, []string{"mine.yaml:3:11: error: no shipped playbook has the name `cryptomine` [replaces]"},
		warnings(library, book("mine", "replaces: cryptomine\n", "objective: crypto-mining")))

	// One that is not valid replaces nothing, and says so.
	broken := book("mine", "replaces: cryptominer\n", "objective: crypto-mining", "  - contain: pod.isolat\n    for: 1h\n")
	require.Contains(t, warnings(library, broken), "mine.yaml:3:11: error: the shipped playbook `cryptominer` stays in force until then [replaced]")
}

func TestOverlapsNameWhoWins(t *testing.T) {
	programs, problems := playbooks.LoadAll([]playbooks.Source{
		shipped(book("cryptominer", "", "objective: crypto-mining")), shipped(book("other", "", "objective: crypto-mining")),
		book("mine", "", "objective: [escape, crypto-mining]"), book("yours", "", "objective: escape, priority: 7"), book("quiet", "", "objective: escape", "  - notify: log\n"),
	}, catalogue())
	require.NoError(t, problems.WithoutWarnings().Err())
	var got []string
	for _, o := range playbooks.Overlaps(programs) {
		got = append(got, fmt.Sprintf("%s before %s: %s", o.First.Name, o.Second.Name, o.Why))
	}
	require.Equal(t, []string{
		"mine before yours: priority 100 over 7", "mine before cryptominer: priority 100 over 0", "mine before other: priority 100 over 0",
	}, got)
}
