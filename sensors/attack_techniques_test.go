package sensors

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestATTACKTableIsWellFormed(t *testing.T) {
	technique, tactic := regexp.MustCompile(`^T\d{4}(\.\d{3})?$`), regexp.MustCompile(`^TA\d{4}$`)
	for id, known := range attackTechniques {
		require.Regexp(t, technique, id)
		require.NotEmpty(t, known.Name, id)
		require.NotEmpty(t, known.Tactics, id)
		require.NotContains(t, revokedATTACKTechniques, id)
		for _, of := range known.Tactics {
			require.Regexp(t, tactic, of.ID, id)
		}
	}
	for old, successor := range revokedATTACKTechniques {
		require.Contains(t, attackTechniques, successor, old)
	}
	for _, o := range Objectives {
		require.Contains(t, objectiveTactics, o)
	}
}

func TestTacticFollowsObjectiveAndTechnique(t *testing.T) {
	for name, c := range map[string]struct {
		objective Objective
		technique string
		tactic    string
	}{
		"hidden":               {ObjectiveDefenseEvasion, "T1620", "Stealth"},
		"disabled":             {ObjectiveDefenseEvasion, "T1685.002", "Defense Impairment"},
		"revoked":              {ObjectiveDefenseEvasion, "T1562.008", "Defense Impairment"},
		"without technique":    {ObjectiveDefenseEvasion, "", "Stealth"},
		"unknown technique":    {ObjectiveEscape, "T9999", "Privilege Escalation"},
		"of another tactic":    {ObjectivePersistence, "T1105", "Persistence"},
		"several tactics":      {ObjectivePersistence, "T1078.004", "Persistence"},
		"mining is an impact":  {ObjectiveCryptoMining, "T1496.001", "Impact"},
		"sniffing for secrets": {ObjectiveCredentialAccess, "T1040", "Credential Access"},
	} {
		t.Run(name, func(t *testing.T) {
			tactic, ok := ATTACKTacticOf(c.objective, c.technique)
			require.True(t, ok)
			require.Equal(t, c.tactic, tactic.Name)
		})
	}
	_, ok := ATTACKTacticOf("unknown", "T1620")
	require.False(t, ok)
}
