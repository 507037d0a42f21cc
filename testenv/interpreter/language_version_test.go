package interpreter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"stanch/playbooks"
)

// A worker of an older version does not run a playbook of a newer language version, which waits for a newer worker.
func TestRunOfNewerLanguageVersionWaits(t *testing.T) {
	t.Parallel()
	began := time.Now()
	s := testScenario{languageVersion: playbooks.LanguageVersion + 1, stepsYAML: "\n  - enrich: ctx\n"}
	s.afterStart = func(t *testing.T, c client.Client, id string, _ func(func())) {
		require.Eventually(t, func() bool {
			d, err := c.DescribeWorkflowExecution(t.Context(), id, "")
			return err == nil && d.GetPendingWorkflowTask().GetAttempt() > 1
		}, 20*time.Second, 50*time.Millisecond, "its task is tried again, after %s", time.Since(began))
		require.NoError(t, c.TerminateWorkflow(t.Context(), id, "", "the test is over"))
	}
	s.checkError = func(t *testing.T, err error) { require.ErrorContains(t, err, "terminated") }
	runScenario(t, s)
}
