package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"stanch/testenv/clihelp"
)

func TestHelpTextsAreWellFormed(t *testing.T) { clihelp.CheckForm(t, rootCommand()) }

func TestExamplesAreValidCalls(t *testing.T) { clihelp.CheckExamples(t, rootCommand) }

// stanch.yaml is the configuration: no example may redirect output over it.
func TestNoExampleOverwritesTheConfiguration(t *testing.T) {
	over := regexp.MustCompile(`>>?\s*\S*stanch\.yaml`)
	clihelp.Walk(rootCommand(), func(c *cobra.Command) {
		require.NotRegexp(t, over, c.Example+c.Long+c.Short, c.CommandPath())
	})
	documents, err := filepath.Glob("../../*.md")
	require.NoError(t, err)
	require.NotEmpty(t, documents)
	for _, file := range documents {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NotRegexp(t, over, string(raw), file)
	}
}
