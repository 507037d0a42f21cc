package powerloss

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/durablefile"
)

func put(t *testing.T, path, text string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	return f
}

func syncDirectory(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}

func replace(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "file")))
}

// TestMissingSyncIsFound shows that the check has teeth: each operation lacks one sync, or replaces nothing atomically.
func TestMissingSyncIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		run     func(t *testing.T, dir string)
		problem string // "" means that the operation is correct
	}{
		"correct": {func(t *testing.T, dir string) {
			f := put(t, filepath.Join(dir, "next"), "new")
			require.NoError(t, f.Sync())
			replace(t, dir)
			syncDirectory(t, dir)
		}, ""},
		"content not synced": {func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "next"), "new")
			replace(t, dir)
			syncDirectory(t, dir)
		}, "neither the state before"},
		"content synced after the rename": {func(t *testing.T, dir string) {
			f := put(t, filepath.Join(dir, "next"), "new")
			replace(t, dir)
			require.NoError(t, f.Sync())
			syncDirectory(t, dir)
		}, "neither the state before"},
		"directory not synced": {func(t *testing.T, dir string) {
			f := put(t, filepath.Join(dir, "next"), "new")
			require.NoError(t, f.Sync())
			replace(t, dir)
		}, "acknowledged and is lost"},
		"written in place": {func(t *testing.T, dir string) {
			f := put(t, filepath.Join(dir, "file"), "new")
			require.NoError(t, f.Sync())
			syncDirectory(t, dir)
		}, "neither the state before"},
		"removed before the rename": {func(t *testing.T, dir string) {
			f := put(t, filepath.Join(dir, "next"), "new")
			require.NoError(t, f.Sync())
			require.NoError(t, os.Remove(filepath.Join(dir, "file")))
			replace(t, dir)
			syncDirectory(t, dir)
		}, "neither the state before"},
	} {
		t.Run(name, func(t *testing.T) {
			op := Operation{
				Prepare: func(t *testing.T, dir string) { put(t, filepath.Join(dir, "file"), "old") },
				Run:     c.run, Read: ReadFile("file"),
			}
			requireProblem(t, op, c.problem)
		})
	}
}

func TestUnsyncedParentDirectoryIsFound(t *testing.T) {
	requireProblem(t, Operation{Run: func(t *testing.T, dir string) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
		f := put(t, filepath.Join(dir, "sub", "file"), "new")
		require.NoError(t, f.Sync())
		syncDirectory(t, filepath.Join(dir, "sub"))
	}, Read: func(_ *testing.T, dir string) (string, error) {
		raw, err := os.ReadFile(filepath.Join(dir, "sub", "file"))
		if os.IsNotExist(err) || len(raw) < len("new") {
			return "missing", nil
		}
		return string(raw), err
	}}, "acknowledged and is lost")
}

// requireProblem requires that the check finds a problem, or none if text is "".
func requireProblem(t *testing.T, op Operation, text string) {
	t.Helper()
	if os.Getenv(dirEnv) != "" {
		Check(t, op)
	}
	problems := findProblems(t, op)
	if text == "" {
		require.Empty(t, problems)
		return
	}
	require.NotEmpty(t, problems)
	require.Contains(t, problems[0], text)
}

func TestDurableFileFunctionsSurvivePowerLoss(t *testing.T) {
	old := func(t *testing.T, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("old content"), 0o600))
	}
	for name, op := range map[string]Operation{
		"write": {Prepare: old, Run: func(t *testing.T, dir string) {
			require.NoError(t, durablefile.Write(filepath.Join(dir, "file"), []byte("new"), 0o600))
		}, Read: ReadFile("file")},
		"write of the first file": {Run: func(t *testing.T, dir string) {
			require.NoError(t, durablefile.Write(filepath.Join(dir, "file"), []byte("new"), 0o600))
		}, Read: ReadFile("file")},
		"write in pieces": {Prepare: old, Run: func(t *testing.T, dir string) {
			require.NoError(t, durablefile.WriteFrom(filepath.Join(dir, "file"), 0o600, func(w io.Writer) error {
				for range 3 {
					if _, err := io.WriteString(w, "piece"); err != nil {
						return err
					}
				}
				return nil
			}))
		}, Read: ReadFile("file")},
		"create": {Run: func(t *testing.T, dir string) {
			require.NoError(t, durablefile.Create(filepath.Join(dir, "file"), []byte("new"), 0o600))
		}, Read: ReadFile("file")},
		"create in new directories": {Run: func(t *testing.T, dir string) {
			require.NoError(t, durablefile.MakeDirectory(filepath.Join(dir, "a", "b"), 0o700))
			require.NoError(t, durablefile.Create(filepath.Join(dir, "a", "b", "file"), []byte("new"), 0o600))
		}, Read: ReadFile("a/b/file")},
		"open": {Run: func(t *testing.T, dir string) {
			f, err := durablefile.Open(filepath.Join(dir, "file"), 0o600)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, Read: ReadFile("file")},
		"rename": {Prepare: old, Run: func(t *testing.T, dir string) {
			require.NoError(t, durablefile.Rename(filepath.Join(dir, "file"), filepath.Join(dir, "other")))
		}, Read: ReadFile("other")},
		"remove": {Prepare: old, Run: func(t *testing.T, dir string) {
			require.NoError(t, durablefile.Remove(filepath.Join(dir, "file")))
		}, Read: ReadFile("file")},
		"sync of a file that a killed process wrote": {Run: func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "file"), "new")
			require.NoError(t, durablefile.Sync(filepath.Join(dir, "file")))
		}, Read: ReadFile("file"), IsIntermediate: func(string) bool { return true }},
	} {
		t.Run(name, func(t *testing.T) { Check(t, op) })
	}
}
