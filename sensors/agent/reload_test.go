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

func packYAML(rule, exe string) string {
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

// logBuffer collects an agent's log. It is safe for concurrent use.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b) //nolint:wrapcheck // a buffer
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newRulesAgent returns an agent without a kernel probe that loads packs from dirs, and its log.
func newRulesAgent(t *testing.T, dirs ...string) (*Agent, *logBuffer) {
	t.Helper()
	logs := &logBuffer{}
	log := slog.New(slog.NewTextHandler(logs, nil))
	files, set, err := OpenRules(dirs, log)
	require.NoError(t, err)
	a, err := New(Options{Node: "n", RuleFiles: files, Log: log}, set)
	require.NoError(t, err)
	return a, logs
}

// firedRules returns the rules that match the execution of a program with this name.
func firedRules(a *Agent, exe string) string {
	var names []string
	a.ProcessEvent(sensors.Event{ID: "1", Kind: sensors.KindExec, Process: sensors.Process{Exe: "/bin/" + exe}}, nil,
		func(d sensors.Detection) { names = append(names, d.Rule) })
	return strings.Join(names, " ")
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestChangedPackIsReloadedWithoutRestart(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "one"))
	a, _ := newRulesAgent(t, dir)
	require.Equal(t, "mine", firedRules(a, "one"))
	done := make(chan error, 1)
	go func() { done <- a.Watch(t.Context(), nil, nil) }()
	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "two"))
	writeFile(t, filepath.Join(dir, "b.yaml"), packYAML("new", "three"))
	require.Eventually(t, func() bool { return firedRules(a, "two") == "mine" && firedRules(a, "three") == "new" },
		20*time.Second, 20*time.Millisecond)
	require.Empty(t, firedRules(a, "one"))
}

func TestInvalidPackKeepsItsLastValidVersion(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "one"))
	writeFile(t, filepath.Join(dir, "b.yaml"), packYAML("other", "b"))
	a, logs := newRulesAgent(t, dir)
	before := a.Health().Rules
	require.Empty(t, before.Problems)
	require.False(t, a.ReloadRules(), "nothing changed")

	writeFile(t, filepath.Join(dir, "a.yaml"), strings.Replace(packYAML("mine", "two"), "exe ==", "exxe ==", 1))
	writeFile(t, filepath.Join(dir, "b.yaml"), packYAML("other", "c"))
	writeFile(t, filepath.Join(dir, "c.yaml"), packYAML("third", "third")+strings.Replace(packYAML("fourth", "x"),
		"rules:\n", "", 1)+"    oops: 1\n")
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", firedRules(a, "one"), "as before the error")
	require.Equal(t, "other", firedRules(a, "c"), "a valid pack is loaded")
	require.Equal(t, "third", firedRules(a, "third"), "valid rules of a new pack")
	health := a.Health().Rules
	require.Equal(t, before.RuleCount+1, health.RuleCount)
	require.Contains(t, strings.Join(health.Problems, "\n"),
		filepath.Join(dir, "a.yaml")+":5:16: error: the condition of `mine`: unknown field, list, macro or function `exxe`")
	require.Contains(t, logs.String(), "the last valid version stays in use")
	require.Contains(t, logs.String(), "did you mean `exe`?")

	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "two"))
	require.NoError(t, os.Remove(filepath.Join(dir, "c.yaml")))
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", firedRules(a, "two"))
	require.Empty(t, firedRules(a, "third"))
	require.Empty(t, a.Health().Rules.Problems)
	require.True(t, a.Health().Rules.LoadedAt.After(before.LoadedAt))
}

func TestMissingDirectoryKeepsItsRules(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "packs")
	require.NoError(t, os.Mkdir(dir, 0o700))
	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "one"))
	a, _ := newRulesAgent(t, dir)
	require.NoError(t, os.RemoveAll(dir))
	a.ReloadRules()
	require.Equal(t, "mine", firedRules(a, "one"))
	require.Len(t, a.Health().Rules.Problems, 1)
}

func TestRemovedListThatARuleUsesIsKept(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), "lists: { mine: [one] }\n")
	writeFile(t, filepath.Join(dir, "b.yaml"), strings.Replace(packYAML("mine", "one"), `exe == "one"`, `exe in mine`, 1))
	a, _ := newRulesAgent(t, dir)
	require.NoError(t, os.Remove(filepath.Join(dir, "a.yaml")))
	require.False(t, a.ReloadRules())
	require.Equal(t, "mine", firedRules(a, "one"))
	require.NotEmpty(t, a.Health().Rules.Problems)
}

func TestConfigMapReplacesAllFilesAtOnce(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		writeFile(t, filepath.Join(dir, name, "a.yaml"), text)
		require.NoError(t, os.Symlink(name, filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", packYAML("mine", "one"))
	require.NoError(t, os.Symlink(filepath.Join("..data", "a.yaml"), filepath.Join(dir, "a.yaml")))
	a, _ := newRulesAgent(t, dir)
	require.Equal(t, "mine", firedRules(a, "one"))
	version("..2", packYAML("mine", "two"))
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", firedRules(a, "two"))
}

func TestInitiallyInvalidPackDoesNotBlockReloads(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "one"))
	writeFile(t, filepath.Join(dir, "b.yaml"), "rulez: []\n")
	a, _ := newRulesAgent(t, dir)
	require.Len(t, a.Health().Rules.Problems, 1)
	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "two"))
	require.True(t, a.ReloadRules())
	require.Equal(t, "mine", firedRules(a, "two"))
	require.Len(t, a.Health().Rules.Problems, 1)
}

func TestReloadWaitsUntilFilesAreWritten(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), packYAML("mine", "one"))
	a, _ := newRulesAgent(t, dir)
	writeFile(t, filepath.Join(dir, "a.yaml"), "")
	require.False(t, a.reloadRulesIfChanged(func() {
		writeFile(t, filepath.Join(dir, "a.yaml"),
			packYAML("mine", "two"))
	}))
	require.Equal(t, "mine", firedRules(a, "one"))
	require.True(t, a.reloadRulesIfChanged(func() {}))
	require.Equal(t, "mine", firedRules(a, "two"))
}

func TestHangupSignalReloadsRules(t *testing.T) {
	// So that the signal does not end the test process. It stays until the process ends: the last signal may arrive after
	// the test.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err == nil {
		t.Skip("on a terminal a hangup signal ends the program")
	}
	a, logs := newRulesAgent(t, t.TempDir())
	go func() { _ = a.Watch(t.Context(), nil, nil) }()
	require.Eventually(t, func() bool {
		_ = syscall.Kill(os.Getpid(), syscall.SIGHUP)
		return strings.Contains(logs.String(), "nothing changed")
	}, 10*time.Second, 20*time.Millisecond)
}
