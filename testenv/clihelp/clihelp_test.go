package clihelp_test

import (
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stanch/testenv/clihelp"
)

func TestExamplesAreSplitIntoCalls(t *testing.T) {
	root := &cobra.Command{Use: "tool", Example: `  tool one 'a b' "c" > out.txt   # a comment
  ssh node tool two --flag x | tool three -; cat tool.txt`}
	examples, err := clihelp.Examples(root)
	require.NoError(t, err)
	require.Len(t, examples, 2)
	assert.Equal(t, `tool one 'a b' "c" > out.txt`, examples[0].Line)
	assert.Equal(t, [][]string{{"one", "a b", "c"}}, examples[0].Calls)
	assert.Equal(t, [][]string{{"two", "--flag", "x"}, {"three", "-"}}, examples[1].Calls)

	root.Example = "  tool 'open"
	_, err = clihelp.Examples(root)
	require.ErrorContains(t, err, "unclosed quote")
}
