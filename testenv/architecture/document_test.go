package architecture_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var linkPattern = regexp.MustCompile(`\]\(([^)#]+)`)

// links returns the targets of a document's links to files, relative to the root of the project.
func links(t *testing.T, document string) map[string]bool {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", document))
	require.NoError(t, err)
	out := map[string]bool{}
	for _, m := range linkPattern.FindAllStringSubmatch(string(raw), -1) {
		if !strings.Contains(m[1], "://") {
			out[filepath.Join(filepath.Dir(document), m[1])] = true
		}
	}
	return out
}

func TestArchitectureDocumentNamesEveryPackage(t *testing.T) {
	named := links(t, "docs/architecture.md")
	for _, p := range listProject(t) {
		if dir := strings.TrimPrefix(p.ImportPath, "stanch/"); !isIn(dir, "testenv") {
			require.True(t, named[dir], "docs/architecture.md does not name %s", dir)
		}
	}
}

func TestLinksToFilesExist(t *testing.T) {
	require.NotEmpty(t, links(t, "docs/architecture.md"))
	for _, document := range []string{
		"README.md", "SECURITY.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/concepts.md",
		"docs/operations.md", "docs/permissions.md",
	} {
		for target := range links(t, document) {
			_, err := os.Stat(filepath.Join("..", "..", target))
			require.NoError(t, err, "%s links to %s", document, target)
		}
	}
}
