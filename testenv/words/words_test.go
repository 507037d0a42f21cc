package words_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/testenv/words"
)

func TestUserVisibleTextUsesStandardTerms(t *testing.T) {
	findings, err := words.Check(filepath.Join("..", ".."))
	require.NoError(t, err)
	for _, f := range findings {
		t.Error(f)
	}
}

func TestReplacedPhrasesAreFound(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"sensors", "playbooks", "activities", "workflows", "worker", "cmd", "scripts", "docs"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o700))
	}
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
	}
	write("README.md", "A lease that took hold.\n```\ntook hold\n```\n")
	write("SECURITY.md", "")
	write("cmd/main.go", "package main\n\n// took hold\nvar text = `one\ntwo is not known`\n\nvar word = \"mended\"\n")
	write("cmd/main_test.go", "package main\n\nvar text = \"it took hold\"\n")
	findings, err := words.Check(root)
	require.NoError(t, err)
	require.Equal(t, []words.Finding{
		{File: "README.md", Line: 1, Phrase: "took hold", Use: `"applied and verified"`},
		{File: "cmd/main.go", Line: 5, Phrase: "is not known", Use: `"is unknown" or "is missing"`},
	}, findings)
}
