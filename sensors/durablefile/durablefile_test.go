package durablefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The order of writes and syncs is tested in testenv/powerloss.

func TestWriteSetsExactPermissionsAndReplacesLink(t *testing.T) {
	dir := t.TempDir()
	path, target := filepath.Join(dir, "file"), filepath.Join(dir, "target")
	for name, write := range map[string]func(string, []byte, fs.FileMode) error{
		"Write": Write, "WriteRecomputable": WriteRecomputable,
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(target, []byte("target"), 0o644))
			_ = os.Remove(path)
			require.NoError(t, os.Symlink(target, path))
			require.NoError(t, write(path, []byte("new"), 0o440))

			info, err := os.Lstat(path)
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o440), info.Mode(), "a regular file, without the permissions of the old one")
			raw, err := os.ReadFile(target)
			require.NoError(t, err)
			require.Equal(t, "target", string(raw))
			requireNames(t, dir, "file", "target")
		})
	}
}

func TestFailedWriteChangesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	require.NoError(t, Write(path, []byte("old"), 0o600))
	failure := errors.New("failure")
	err := WriteFrom(path, 0o600, func(w io.Writer) error {
		_, _ = io.WriteString(w, "a part")
		return failure
	})
	require.ErrorIs(t, err, failure)
	require.ErrorIs(t, Write(filepath.Join(dir, "missing", "file"), nil, 0o600), fs.ErrNotExist)

	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "old", string(raw))
	requireNames(t, dir, "file")
}

func TestCreateNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	var created atomic.Int64
	var winner atomic.Value
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			err := Create(path, []byte(strconv.Itoa(i)), 0o600)
			if err == nil {
				created.Add(1)
				winner.Store(strconv.Itoa(i))
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, created.Load())
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, winner.Load(), string(raw))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())
	requireNames(t, dir, "key")

	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(filepath.Join(dir, "nowhere"), link))
	require.ErrorIs(t, Create(link, []byte("new"), 0o600), fs.ErrExist, "a dangling link counts as a file")
}

func TestLeftoversOfCrashesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for name, age := range map[string]time.Duration{
		".file8430217349813": 2 * leftoverAge, // left by a crash
		".file21":            0,               // of a write in another process
		".file.8430217":      2 * leftoverAge, // of someone else
		".files8430217":      2 * leftoverAge, // of another file
		"file8430217":        2 * leftoverAge,
	} {
		at := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(at, nil, 0o600))
		require.NoError(t, os.Chtimes(at, time.Time{}, time.Now().Add(-age)))
	}
	require.NoError(t, Write(path, []byte("new"), 0o600))
	requireNames(t, dir, ".file.8430217", ".file21", ".files8430217", "file", "file8430217")
}

func TestRemoveAcceptsMissingFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, Remove(filepath.Join(dir, "missing")))
	require.NoError(t, Remove(filepath.Join(dir, "missing", "file")))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "full", "sub"), 0o700))
	require.Error(t, Remove(filepath.Join(dir, "full")))
}

func TestMakeDirectoryAcceptsExistingDirectoryOnly(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "a", "b") + "/"
	require.NoError(t, MakeDirectory(at, 0o700))
	require.NoError(t, MakeDirectory(at, 0o700))
	info, err := os.Stat(filepath.Join(dir, "a"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	require.Error(t, MakeDirectory(filepath.Join(dir, "file"), 0o700))
	require.Error(t, MakeDirectory(filepath.Join(dir, "file", "sub"), 0o700))
}

func requireNames(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	require.Equal(t, names, got)
}
