package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/integrations"
	"stanch/worker/config"
)

func TestParseRejectsInvalidSources(t *testing.T) {
	c, problems := config.Parse(
		"c",
		[]byte("sources: [{ name: falco, kind: falco, token_file: t, rate: 10 }, { name: any, token_file: u }]\n"),
	)
	require.Empty(t, problems)
	require.Equal(t, 10, c.Sources[0].EffectiveRate())
	require.Equal(t, 2000, c.Sources[1].EffectiveRate())

	_, problems = config.Parse(
		"c",
		[]byte(
			"sources:\n  - { name: falco, kind: falko, token_file: t }\n  - { name: falco, token_file: t, rate: -1 }\n  - { name: x }\n",
		),
	)
	var got []string
	for _, p := range problems {
		got = append(got, p.Message)
	}
	require.Equal(t, []string{
		"source falco: unknown kind `falko`", "the source name `falco` is empty or used twice",
		"source falco: invalid `rate` -1", "source x: `token_file` is missing",
	}, got)
	require.Contains(t, problems[0].Hint, strings.Join(integrations.SourceKinds(), ", "))

	_, problems = config.Parse("c", []byte("sources:\n  - { name: falco, knd: falco, token_file: t }\n"))
	require.Contains(t, problems[0].Hint, "did you mean `kind`?")
}
