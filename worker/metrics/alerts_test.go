package metrics_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/rules"
	"stanch/worker/export"
	"stanch/worker/ingest"
	"stanch/worker/manifests"
	"stanch/worker/metrics"
	"stanch/worker/sourceserver"
)

// An alert with an unknown metric would never fire.
func TestAlertRulesUseExistingMetrics(t *testing.T) {
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	raw, err := manifests.AlertRules()
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(raw, &file))
	have := describeMetrics(t)
	n := 0
	for _, r := range file.Groups[0].Rules {
		require.NotEmpty(t, r.Labels["severity"], r.Alert)
		require.NotEmpty(t, r.Annotations["summary"], r.Alert)
		for _, metric := range regexp.MustCompile(`stanch_[a-z_]+`).FindAllString(r.Expr, -1) {
			require.Contains(t, have, metric, "%s uses the unknown metric %s", r.Alert, metric)
			n++
		}
	}
	require.GreaterOrEqual(t, n, 10)
}

// describeMetrics returns the labels of every metric, by name.
func describeMetrics(t *testing.T) map[string][]string {
	t.Helper()
	described := make(chan *prometheus.Desc, 1000)
	metrics.NewRegistry(metrics.MetricSources{
		NodeStatus: fakeNodeStatus{connected: map[string]json.RawMessage{}}, Detections: &ingest.Ingester{},
		Temporal: metrics.NewTemporalMetrics(), RuleStats: func() []rules.RuleStats { return nil },
		SourceCounts: func() map[string]sourceserver.Counts { return nil },
		ExportCounts: func() map[string]export.DeliveryCounts { return nil },
	}).Describe(described)
	close(described)
	have := map[string][]string{}
	form := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	for d := range described {
		found := form.FindStringSubmatch(d.String())
		require.NotNil(t, found, d.String())
		have[found[1]] = strings.Split(found[2], ",")
	}
	return have
}
