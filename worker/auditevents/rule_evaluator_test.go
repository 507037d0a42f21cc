package auditevents_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/rules"
	"stanch/worker/auditevents"
)

// Two hundred different resources count as two hundred, however many one call requests.
func TestCloudReadsAreCountedPerResource(t *testing.T) {
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	fired := func(event string, calls, each int) int {
		j := auditevents.NewRuleEvaluator(func() *rules.Set { return set }, nil, "", slog.New(slog.DiscardHandler))
		n := 0
		for i := range calls {
			c := sensors.Cloud{
				Provider: "aws", Service: "x.amazonaws.com", EventName: event,
				Principal: "arn:aws:sts::1:assumed-role/web/s", ReadOnly: event != "BatchGetSecretValue",
			}
			for k := range each {
				c.Resources = append(c.Resources, fmt.Sprintf("%d-%d", i, k))
			}
			for _, d := range j.Evaluate(sensors.Event{
				ID: fmt.Sprint(i), Kind: sensors.KindCloudAPICall, Time: time.Now(),
				Cloud: c,
			}) {
				if d.Rule == "cloud-bulk-read" {
					n++
				}
			}
		}
		return n
	}
	require.Equal(t, 1, fired("GetObject", 200, 1))
	require.Zero(t, fired("GetObject", 199, 1))
	require.Equal(t, 1, fired("BatchGetSecretValue", 10, 20))
	require.Equal(t, 1, fired("GetParameters", 20, 10))
	require.Zero(t, fired("GetParameters", 19, 10))
}
