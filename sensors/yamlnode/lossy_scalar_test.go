package yamlnode_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/yamlnode"
)

func TestNumbersThatYAMLWouldChangeAreErrors(t *testing.T) {
	scalar := func(text string) *yaml.Node {
		var doc yaml.Node
		require.NoError(t, yaml.Unmarshal([]byte("v: "+text), &doc))
		return doc.Content[0].Content[1]
	}
	for text, hint := range map[string]string{
		"010": "write 10, or 0o10", "0100": "write 100, or 0o100", "-010": "write 10", "00": "", "1_000": "write 1000",
		"0x1F": "write 31", "0b11": "", "1_0.5": "without them",
		"0.12345678901234567890123": "fewer digits", "12345678901234567.5": "fewer digits",
	} {
		message, said := yamlnode.CheckLossyScalar(scalar(text))
		require.NotEmpty(t, message, text)
		require.Contains(t, said, hint, text)
	}
	for _, text := range []string{
		"0", "10", "-7", "+7", "0o100", "0.5", "1e3", "1.10", `"010"`, "'0x1F'", "web-010",
		"010.1.2.3", "true", "yes", "~", "2026-11-29", "9223372036854775807", "15m", "|\n  010",
	} {
		message, _ := yamlnode.CheckLossyScalar(scalar(text))
		require.Empty(t, message, text)
	}
}
