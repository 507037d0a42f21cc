package rules

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// An exception for a program's name must be limited to programs of the image, because any file can have any name.
func TestShippedExceptionsRequireProgramsOfTheImage(t *testing.T) {
	named := regexp.MustCompile(`(?m)^      - (.*\bexe (in|==) .*)$`)
	seen := 0
	entries, err := ShippedPacks.ReadDir(".")
	require.NoError(t, err)
	for _, entry := range entries {
		raw, err := ShippedPacks.ReadFile(entry.Name())
		require.NoError(t, err)
		for _, m := range named.FindAllStringSubmatch(string(raw), -1) {
			seen++
			require.Contains(t, m[1], "&& from_image", entry.Name())
		}
	}
	require.Greater(t, seen, 15)
}
