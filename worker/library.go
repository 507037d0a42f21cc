package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/playbooks/testspec"
	"stanch/sensors/attestation"
	"stanch/sensors/diagnostic"
	"stanch/worker/config"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// Library is the playbooks that a worker runs, checked. It follows edits of the configured folders: a file that is no
// longer valid keeps its last valid version.
type Library struct {
	// Authority signs what is selected, so that its approvals count as this installation's. Nil signs nothing.
	Authority activities.Authority

	config  *config.Config // nil: the playbooks were given and never change
	catalog playbooks.Catalog

	mu                sync.Mutex
	programs          []*playbooks.Program
	problems          diagnostic.Diagnostics
	filesStamp        string            // of the folders' files, as they were read
	lastValidText     map[string][]byte // the last valid text of each file
	firstLoadComplete bool              // valid has every file of the first load
}

// NewFixedLibrary is a library of the playbooks given: simulation selects by the same code.
func NewFixedLibrary(authority activities.Authority, programs ...*playbooks.Program) *Library {
	return &Library{Authority: authority, programs: programs}
}

// LoadLibrary loads the shipped playbooks that the configuration leaves on, and those of its folders. A user's playbook
// replaces a shipped one of its name, or the one that it `replaces`.
func LoadLibrary(c *config.Config, catalogue playbooks.Catalog) (*Library, diagnostic.Diagnostics, error) {
	l := &Library{config: c, catalog: catalogue, lastValidText: map[string][]byte{}}
	stamp, err := l.computeFilesStamp()
	if err == nil {
		err = l.loadPlaybooks(stamp)
	}
	if err != nil {
		return nil, nil, err
	}
	l.firstLoadComplete = true
	return l, l.problems, nil
}

// LoadWithLibrary loads playbooks with those that a configuration uses: the shipped ones that it leaves on, and its folders.
// A file that is given and lies in one of the folders counts once.
func LoadWithLibrary(c *config.Config, given []playbooks.SourceFile, catalogue playbooks.Catalog) ([]*playbooks.Program, diagnostic.Diagnostics, error) {
	sources, problems := shippedSources(c.Library)
	l := &Library{config: c}
	own, err := l.readUserPlaybooks()
	if err != nil {
		return nil, nil, err
	}
	same := func(a, b string) bool {
		x, errX := os.Stat(a)
		y, errY := os.Stat(b)
		return errX == nil && errY == nil && os.SameFile(x, y)
	}
	for _, s := range own {
		if !slices.ContainsFunc(given, func(g playbooks.SourceFile) bool { return same(g.File, s.File) }) {
			sources = append(sources, s)
		}
	}
	programs, found := playbooks.LoadPlaybooks(append(sources, given...), catalogue)
	return programs, append(problems, found...), nil
}

// shippedSources are the shipped playbooks that the configuration leaves on. One that only `call` runs is always there:
// others need it.
func shippedSources(c config.LibrarySelection) ([]playbooks.SourceFile, diagnostic.Diagnostics) {
	if c.Enabled != nil && !*c.Enabled {
		return nil, nil
	}
	var names []string
	var out []playbooks.SourceFile
	for _, s := range library.PlaybookSources() {
		book, _ := playbooks.ParsePlaybook(s.File, s.Content)
		names = append(names, book.Name)
		on := !slices.Contains(c.Except, book.Name) && (len(c.Only) == 0 || slices.Contains(c.Only, book.Name))
		if on || book.Match == nil {
			out = append(out, s)
		}
	}
	var problems diagnostic.Diagnostics
	for key, list := range map[string][]string{"except": c.Except, "only": c.Only} {
		for _, name := range list {
			if !slices.Contains(names, name) {
				problems = append(problems, diagnostic.Diagnostic{
					Severity: "error", Code: "unknown-playbook", Message: fmt.Sprintf("`library.%s` of the configuration: no shipped playbook has the name `%s`", key, name), Hint: diagnostic.DidYouMean(name, names),
				})
			}
		}
	}
	return out, problems.Sorted()
}

// listPlaybookFiles lists the playbooks of a folder, sorted. Hidden files are not among them: editors leave theirs beside what is edited.
func listPlaybookFiles(dir string) ([]string, error) {
	found, err := fs.Glob(os.DirFS(dir), "*.yaml")
	if err == nil {
		_, err = os.Stat(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("list playbooks in %s: %w", dir, err)
	}
	return slices.DeleteFunc(found, func(f string) bool { return strings.HasPrefix(f, ".") || strings.HasSuffix(f, testspec.TestFileSuffix) }), nil
}

// computeFilesStamp changes with the name, size or time of any file of the folders.
func (l *Library) computeFilesStamp() (string, error) {
	var b strings.Builder
	for _, dir := range l.config.Playbooks {
		found, err := listPlaybookFiles(dir)
		if err != nil {
			return "", err
		}
		for _, f := range found {
			info, err := os.Stat(filepath.Join(dir, f))
			if err == nil && !info.Mode().IsRegular() { // reading a pipe would never end
				err = errors.New("not a regular file")
			}
			if err != nil {
				return "", fmt.Errorf("read playbook %s: %w", filepath.Join(dir, f), err)
			}
			fmt.Fprintf(&b, "%s/%s %d %d\n", dir, f, info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String(), nil
}

// loadPlaybooks reads every file. The caller holds the mutex, or is alone.
func (l *Library) loadPlaybooks(stamp string) error {
	sources, problems := shippedSources(l.config.Library)
	own, err := l.readUserPlaybooks()
	if err != nil {
		return err
	}
	programs, found := playbooks.LoadPlaybooks(slices.Concat(sources, own), l.catalog)
	// An edit that is not valid takes nothing out of force: what it was before goes on. A file that is gone has no version
	// to go on with, also if it comes back.
	maps.DeleteFunc(l.lastValidText, func(file string, _ []byte) bool {
		return !slices.ContainsFunc(own, func(s playbooks.SourceFile) bool { return s.File == file })
	})
	kept := slices.Clone(own)
	for i, s := range own {
		was := l.lastValidText[s.File]
		if slices.ContainsFunc(found, func(d diagnostic.Diagnostic) bool { return d.File == s.File && d.Severity == "error" }) {
			if was != nil {
				kept[i].Content = was
			}
			continue
		}
		l.lastValidText[s.File] = s.Content
	}
	if l.firstLoadComplete {
		programs, _ = playbooks.LoadPlaybooks(slices.Concat(sources, kept), l.catalog)
	}
	l.programs, l.problems, l.filesStamp = programs, append(problems, found...), stamp
	return nil
}

// readUserPlaybooks reads the files of the configuration's folders.
func (l *Library) readUserPlaybooks() ([]playbooks.SourceFile, error) {
	var own []playbooks.SourceFile
	for _, dir := range l.config.Playbooks {
		found, err := listPlaybookFiles(dir)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			raw, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				return nil, fmt.Errorf("read playbook %s: %w", filepath.Join(dir, f), err)
			}
			own = append(own, playbooks.SourceFile{File: filepath.Join(dir, f), Content: raw})
		}
	}
	return own, nil
}

// Reload takes over edits of the folders. It returns what is wrong with them if anything changed, and an error where the
// folders cannot be read: everything stays as it was then.
func (l *Library) Reload() (changed bool, problems diagnostic.Diagnostics, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.config == nil || len(l.config.Playbooks) == 0 {
		return false, nil, nil
	}
	stamp, err := l.computeFilesStamp()
	if err != nil || stamp == l.filesStamp {
		return false, nil, err
	}
	if err := l.loadPlaybooks(stamp); err != nil {
		return false, nil, err
	}
	return true, l.problems, nil
}

// ReloadPeriodically takes over edits until ctx ends, and logs what came of them.
func (l *Library) ReloadPeriodically(ctx context.Context, every time.Duration, log *slog.Logger) {
	t := time.NewTicker(every)
	defer t.Stop()
	unreadable := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		changed, problems, err := l.Reload()
		switch {
		case err != nil && err.Error() != unreadable:
			log.Error("the playbooks' folders cannot be read; the playbooks stay as they were", "error", err)
		case changed:
			LogPlaybookProblems(log, problems, true)
			log.Info("playbooks reloaded", "playbooks", len(l.Programs()))
		}
		unreadable = ""
		if err != nil {
			unreadable = err.Error()
		}
	}
}

// invalidPlaybooks says which playbooks have errors as they stand in their files, each with its first.
func (w *Worker) invalidPlaybooks() []string {
	var out []string
	seen := map[string]bool{}
	for _, p := range w.Library.Problems() {
		if p.Severity == "error" && !seen[p.File] {
			seen[p.File] = true
			out = append(out, fmt.Sprintf("invalid playbook, its last valid version stays in force if there is one: %s", p.String()))
		}
	}
	return out
}

// watchLibrary takes over edits of playbooks until Close.
func (w *Worker) watchLibrary(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	w.closers = append(w.closers, func() { cancel(); <-done })
	go func() {
		defer close(done)
		w.Library.ReloadPeriodically(ctx, 2*time.Second, w.Log)
	}()
}

// LogPlaybookProblems logs what is wrong with playbooks. again: they were edited, so the last valid version of each stays.
func LogPlaybookProblems(log *slog.Logger, problems diagnostic.Diagnostics, again bool) {
	for _, p := range problems {
		switch {
		case p.Severity != "error":
			log.Warn("warning about a playbook", "problem", p.String(), "hint", p.Hint)
		case again:
			log.Error("invalid playbook: its last valid version stays in force, or none if it is new", "problem", p.String(), "hint", p.Hint)
		default:
			log.Error("invalid playbook: it is left out", "problem", p.String(), "hint", p.Hint)
		}
	}
}

// MatchPlaybooks gives the playbooks that match an incident, in the order in which they come. It is a local activity: its result is
// recorded. Edits that nobody has taken over yet are taken over first.
func (l *Library) MatchPlaybooks(_ context.Context, in playbooks.Incident) ([]incident.SelectedPlaybook, error) {
	_, _, err := l.Reload()
	if err != nil && len(l.Programs()) == 0 {
		return nil, errors.Join(errors.New("no playbook is loaded"), err)
	}
	out := []incident.SelectedPlaybook{}
	for _, choice := range playbooks.SelectPlaybooks(l.Programs(), in) {
		p := choice.Program
		matches, _ := p.Matches(in)
		if !matches {
			continue
		}
		selected := incident.SelectedPlaybook{Name: p.Name, CanContain: p.CanContain(), Shipped: p.Shipped, WaitsForEnrichment: choice.WaitsForEnrichment}
		if !choice.Selected {
			selected.NotSelectedReason, selected.IsFallback = choice.Reason, choice.IsFallback
		}
		if choice.Selected || choice.IsFallback {
			selected.File, selected.Source, selected.Callees = p.File, p.SourceText, p.CalleeSources()
			signed, err := l.signPlaybookAuthorization(p)
			if err != nil {
				return nil, err
			}
			selected.PlaybookAuthorization = signed
		}
		out = append(out, selected)
	}
	return out, nil
}

// signPlaybookAuthorization signs that a playbook is one of this installation's.
func (l *Library) signPlaybookAuthorization(p *playbooks.Program) (*attestation.Envelope, error) {
	if l.Authority == nil {
		return nil, nil //nolint:nilnil // nothing is signed
	}
	signed, err := l.Authority.Sign(attestation.PayloadTypePlaybookAuthorization, attestation.PlaybookAuthorization{Playbook: p.Name, SourceHash: p.Hash, ApproverHashes: approverHashes(p), AuthorizedAt: time.Now()})
	if err != nil {
		return nil, fmt.Errorf("sign the selection of %s: %w", p.Name, err)
	}
	return &signed, nil
}

// approverHashes are the hashes of whom each approval of a playbook asks, and of those that it calls.
func approverHashes(p *playbooks.Program) []string {
	var out []string
	for _, book := range append([]*playbooks.Program{p}, p.TransitiveCallees()...) {
		book.WalkSteps(func(s *playbooks.Step) {
			if s.Approval != nil {
				out = append(out, activities.ApproversHash(playbook.ApproversOfStep(s.Approval)))
			}
		})
	}
	return out
}

// Programs lists the playbooks.
func (l *Library) Programs() []*playbooks.Program {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.programs
}

// Problems lists what is wrong with the playbooks that were read last.
func (l *Library) Problems() diagnostic.Diagnostics {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problems
}
