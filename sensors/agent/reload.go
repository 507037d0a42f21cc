package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors/diagnostic"
	"stanch/sensors/rules"
)

// How often changed packs are searched, and how long they must stay unchanged before they are loaded: an editor may
// write a file in several steps.
const (
	rulePollInterval = 2 * time.Second
	ruleSettleDelay  = 200 * time.Millisecond
)

// Limits of what is read. Authors of packs are trusted, but may configure the wrong directory by mistake.
const (
	maxPackBytes = 1 << 20
	maxPacks     = 1000
)

// RuleFiles are the directories of rule packs, in addition to the shipped packs. They are read again when they change.
// An invalid pack does not replace its last valid version. It is safe for concurrent use.
type RuleFiles struct {
	dirs []string
	log  *slog.Logger

	mu        sync.Mutex
	lastValid packFiles // the files of the rules in force
	lastHash  [sha256.Size]byte
	health    RulesHealth
}

// RulesHealth describes the rules in force.
type RulesHealth struct {
	RuleCount int       `json:"rule_count"`
	Problems  []string  `json:"problems,omitempty"`
	LoadedAt  time.Time `json:"loaded_at"` // when the rules in force were loaded
}

// packFiles maps each directory to the names and contents of its files.
type packFiles map[string]map[string][]byte

// OpenRules reads the shipped packs and the packs in dirs. Invalid packs are logged and skipped. It returns an error
// if no rule can be loaded.
func OpenRules(dirs []string, log *slog.Logger) (*RuleFiles, *rules.Set, error) {
	f := &RuleFiles{log: log, lastValid: packFiles{}}
	for _, dir := range dirs {
		f.dirs = append(f.dirs, filepath.Clean(dir))
	}
	now, unread := f.readPacks()
	set, problems := now.load(f.dirs)
	f.recordLoaded(set, now, problems)
	f.logProblems(append(unread, problems...))
	f.lastHash = now.hash(unread)
	for _, p := range append(unread, problems...) {
		log.Error("a rule was skipped", "problem", p.String(), "hint", p.Hint)
	}
	if len(set.Rules()) == 0 {
		return nil, nil, errors.New("no rule could be loaded")
	}
	return f, set, nil
}

// Health returns the state of the rules in force and the problems of the packs, at most 20 and a summary.
func (f *RuleFiles) Health() RulesHealth {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.health
}

// recordLoaded records the rules in force and the files that they were loaded from, without the files that have
// problems.
func (f *RuleFiles) recordLoaded(set *rules.Set, from packFiles, problems diagnostic.Diagnostics) {
	f.lastValid = packFiles{}
	for dir, files := range from {
		f.lastValid[dir] = maps.Clone(files)
		maps.DeleteFunc(f.lastValid[dir], func(name string, _ []byte) bool {
			return slices.ContainsFunc(problems, func(p diagnostic.Diagnostic) bool {
				return p.File == filepath.Join(dir,
					name)
			})
		})
	}
	f.health = RulesHealth{LoadedAt: time.Now().UTC()}
	for _, r := range set.Rules() {
		if !r.Disabled {
			f.health.RuleCount++
		}
	}
}

// logProblems records the current problems of the packs for Health.

func (f *RuleFiles) logProblems(problems diagnostic.Diagnostics) {
	f.health.Problems = nil
	for i, p := range problems {
		if i == 20 {
			f.health.Problems = append(f.health.Problems, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		f.health.Problems = append(f.health.Problems, p.String())
	}
}

// readPacks reads every pack, and returns a problem for each file or directory that cannot be read or does not exist.
func (f *RuleFiles) readPacks() (packFiles, diagnostic.Diagnostics) {
	out := packFiles{}
	var problems diagnostic.Diagnostics
	fail := func(name string, err error) {
		problems = append(problems, diagnostic.Diagnostic{
			File: name, Line: 1, Column: 1, Severity: "error", Code: "read",
			Message: fmt.Sprintf("cannot be read: %v", err),
		})
	}
	for _, dir := range f.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			fail(dir, err)
			continue
		}
		out[dir] = map[string][]byte{}
		for _, e := range entries {
			name := e.Name()
			if ext := filepath.Ext(name); e.IsDir() || ext != ".yaml" && ext != ".yml" || strings.HasPrefix(name, ".") ||
				len(out[dir]) >= maxPacks {
				continue
			}
			raw, err := readPack(filepath.Join(dir, name))
			if err != nil {
				fail(filepath.Join(dir, name), err)
				continue
			}
			out[dir][name] = raw
		}
	}
	return out, problems
}

func readPack(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(file, maxPackBytes+1)) // one more byte, to detect a file that is too large
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return raw, nil
}

// hash identifies the content of the packs, and the files that cannot be read.
func (s packFiles) hash(unread diagnostic.Diagnostics) [sha256.Size]byte {
	h := sha256.New()
	for _, dir := range slices.Sorted(maps.Keys(s)) {
		for _, name := range slices.Sorted(maps.Keys(s[dir])) {
			fmt.Fprintf(h, "%q %q %d\n", dir, name, len(s[dir][name]))
			h.Write(s[dir][name])
		}
	}
	for _, p := range unread {
		fmt.Fprintf(h, "unread %q\n", p.File)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (s packFiles) load(dirs []string) (*rules.Set, diagnostic.Diagnostics) {
	sources := []rules.PackSource{rules.ShippedSource()}
	for _, dir := range dirs {
		if files := s[dir]; files != nil {
			sources = append(sources, rules.PackSource{
				FS: memFS(files), Name: dir,
				Files: append([]string{}, slices.Sorted(maps.Keys(files))...),
			})
		}
	}
	return rules.LoadSources(sources...)
}

// reloadIfChanged reads the packs again. It returns a new set, or nil if nothing changed or no better set is
// available. A pack that has problems or cannot be read is replaced by its last valid version. If that combination has
// problems too, the set in force stays. If settle is not nil, the files must be the same before and after it.
func (f *RuleFiles) reloadIfChanged(settle func()) *rules.Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, unread := f.readPacks()
	sum := now.hash(unread)
	if sum == f.lastHash {
		return nil
	}
	if settle != nil {
		settle()
		if again, gone := f.readPacks(); again.hash(gone) != sum {
			return nil // a file is being written: the next poll reads it completely
		}
	}
	f.lastHash = sum
	set, left := now.load(f.dirs)
	problems := append(unread, left...)
	if problems.HasErrors() {
		for _, p := range problems {
			f.log.Error("a changed rule pack has an error: the last valid version stays in use", "problem", p.String(), "hint",
				p.Hint)
		}
		mended := now.withLastValid(f.lastValid, f.dirs, problems)
		if set, left = mended.load(f.dirs); !f.affectsOnlyNewFiles(left) || len(set.Rules()) == 0 {
			f.logProblems(problems)
			return nil
		}
		now = mended
	}
	f.recordLoaded(set, now, left)
	f.logProblems(problems)
	f.log.Info("rules reloaded", "rules", f.health.RuleCount, "problems", len(problems))
	return set
}

// ReloadIfChanged reads the packs again. It returns a new set, or nil if nothing changed or a file is being written.
// It takes at least 200 ms if something changed. It is for callers without an agent.
func (f *RuleFiles) ReloadIfChanged() *rules.Set {
	return f.reloadIfChanged(func() { time.Sleep(ruleSettleDelay) })
}

// withLastValid returns a copy of s in which files with problems are replaced by their last valid version.
func (s packFiles) withLastValid(good packFiles, dirs []string, problems diagnostic.Diagnostics) packFiles {
	wrong := map[string]bool{}
	for _, p := range problems {
		wrong[p.File] = true
	}
	out := packFiles{}
	for _, dir := range dirs {
		if s[dir] == nil { // the directory cannot be read
			if good[dir] != nil {
				out[dir] = good[dir]
			}
			continue
		}
		out[dir] = maps.Clone(s[dir])
		for name, before := range good[dir] {
			if wrong[filepath.Join(dir, name)] {
				out[dir][name] = before
			}
		}
	}
	return out
}

// affectsOnlyNewFiles reports whether all problems are in files that never had a valid version.
func (f *RuleFiles) affectsOnlyNewFiles(problems diagnostic.Diagnostics) bool {
	return !slices.ContainsFunc(problems, func(p diagnostic.Diagnostic) bool {
		dir, name := filepath.Split(p.File)
		_, was := f.lastValid[filepath.Clean(dir)][name]
		return was
	})
}

// Rules returns the set of rules in force.
func (a *Agent) Rules() *rules.Set { return a.rules.Load() }

// ReloadRules reads the rule packs again at once, and reports whether the rules in force changed.
func (a *Agent) ReloadRules() bool { return a.reloadRulesIfChanged(nil) }

func (a *Agent) reloadRulesIfChanged(settle func()) bool {
	if a.RuleFiles == nil {
		return false
	}
	set := a.RuleFiles.reloadIfChanged(settle)
	if set != nil {
		a.rules.Store(set)
	}
	return set != nil
}

// watchRules loads changed packs until ctx ends.
func (a *Agent) watchRules(ctx context.Context) {
	if a.RuleFiles == nil || len(a.RuleFiles.dirs) == 0 {
		return
	}
	tick := time.NewTicker(rulePollInterval)
	defer tick.Stop()
	hangup := make(chan os.Signal, 1)
	// On a terminal, SIGHUP means that the terminal was closed, and must end the program.
	if _, err := unix.IoctlGetTermios(
		int(os.Stdin.Fd()),
		unix.TCGETS,
	); err != nil {
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.reloadRulesIfChanged(func() { time.Sleep(ruleSettleDelay) })
		case <-hangup:
			if !a.ReloadRules() {
				a.Log.Info("the rules were not reloaded: nothing changed")
			}
		}
	}
}

// memFS is an in-memory file system.
type memFS map[string][]byte

// Open returns the file with this name. The error wraps fs.ErrNotExist if it does not exist.
func (h memFS) Open(name string) (fs.File, error) {
	raw, ok := h[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memFile{Reader: bytes.NewReader(raw)}, nil
}

type memFile struct{ *bytes.Reader }

// Stat always fails: the rule loader does not need it.
func (*memFile) Stat() (fs.FileInfo, error) { return nil, fs.ErrInvalid }

// Close does nothing.
func (*memFile) Close() error { return nil }
