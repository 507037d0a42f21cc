package datadir_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/datadir"
)

func TestDataDirectoryOfAnotherFormatIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(dir string) error
		want    string
	}{
		"first format": {
			func(dir string) error { return os.Mkdir(filepath.Join(dir, "temporal"), 0o700) },
			"data format 1 was written by an older version of Stanch, and this version reads format 2; use --data with an empty directory",
		},
		"newer": {
			func(dir string) error { return os.WriteFile(filepath.Join(dir, "format"), []byte("3\n"), 0o600) },
			"data format 3 was written by a newer version of Stanch",
		},
		"damaged": {
			func(dir string) error { return os.WriteFile(filepath.Join(dir, "format"), []byte("x"), 0o600) },
			`invalid data format "x"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, c.prepare(dir))
			before, err := os.ReadDir(dir)
			require.NoError(t, err)
			_, err = datadir.Lock(dir)
			require.ErrorContains(t, err, c.want)
			after, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, after, len(before), "a refused directory is unchanged")
		})
	}
}

func TestDataDirectoryCanBeReopened(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for range 2 {
		unlock, err := datadir.Lock(dir)
		require.NoError(t, err)
		_, err = datadir.Lock(dir)
		require.ErrorContains(t, err, "another Stanch instance is using it")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "temporal"), 0o700))
		unlock()
	}
}
