package playbooks_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
)

func TestDifferentObjectivesRaiseConfidenceMoreThanRepetition(t *testing.T) {
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	shell := playbooks.CorrelationInput{
		Rule: "terminal-shell", Title: "Shell with a terminal", Objective: sensors.ObjectiveExecution, Confidence: 0.6,
		Severity:   sensors.SeverityMedium,
		DetectedAt: at, Reason: "Nobody opens a shell in it.",
	}
	token := playbooks.CorrelationInput{
		Rule: "token-read", Title: "Token read", Objective: sensors.ObjectiveCredentialAccess, Confidence: 0.7,
		Severity: sensors.SeverityHigh, DetectedAt: at.Add(90 * time.Second),
	}
	repeated := playbooks.Correlate([]playbooks.CorrelationInput{shell, shell, shell})
	require.InDelta(t, 0.6, repeated.Confidence, 1e-9)
	require.Equal(t,
		[]string{"Shell with a terminal: this detection alone gives a confidence of 0.60 for execution. Nobody opens a shell in it."},
		repeated.Reasons)

	both := playbooks.Correlate([]playbooks.CorrelationInput{token, shell})
	require.InDelta(t, 0.88, both.Confidence, 1e-9)
	require.Equal(t, sensors.ObjectiveCredentialAccess, both.Objective)
	require.Equal(t, []string{
		"Token read: this detection alone gives a confidence of 0.70 for credential-access.",
		"Shell with a terminal: this detection alone gives a confidence of 0.60 for execution. Nobody opens a shell in it.",
		"They form a chain, within 1m30s: Shell with a terminal (execution) → Token read (credential-access).",
		"2 objectives in one window (credential-access, execution) raise the confidence to 0.88.",
	}, both.Reasons)

	bare := playbooks.Correlate([]playbooks.CorrelationInput{
		{Rule: "a", Objective: "x", Confidence: 0.5},
		{Rule: "b", Objective: "y", Confidence: 0.5},
	})
	require.Equal(t, "The rule a: this detection alone gives a confidence of 0.50 for x.", bare.Reasons[0],
		"missing fields are not invented")
	require.Len(t, bare.Reasons, 3)
}
