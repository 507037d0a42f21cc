package manifests

import (
	"fmt"

	"stanch/deploy/chart"
)

// AlertRules returns alert rules for Prometheus: conditions in which Stanch cannot detect or act, each with where to
// look. They use only metrics of worker/metrics, which a test checks.
func AlertRules() ([]byte, error) {
	raw, err := chart.Files.ReadFile("files/alerts.yaml")
	if err != nil {
		return nil, fmt.Errorf("read the alert rules: %w", err)
	}
	return raw, nil
}
