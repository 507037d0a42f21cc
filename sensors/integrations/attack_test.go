package integrations

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
)

func TestEveryMappedTechniqueIsKnown(t *testing.T) {
	technique := regexp.MustCompile(`"(T\d{4}(?:\.\d{3})?)"`)
	files, err := filepath.Glob("*_rules.go")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	found := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range technique.FindAllStringSubmatch(string(raw), -1) {
			found++
			_, known := sensors.LookupATTACKTechnique(m[1])
			require.True(t, known, "%s: technique %s is not in ATT&CK v%s", file, m[1], sensors.ATTACKVersion)
		}
	}
	require.Greater(t, found, 20, "the sources are written in another way")
}
