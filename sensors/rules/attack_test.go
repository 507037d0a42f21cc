package rules

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
)

// A technique that ATT&CK revoked, or a typing error, would appear in every export and break searches.
func TestRuleTechniquesAreKnown(t *testing.T) {
	technique := regexp.MustCompile(`(?m)^ +technique: (\S+)$`)
	entries, err := ShippedPacks.ReadDir(".")
	require.NoError(t, err)
	checked := 0
	for _, entry := range entries {
		raw, err := ShippedPacks.ReadFile(entry.Name())
		require.NoError(t, err)
		for _, m := range technique.FindAllStringSubmatch(string(raw), -1) {
			_, known := sensors.LookupATTACKTechnique(m[1])
			require.True(t, known, "%s: technique %s is not in ATT&CK v%s", entry.Name(), m[1], sensors.ATTACKVersion)
			require.NotRegexp(t, `^T1562`, m[1], "%s: ATT&CK v19 revoked T1562", entry.Name())
			checked++
		}
	}
	require.Greater(t, checked, 100)
}
