package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/baseline"
	"stanch/testenv/clihelp"
)

func TestHelpTextsAreWellFormed(t *testing.T) { clihelp.CheckForm(t, rootCommand()) }

func TestExamplesAreValidCalls(t *testing.T) { clihelp.CheckExamples(t, rootCommand) }

// The baseline commands need no running sensor: they read and write files of the state directory.
func TestBaselineExamplesSucceed(t *testing.T) {
	const digest = "sha256:9b2f0c4c6d1f7f3f6f2f4b8b2a1f0e9d8c7b6a5f4e3d2c1b0a9f8e7d6c5b4a39"
	dir := t.TempDir()
	t.Chdir(dir)
	writeBaselines(t, agent.BaselinePath(dir), digest)
	writeBaselines(t, "baselines.json", digest)
	examples, err := clihelp.Examples(rootCommand())
	require.NoError(t, err)
	ran := 0
	for _, e := range examples {
		for _, args := range e.Calls {
			if len(args) < 2 || args[0] != "baseline" {
				continue
			}
			ran++
			var out bytes.Buffer
			root := rootCommand()
			root.SetArgs(append(args, "--state", dir))
			root.SetOut(&out)
			exported, err := os.Open(filepath.Join(dir, "baselines.json"))
			require.NoError(t, err)
			root.SetIn(exported)
			require.NoError(t, root.Execute(), e.Line)
			require.NoError(t, exported.Close())
			require.NotEmpty(t, out.String(), e.Line)
		}
	}
	require.GreaterOrEqual(t, ran, 5)
}

// writeBaselines writes baselines with one image.
func writeBaselines(t *testing.T, path, digest string) {
	t.Helper()
	b := baseline.New(baseline.Options{})
	b.Compare(&sensors.Event{
		Kind: sensors.KindExec, Container: sensors.Container{ImageDigest: digest},
		Process: sensors.Process{Exe: "/bin/sh"},
	})
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, b.Write(f))
	require.NoError(t, f.Close())
}
