package metrics_test

import (
	"encoding/json"
	"regexp"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/rules"
	"stanch/worker/ingest"
	"stanch/worker/manifests"
	"stanch/worker/metrics"
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
	described := make(chan *prometheus.Desc, 1000)
	metrics.NewRegistry(metrics.MetricSources{
		NodeStatus: fakeNodeStatus{connected: map[string]json.RawMessage{}}, Detections: &ingest.Ingester{},
		Temporal: metrics.NewTemporalMetrics(), RuleStats: func() []rules.RuleStats { return nil },
	}).Describe(described)
	close(described)
	have := map[string]bool{}
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range described {
		have[name.FindStringSubmatch(d.String())[1]] = true
	}
	n := 0
	for _, r := range file.Groups[0].Rules {
		require.NotEmpty(t, r.Labels["severity"], r.Alert)
		require.NotEmpty(t, r.Annotations["summary"], r.Alert)
		for _, metric := range regexp.MustCompile(`stanch_[a-z_]+`).FindAllString(r.Expr, -1) {
			require.True(t, have[metric], "%s uses the unknown metric %s", r.Alert, metric)
			n++
		}
	}
	require.GreaterOrEqual(t, n, 10)
}
