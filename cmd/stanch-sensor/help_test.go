package main

import (
	"regexp"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// flagPlaceholderPattern is what may stand behind a flag in its help: a type of Go's, or one word in capitals.
var flagPlaceholderPattern = regexp.MustCompile(`^(|int|int32|float|uint|string|strings|duration|[A-Z][A-Z0-9]*(:[A-Z]+)?)$`)

func walkCommands(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		walkCommands(sub, f)
	}
}

// The library takes the first words in backquotes for a flag's placeholder: a command that is quoted there would read as
// `--listen-nodes stanch cert`.
func TestEveryFlagHasAPlaceholderOfOneWord(t *testing.T) {
	n := 0
	walkCommands(rootCommand(), func(c *cobra.Command) {
		for _, flags := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			flags.VisitAll(func(f *pflag.Flag) {
				n++
				name, usage := pflag.UnquoteUsage(f)
				assert.Regexp(t, flagPlaceholderPattern, name, "%s --%s", c.CommandPath(), f.Name)
				require.NotContains(t, usage, "`", "%s --%s", c.CommandPath(), f.Name)
				require.NotEmpty(t, usage, "%s --%s", c.CommandPath(), f.Name)
			})
		}
	})
	require.Greater(t, n, 10)
}
