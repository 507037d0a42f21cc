package metrics_test

import (
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/deploy/chart"
)

// dashboard is what the tests read of Grafana's format.
type dashboard struct {
	Templating struct {
		List []struct{ Name, Type string }
	}
	Panels []dashboardPanel
}

type dashboardPanel struct {
	ID                       int
	Type, Title, Description string
	Datasource               struct{ UID string }
	GridPos                  struct{ H, W, X, Y int }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []struct {
		RefID, Expr string
		Datasource  struct{ UID string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	raw, err := chart.Files.ReadFile("files/dashboard.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(raw, &d))
	return d
}

// histogramSuffixes are what Prometheus appends to the name of a histogram.
var histogramSuffixes = regexp.MustCompile(`_(bucket|sum|count)$`)

// selectorPattern matches a metric with the labels that select its series.
var selectorPattern = regexp.MustCompile(`\b(stanch_[a-z_]+)(?:\{([^}]*)\})?`)

// A panel with an unknown metric or label would always be empty.
func TestDashboardUsesExistingMetricsAndLabels(t *testing.T) {
	have := describeMetrics(t)
	shown := map[string]bool{}
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			metricsOf := selectorPattern.FindAllStringSubmatch(target.Expr, -1)
			require.NotEmpty(t, metricsOf, "%s: %s", p.Title, target.Expr)
			for _, m := range metricsOf {
				name := m[1]
				if have[name] == nil {
					name = histogramSuffixes.ReplaceAllString(name, "")
				}
				require.Contains(t, have, name, "%s uses an unknown metric", p.Title)
				shown[name] = true
				used := regexp.MustCompile(`([a-z_]+)(=~|!=|=)"`).FindAllStringSubmatch(m[2], -1)
				for _, by := range regexp.MustCompile(`\b(?:by) \(([^)]*)\) \([^()]*(?:\()?`+m[1]).FindAllStringSubmatch(
					target.Expr, -1) {
					for label := range strings.SplitSeq(by[1], ", ") {
						used = append(used, []string{"", label})
					}
				}
				for _, label := range used {
					if label[1] != "le" {
						require.Contains(t, have[name], label[1], "%s: %s has no such label", p.Title, name)
					}
				}
			}
			requireBalanced(t, target.Expr)
		}
	}
	require.Greater(t, len(shown), 20, "the dashboard shows too few metrics")
}

// requireBalanced fails if a bracket of an expression is not closed.
func requireBalanced(t *testing.T, expression string) {
	t.Helper()
	closes := map[rune]rune{')': '(', '}': '{', ']': '['}
	var open []rune
	for _, r := range expression {
		switch r {
		case '(', '{', '[':
			open = append(open, r)
		case ')', '}', ']':
			require.NotEmpty(t, open, expression)
			require.Equal(t, closes[r], open[len(open)-1], expression)
			open = open[:len(open)-1]
		}
	}
	require.Empty(t, open, expression)
}

// Series are selected by the names of activities, which are methods, and of the lease workflow.
func TestDashboardSelectsExistingActivities(t *testing.T) {
	methods := reflect.TypeFor[*activities.Activities]()
	n := 0
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			for _, m := range regexp.MustCompile(`activity_type=~?"([^"]+)"`).FindAllStringSubmatch(target.Expr, -1) {
				for name := range strings.SplitSeq(m[1], "|") {
					_, ok := methods.MethodByName(name)
					require.True(t, ok, "%s selects the unknown activity %s", p.Title, name)
					n++
				}
			}
		}
	}
	require.Greater(t, n, 5)
}

func TestDashboardExplainsEveryPanel(t *testing.T) {
	d := readDashboard(t)
	require.Equal(t, "datasource", d.Templating.List[0].Name)
	units := []string{"short", "s", "cps", "reqps"}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], "the id of %s is not unique", p.Title)
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			require.Less(t, x, 24, p.Title)
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				require.Empty(t, cells[[2]int{x, y}], "%s covers it", p.Title)
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		require.Greater(t, len(p.Description), 25, "%s has no description", p.Title)
		require.True(t, strings.HasSuffix(p.Description, "."), p.Title)
		require.True(t, slices.Contains(units, p.FieldConfig.Defaults.Unit), "%s has no unit", p.Title)
		require.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
		for _, target := range p.Targets {
			require.Equal(t, "${datasource}", target.Datasource.UID, p.Title)
		}
	}
}
