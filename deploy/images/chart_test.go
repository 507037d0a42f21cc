package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// Helm installs the archive, and the chart installs the images of the same version.
func TestChartArchiveHasVersionOfImages(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeChart(dir, chartImages{version: "1234567"}))
	c, err := loader.LoadFile(filepath.Join(dir, chartArchive))
	require.NoError(t, err)
	require.NoError(t, c.Validate())
	require.Equal(t, "1234567", c.Metadata.AppVersion)
	require.NotEmpty(t, c.Schema)
	require.NotEmpty(t, c.Values["image"])
	names := map[string]bool{}
	for _, f := range append(c.Templates, c.Files...) {
		names[f.Name] = true
	}
	for _, name := range []string{
		"templates/_helpers.tpl", "templates/uninstall.yaml", "templates/NOTES.txt", "files/permissions.yaml",
	} {
		require.True(t, names[name], "the archive lacks %s", name)
	}

	again := t.TempDir()
	require.NoError(t, writeChart(again, chartImages{version: "1234567"}))
	first, err := os.ReadFile(filepath.Join(dir, chartArchive))
	require.NoError(t, err)
	second, err := os.ReadFile(filepath.Join(again, chartArchive))
	require.NoError(t, err)
	require.Equal(t, first, second)
}

func TestChartWithoutVersionIsRefused(t *testing.T) {
	_, err := setChartVersion([]byte("name: stanch\nappVersion: v1\n"), "v2")
	require.EqualError(t, err, `set the version: Chart.yaml has no line "appVersion: dev"`)
}

// The chart of pushed images installs exactly those, whatever their tag names later.
func TestChartOfPushedImagesNamesTheirDigests(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeChart(dir, chartImages{
		version: "v1", registry: "registry.example/security",
		digests: map[string]string{"stanch": "sha256:aa", "stanch-sensor": "sha256:bb"},
	}))
	c, err := loader.LoadFile(filepath.Join(dir, chartArchive))
	require.NoError(t, err)
	image, ok := c.Values["image"].(map[string]any)
	require.True(t, ok)
	require.Equal(t, "registry.example/security", image["registry"])
	require.Equal(t, map[string]any{"repository": "stanch", "tag": "", "digest": "sha256:aa"}, image["worker"])
	require.Equal(t, map[string]any{"repository": "stanch-sensor", "tag": "", "digest": "sha256:bb"}, image["sensor"])
	_, err = chartImages{registry: "r"}.pinIn([]byte("image: {}"))
	require.ErrorContains(t, err, "values.yaml has no line")
}
