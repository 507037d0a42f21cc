// Package powerloss checks that what production code acknowledged survives a power loss. It runs the code in another
// process under strace, replays the recorded system calls on a model of a disk, and reads the files as they could be
// after a crash at every moment.
//
// The model loses everything that was not synced, in any combination: content that was written and not synced, and
// names whose directory was not synced. It refuses system calls that it does not know. It models neither a disk that
// lies about its cache nor a file system that reorders what was synced.
package powerloss

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/testenv/prereq"
)

// Operation is something that production code does with files, and whose completion it acknowledges.
type Operation struct {
	// Prepare fills the directory before the operation. What it writes counts as durable. Nil leaves it empty.
	Prepare func(t *testing.T, dir string)
	// Run calls the production code, in another process. Its return is the acknowledgment.
	Run func(t *testing.T, dir string)
	// Read returns what a process that starts after the power loss reads. It may change the directory.
	Read func(t *testing.T, dir string) (string, error)
	// IsIntermediate reports whether a state is valid before the acknowledgment, besides the states before and after
	// the operation. Nil means that no other state is valid.
	IsIntermediate func(state string) bool
	// MappedFiles are the names of files that the program writes through its memory, which no system call shows. Their
	// content after a crash is what was written with system calls: a reader must not need it.
	MappedFiles []string
}

// dirEnv names the directory in the process that runs the operation.
const dirEnv = "STANCH_POWERLOSS_DIR"

// acknowledgment is what that process prints when Run has returned.
const acknowledgment = "acknowledged\n"

// Check fails the test unless every crash before the acknowledgment leaves the state from before or after the
// operation, and every crash after it leaves the latter. The test must call Check once, with the same operation in
// each process: Check starts the test again in another process.
func Check(t *testing.T, op Operation) {
	t.Helper()
	if dir := os.Getenv(dirEnv); dir != "" {
		op.Run(t, dir)
		if t.Failed() {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString(acknowledgment)
		os.Exit(0)
	}
	const most = 3 // the others usually have the same cause
	problems := findProblems(t, op)
	for _, problem := range problems[:min(most, len(problems))] {
		t.Error(problem)
	}
	if len(problems) > most {
		t.Errorf("%d more moments have problems", len(problems)-most)
	}
}

// findProblems runs the operation and returns the invalid states that a power loss can leave.
func findProblems(t *testing.T, op Operation) []string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	if op.Prepare != nil {
		op.Prepare(t, dir)
	}
	d, err := readDisk(dir)
	require.NoError(t, err)
	before, err := op.Read(t, d.live().write(t))
	require.NoError(t, err, "read the files before the operation")
	calls := record(t, dir)

	var states []crashState
	for _, c := range calls {
		if c.isAcknowledgment() {
			d.acknowledged = true
		} else if err := d.apply(c); err != nil {
			t.Fatalf("replay %s: %v", c, err)
		}
		found, err := d.crashStates(c.String())
		require.NoError(t, err)
		states = append(states, found...)
	}
	require.True(t, d.acknowledged, "the operation did not return")
	real, err := readDisk(dir)
	require.NoError(t, err)
	want, got := real.live().files(), d.live().files()
	for _, name := range op.MappedFiles {
		delete(want, name)
		delete(got, name)
	}
	require.Equal(t, want, got, "the replay differs from what is in the directory")
	after, err := op.Read(t, d.live().write(t))
	require.NoError(t, err, "read the files after the operation")
	require.NotEqual(t, before, after, "the operation must change what is read")
	return judge(t, op, states, before, after)
}

// judge reads each distinct state once, and returns the problems, one per system call.
func judge(t *testing.T, op Operation, states []crashState, before, after string) []string {
	t.Helper()
	var problems []string
	read := map[string]func() (string, error){}
	reported := map[string]bool{}
	for _, s := range states {
		key := s.tree.key()
		if read[key] == nil {
			got, err := op.Read(t, s.tree.write(t))
			read[key] = func() (string, error) { return got, err }
		}
		got, err := read[key]()
		problem := ""
		switch {
		case err != nil:
			problem = fmt.Sprintf("the files are invalid: %v", err)
		case got == after:
		case s.acknowledged:
			problem = fmt.Sprintf("the operation was acknowledged and is lost: read %q instead of %q", got, after)
		case got != before && (op.IsIntermediate == nil || !op.IsIntermediate(got)):
			problem = fmt.Sprintf("read %q, which is neither the state before, %q, nor after, %q", got, before, after)
		}
		where := fmt.Sprintf("power loss after %s (acknowledged: %t)", s.after, s.acknowledged)
		if problem != "" && !reported[where] {
			reported[where] = true
			problems = append(problems, fmt.Sprintf("%s: %s\nthe disk has:\n%s", where, problem, s.tree))
		}
	}
	return problems
}

// record runs this test again in another process under strace and returns its system calls.
func record(t *testing.T, dir string) []call {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		prereq.SkipOrFail(t, "strace (apt-get install strace)")
	}
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	log := filepath.Join(t.TempDir(), "strace")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-qq", "-xx", "-s", "67108864", "-e", "signal=none",
		"-e", "trace="+strings.Join(traced(), ","), "-o", log,
		os.Args[0], "-test.run="+strings.Join(pattern, "/"), "-test.count=1", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), dirEnv+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil && bytes.Contains(out, []byte("Operation not permitted")) {
		prereq.SkipOrFail(t, "permission to trace a process: %s", out)
	}
	require.NoError(t, err, "%s", out)
	raw, err := os.ReadFile(log)
	require.NoError(t, err)
	calls, err := parseTrace(string(raw))
	require.NoError(t, err)
	return calls
}

// ReadFile is a Read for one file: its content, or "missing".
func ReadFile(name string) func(*testing.T, string) (string, error) {
	return func(_ *testing.T, dir string) (string, error) {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			return "missing", nil
		}
		if err != nil {
			return "", fmt.Errorf("read the file: %w", err)
		}
		return fmt.Sprintf("%q", raw), nil
	}
}

// tree is the content of a directory: paths relative to it, with the content of files. Directories end with a slash.
type tree map[string][]byte

// files returns the content as text, for comparison.
func (tr tree) files() map[string]string {
	out := map[string]string{}
	for path, data := range tr {
		out[path] = string(data)
	}
	return out
}

// write creates the files in a new directory and returns it.
func (tr tree) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for path, data := range tr {
		at := filepath.Join(dir, path)
		if strings.HasSuffix(path, "/") {
			require.NoError(t, os.MkdirAll(at, 0o700))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o700))
		require.NoError(t, os.WriteFile(at, data, 0o600))
	}
	return dir
}

// readDisk reads a directory into a disk on which everything is durable.
func readDisk(root string) (*disk, error) {
	d := newDisk(root)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		parent, name, err := d.lookupParent(path)
		if err != nil {
			return err
		}
		n := &inode{}
		switch {
		case e.IsDir():
			n = newDirectory()
		case !e.Type().IsRegular():
			return fmt.Errorf("%s is neither a file nor a directory", path)
		default:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			n.versions = [][]byte{data}
		}
		parent.entries[name], parent.durable[name] = n, n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", root, err)
	}
	return d, nil
}
