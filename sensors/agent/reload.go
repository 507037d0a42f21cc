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

// When changed packs are looked for, and how long they have to stay as they are before they are taken up: an editor
// writes in pieces.
const (
	lookEvery = 2 * time.Second
	settled   = 200 * time.Millisecond
)

// Bounds of what is read: who writes packs is trusted, and can be wrong about a folder.
const (
	maxPack  = 1 << 20
	maxPacks = 1000
)

// RuleFiles are the folders of packs beside the shipped ones. They are read again when they change: a pack with mistakes
// does not take away what was right before.
type RuleFiles struct {
	dirs []string
	log  *slog.Logger

	mu     sync.Mutex
	good   packs // what the rules in force were made of
	seen   [sha256.Size]byte
	health RulesHealth
}

// RulesHealth says which rules are in force.
type RulesHealth struct {
	Loaded   int       `json:"loaded"`
	Problems []string  `json:"problems,omitempty"`
	Since    time.Time `json:"since"` // when they were loaded
}

// packs is every file of every folder, by folder and name.
type packs map[string]map[string][]byte

// OpenRules reads the shipped packs and those of the folders.
func OpenRules(dirs []string, log *slog.Logger) (*RuleFiles, *rules.Set, error) {
	f := &RuleFiles{log: log, good: packs{}}
	for _, dir := range dirs {
		f.dirs = append(f.dirs, filepath.Clean(dir))
	}
	now, unread := f.read()
	set, problems := now.load(f.dirs)
	f.take(set, now, problems)
	f.tell(append(unread, problems...))
	f.seen = now.sum(unread)
	for _, p := range append(unread, problems...) {
		log.Error("a rule is left out", "problem", p.String(), "hint", p.Hint)
	}
	if len(set.Rules()) == 0 {
		return nil, nil, errors.New("no rule could be loaded")
	}
	return f, set, nil
}

// Health says which rules are in force, and what is wrong with the packs.
func (f *RuleFiles) Health() RulesHealth {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.health
}

// take notes what is in force: which files it was made of, but those with problems.
func (f *RuleFiles) take(set *rules.Set, from packs, problems diagnostic.Diagnostics) {
	f.good = packs{}
	for dir, files := range from {
		f.good[dir] = maps.Clone(files)
		maps.DeleteFunc(f.good[dir], func(name string, _ []byte) bool {
			return slices.ContainsFunc(problems, func(p diagnostic.Diagnostic) bool { return p.File == filepath.Join(dir, name) })
		})
	}
	f.health = RulesHealth{Since: time.Now().UTC()}
	for _, r := range set.Rules() {
		if !r.Disabled {
			f.health.Loaded++
		}
	}
}

// tell notes what is wrong with the packs as they are now.

func (f *RuleFiles) tell(problems diagnostic.Diagnostics) {
	f.health.Problems = nil
	for i, p := range problems {
		if i == 20 {
			f.health.Problems = append(f.health.Problems, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		f.health.Problems = append(f.health.Problems, p.String())
	}
}

// read reads every pack. What cannot be read is told; a folder that is gone is one that cannot be read.
func (f *RuleFiles) read() (packs, diagnostic.Diagnostics) {
	out := packs{}
	var problems diagnostic.Diagnostics
	fail := func(name string, err error) {
		problems = append(problems, diagnostic.Diagnostic{File: name, Line: 1, Column: 1, Severity: "error", Code: "read", Message: fmt.Sprintf("cannot be read: %v", err)})
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
			if ext := filepath.Ext(name); e.IsDir() || ext != ".yaml" && ext != ".yml" || strings.HasPrefix(name, ".") || len(out[dir]) >= maxPacks {
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
	raw, err := io.ReadAll(io.LimitReader(file, maxPack+1)) // one more, so that it is found too large
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return raw, nil
}

// sum names packs, and what could not be read of it.
func (s packs) sum(unread diagnostic.Diagnostics) [sha256.Size]byte {
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

func (s packs) load(dirs []string) (*rules.Set, diagnostic.Diagnostics) {
	sources := []rules.Source{rules.ShippedSource()}
	for _, dir := range dirs {
		if files := s[dir]; files != nil {
			sources = append(sources, rules.Source{FS: held(files), Name: dir, Files: append([]string{}, slices.Sorted(maps.Keys(files))...)})
		}
	}
	return rules.LoadSources(sources...)
}

// look reads the packs again. It gives a new set, or nil where nothing changed or nothing better can be had. In the
// place of a pack that has mistakes, or cannot be read, stays what was right before; if that fits no longer, all stays
// as it was. After settle the files have to be as they were before it.
func (f *RuleFiles) look(settle func()) *rules.Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, unread := f.read()
	sum := now.sum(unread)
	if sum == f.seen {
		return nil
	}
	if settle != nil {
		settle()
		if again, gone := f.read(); again.sum(gone) != sum {
			return nil // somebody is writing: the next look sees it whole
		}
	}
	f.seen = sum
	set, left := now.load(f.dirs)
	problems := append(unread, left...)
	if problems.HasErrors() {
		for _, p := range problems {
			f.log.Error("a changed rule pack has a mistake: what was right before stays in force", "problem", p.String(), "hint", p.Hint)
		}
		mended := now.mended(f.good, f.dirs, problems)
		if set, left = mended.load(f.dirs); !f.onlyNew(left) || len(set.Rules()) == 0 {
			f.tell(problems)
			return nil
		}
		now = mended
	}
	f.take(set, now, left)
	f.tell(problems)
	f.log.Info("the rules were loaded again", "rules", f.health.Loaded, "problems", len(problems))
	return set
}

// Look reads the packs again: a new set, or nil where nothing changed or somebody is writing. It is for who has no agent.
func (f *RuleFiles) Look() *rules.Set { return f.look(func() { time.Sleep(settled) }) }

// mended is packs of which files with problems are as they were when they had none.
func (s packs) mended(good packs, dirs []string, problems diagnostic.Diagnostics) packs {
	wrong := map[string]bool{}
	for _, p := range problems {
		wrong[p.File] = true
	}
	out := packs{}
	for _, dir := range dirs {
		if s[dir] == nil { // the folder cannot be read
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

// onlyNew tells whether problems are only of files that never were without.
func (f *RuleFiles) onlyNew(problems diagnostic.Diagnostics) bool {
	return !slices.ContainsFunc(problems, func(p diagnostic.Diagnostic) bool {
		dir, name := filepath.Split(p.File)
		_, was := f.good[filepath.Clean(dir)][name]
		return was
	})
}

// Rules is the set in force.
func (a *Agent) Rules() *rules.Set { return a.rules.Load() }

// ReloadRules reads the rule packs again at once, and tells whether others are in force now.
func (a *Agent) ReloadRules() bool { return a.reload(nil) }

func (a *Agent) reload(settle func()) bool {
	if a.RuleFiles == nil {
		return false
	}
	set := a.RuleFiles.look(settle)
	if set != nil {
		a.rules.Store(set)
	}
	return set != nil
}

// followRules takes up changed packs until ctx ends.
func (a *Agent) followRules(ctx context.Context) {
	if a.RuleFiles == nil || len(a.RuleFiles.dirs) == 0 {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	hangup := make(chan os.Signal, 1)
	// On a terminal the signal means that the terminal is gone, and ends the program.
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err != nil { //nolint:gosec // a descriptor is small
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.reload(func() { time.Sleep(settled) })
		case <-hangup:
			if !a.ReloadRules() {
				a.Log.Info("asked to load the rules again: nothing changed")
			}
		}
	}
}

// held is files in memory.
type held map[string][]byte

// Open opens one.
func (h held) Open(name string) (fs.File, error) {
	raw, ok := h[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &heldFile{Reader: bytes.NewReader(raw)}, nil
}

type heldFile struct{ *bytes.Reader }

func (*heldFile) Stat() (fs.FileInfo, error) { return nil, fs.ErrInvalid }
func (*heldFile) Close() error               { return nil }
