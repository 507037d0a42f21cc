package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/sensors"
)

func pack(rule, exe string) string {
	return fmt.Sprintf(`rules:
  - rule: %s
    title: t
    on: exec
    condition: exe == "%s"
    severity: low
    confidence: 0.5
    objective: execution
    technique: T1059
    reason: r
    tests: { fires: { process: { exe: /bin/%[2]s } }, silent: {} }
`, rule, exe)
}

// log is what an agent said, for many goroutines.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b) //nolint:wrapcheck // a buffer
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// following is an agent without a kernel, on folders of packs, and what it said.
func following(t *testing.T, dirs ...string) (*Agent, *logged) {
	t.Helper()
	said := &logged{}
	log := slog.New(slog.NewTextHandler(said, nil))
	files, set, err := OpenRules(dirs, log)
	require.NoError(t, err)
	a, err := New(Options{Node: "n", RuleFiles: files, Log: log}, set)
	require.NoError(t, err)
	return a, said
}

// fired are the rules that fire on the execution of a program of that name.
func fired(a *Agent, exe string) string {
	var names []string
	a.Observe(sensors.Event{ID: "1", Kind: sensors.KindExec, Process: sensors.Process{Exe: "/bin/" + exe}}, nil, func(d sensors.Detection) { names = append(names, d.Rule) })
	return strings.Join(names, " ")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestAChangedPackIsTakenUpWithoutARestart(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "one"))
	a, _ := following(t, dir)
	require.Equal(t, "mine", fired(a, "one"))
	done := make(chan error, 1)
	go func() { done <- a.Watch(t.Context(), nil, nil) }()
	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "two"))
	write(t, filepath.Join(dir, "b.yaml"), pack("new", "three"))
	require.Eventually(t, func() bool { return fired(a, "two") == "mine" && fired(a, "three") == "new" }, 20*time.Second, 20*time.Millisecond)
	require.Empty(t, fired(a, "one"))
}

func TestAMistakeKeepsWhatWasRightBefore(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "one"))
	write(t, filepath.Join(dir, "b.yaml"), pack("other", "b"))
	a, said := following(t, dir)
	before := a.Health().Rules
	require.Empty(t, before.Problems)
	require.False(t, a.ReloadRules(), "nothing changed")

	write(t, filepath.Join(dir, "a.yaml"), strings.Replace(pack("mine", "two"), "exe ==", "exxe ==", 1))
	write(t, filepath.Join(dir, "b.yaml"), pack("other", "c"))
	write(t, filepath.Join(dir, "c.yaml"), pack("third", "third")+strings.Replace(pack("fourth", "x"), "rules:\n", "", 1)+"    oops: 1\n")
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", fired(a, "one"), "as it was before the mistake")
	require.Equal(t, "other", fired(a, "c"), "what has none is taken up")
	require.Equal(t, "third", fired(a, "third"), "of a new pack, what is right")
	health := a.Health().Rules
	require.Equal(t, before.Loaded+1, health.Loaded)
	require.Contains(t, strings.Join(health.Problems, "\n"), filepath.Join(dir, "a.yaml")+":5:16: error: the condition of `mine`: there is no field, list, macro or function `exxe`")
	require.Contains(t, said.String(), "what was right before stays in force")
	require.Contains(t, said.String(), "did you mean `exe`?")

	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "two"))
	require.NoError(t, os.Remove(filepath.Join(dir, "c.yaml")))
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", fired(a, "two"))
	require.Empty(t, fired(a, "third"))
	require.Empty(t, a.Health().Rules.Problems)
	require.True(t, a.Health().Rules.Since.After(before.Since))
}

func TestAFolderThatIsGoneKeepsItsRules(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "packs")
	require.NoError(t, os.Mkdir(dir, 0o700))
	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "one"))
	a, _ := following(t, dir)
	require.NoError(t, os.RemoveAll(dir))
	a.ReloadRules()
	require.Equal(t, "mine", fired(a, "one"))
	require.Len(t, a.Health().Rules.Problems, 1)
}

func TestWhatOthersNeedIsNotTakenAway(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), "lists: { mine: [one] }\n")
	write(t, filepath.Join(dir, "b.yaml"), strings.Replace(pack("mine", "one"), `exe == "one"`, `exe in mine`, 1))
	a, _ := following(t, dir)
	require.NoError(t, os.Remove(filepath.Join(dir, "a.yaml")))
	require.False(t, a.ReloadRules())
	require.Equal(t, "mine", fired(a, "one"))
	require.NotEmpty(t, a.Health().Rules.Problems)
}

func TestAConfigMapSwapsAllItsFilesAtOnce(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		write(t, filepath.Join(dir, name, "a.yaml"), text)
		require.NoError(t, os.Symlink(name, filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", pack("mine", "one"))
	require.NoError(t, os.Symlink(filepath.Join("..data", "a.yaml"), filepath.Join(dir, "a.yaml")))
	a, _ := following(t, dir)
	require.Equal(t, "mine", fired(a, "one"))
	version("..2", pack("mine", "two"))
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", fired(a, "two"))
}

func TestAMistakeFromTheBeginningKeepsNothingElseFromChanging(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "one"))
	write(t, filepath.Join(dir, "b.yaml"), "rulez: []\n")
	a, _ := following(t, dir)
	require.Len(t, a.Health().Rules.Problems, 1)
	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "two"))
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", fired(a, "two"))
	require.Len(t, a.Health().Rules.Problems, 1)
}

func TestWhatIsBeingWrittenIsNotReadYet(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), pack("mine", "one"))
	a, _ := following(t, dir)
	write(t, filepath.Join(dir, "a.yaml"), "")
	require.False(t, a.reload(func() { write(t, filepath.Join(dir, "a.yaml"), pack("mine", "two")) }))
	require.Equal(t, "mine", fired(a, "one"))
	require.True(t, a.reload(func() {}))
	require.Equal(t, "mine", fired(a, "two"))
}

func TestAHangupAsksForTheRulesAgain(t *testing.T) {
	ours := make(chan os.Signal, 16) // so that the signal does not end the test
	signal.Notify(ours, syscall.SIGHUP)
	defer signal.Stop(ours)
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err == nil {
		t.Skip("on a terminal a hangup ends the program")
	}
	a, said := following(t, t.TempDir())
	go func() { _ = a.Watch(t.Context(), nil, nil) }()
	require.Eventually(t, func() bool {
		_ = syscall.Kill(os.Getpid(), syscall.SIGHUP)
		return strings.Contains(said.String(), "nothing changed")
	}, 10*time.Second, 20*time.Millisecond)
}
