// Package playbookstore contains the checked playbooks of a worker: it loads them, follows edits, selects those that
// match an incident, and signs the selection.
//
// It never uses an invalid playbook: the last valid version of a file stays in use.
package playbookstore

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
)

// Store contains the checked playbooks of a worker. It follows edits of the configured directories; a file that
// becomes invalid keeps its last valid version. It is safe for concurrent use.
type Store struct {
	// Authority signs selected playbooks, so that their approvals are authorized. Nil signs nothing.
	Authority activities.Authority

	config  *config.Config // nil: a fixed library without files
	catalog playbooks.Catalog

	mu                sync.Mutex
	programs          []*playbooks.Program
	problems          diagnostic.Diagnostics
	filesStamp        string            // of the directories' files at the last read
	lastValidText     map[string][]byte // last valid text of each file
	firstLoadComplete bool              // every file of the first load is in lastValidText
}

// NewFixed returns a library of the given playbooks, so that simulation selects with the same code.
func NewFixed(authority activities.Authority, programs ...*playbooks.Program) *Store {
	return &Store{Authority: authority, programs: programs}
}

// Open loads the shipped playbooks that the configuration enables, and those of its directories. A user's
// playbook replaces the shipped one with its name, or the one that it `replaces`.
func Open(c *config.Config, catalog playbooks.Catalog) (*Store, diagnostic.Diagnostics, error) {
	l := &Store{config: c, catalog: catalog, lastValidText: map[string][]byte{}}
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

// LoadWithLibrary loads the given playbooks together with those of a configuration: the enabled shipped ones, and its
// directories. A given file in one of the directories counts once.
func LoadWithLibrary(c *config.Config, given []playbooks.SourceFile, catalog playbooks.Catalog) ([]*playbooks.Program,
	diagnostic.Diagnostics, error,
) {
	sources, problems := shippedSources(c.Library)
	l := &Store{config: c}
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
	programs, found := playbooks.LoadPlaybooks(append(sources, given...), catalog)
	return programs, append(problems, found...), nil
}

// shippedSources returns the shipped playbooks that the configuration enables. Playbooks without `match` are always
// included, because others call them.
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
					Severity: "error", Code: "unknown-playbook", Message: fmt.Sprintf(
						"`library.%s` in the configuration: unknown shipped playbook `%s`", key, name),
					Hint: diagnostic.DidYouMean(name, names),
				})
			}
		}
	}
	return out, problems.Sorted()
}

// listPlaybookFiles returns the playbook files of a directory, sorted. It skips hidden files, which editors create.
func listPlaybookFiles(dir string) ([]string, error) {
	found, err := fs.Glob(os.DirFS(dir), "*.yaml")
	if err == nil {
		_, err = os.Stat(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("list playbooks in %s: %w", dir, err)
	}
	return slices.DeleteFunc(found, func(f string) bool {
		return strings.HasPrefix(f, ".") ||
			strings.HasSuffix(f, testspec.TestFileSuffix)
	}), nil
}

// computeFilesStamp returns a value that changes with the name, size or time of any file of the directories.
func (l *Store) computeFilesStamp() (string, error) {
	var b strings.Builder
	for _, dir := range l.config.Playbooks {
		found, err := listPlaybookFiles(dir)
		if err != nil {
			return "", err
		}
		for _, f := range found {
			info, err := os.Stat(filepath.Join(dir, f))
			if err == nil && !info.Mode().IsRegular() { // reading a pipe could block forever
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

// loadPlaybooks reads every file. The caller holds the mutex or has exclusive access.
func (l *Store) loadPlaybooks(stamp string) error {
	sources, problems := shippedSources(l.config.Library)
	own, err := l.readUserPlaybooks()
	if err != nil {
		return err
	}
	programs, found := playbooks.LoadPlaybooks(slices.Concat(sources, own), l.catalog)
	// An invalid edit keeps the previous version. A deleted file has no previous version, even if it returns.
	maps.DeleteFunc(l.lastValidText, func(file string, _ []byte) bool {
		return !slices.ContainsFunc(own, func(s playbooks.SourceFile) bool { return s.File == file })
	})
	kept := slices.Clone(own)
	for i, s := range own {
		was := l.lastValidText[s.File]
		if slices.ContainsFunc(found, func(d diagnostic.Diagnostic) bool {
			return d.File == s.File &&
				d.Severity == "error"
		}) {
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

// readUserPlaybooks reads the files of the configuration's directories.
func (l *Store) readUserPlaybooks() ([]playbooks.SourceFile, error) {
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

// UserPlaybooks returns the files of the configuration's playbook directories.
func UserPlaybooks(c *config.Config) ([]playbooks.SourceFile, error) {
	return (&Store{config: c}).readUserPlaybooks()
}

// Reload applies edits of the directories. If anything changed, it returns the diagnostics. With an error, a directory
// could not be read and the library is unchanged.
func (l *Store) Reload() (changed bool, problems diagnostic.Diagnostics, err error) {
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

// ReloadPeriodically applies edits until ctx ends, and logs the results.
func (l *Store) ReloadPeriodically(ctx context.Context, every time.Duration, log *slog.Logger) {
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
			log.Error("could not read the playbook directories; the loaded playbooks stay in use", "error", err)
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

// LogPlaybookProblems logs diagnostics of playbooks. again means that the playbooks were edited, so the last valid
// version of each stays in force.
func LogPlaybookProblems(log *slog.Logger, problems diagnostic.Diagnostics, again bool) {
	for _, p := range problems {
		switch {
		case p.Severity != "error":
			log.Warn("playbook warning", "problem", p.String(), "hint", p.Hint)
		case again:
			log.Error("invalid playbook; its last valid version stays in use, if there is one", "problem", p.String(), "hint",
				p.Hint)
		default:
			log.Error("invalid playbook; it is not used", "problem", p.String(), "hint", p.Hint)
		}
	}
}

// MatchPlaybooks returns the playbooks that match an incident, in order of precedence. It is a local activity, so the
// result is recorded in the history. It applies pending edits first.
func (l *Store) MatchPlaybooks(_ context.Context, in playbooks.Incident) ([]incident.SelectedPlaybook, error) {
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
		selected := incident.SelectedPlaybook{
			Name: p.Name, CanContain: p.CanContain(), Shipped: p.Shipped,
			WaitsForEnrichment: choice.WaitsForEnrichment,
		}
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

// signPlaybookAuthorization signs that a playbook belongs to this installation.
func (l *Store) signPlaybookAuthorization(p *playbooks.Program) (*attestation.Envelope, error) {
	if l.Authority == nil {
		return nil, nil //nolint:nilnil // nothing is signed
	}
	signed, err := l.Authority.Sign(attestation.PayloadTypePlaybookAuthorization,
		attestation.PlaybookAuthorization{
			Playbook: p.Name, SourceHash: p.Hash, ApproverHashes: approverHashes(p),
			AuthorizedAt: time.Now(),
		})
	if err != nil {
		return nil, fmt.Errorf("sign the selection of %s: %w", p.Name, err)
	}
	return &signed, nil
}

// approverHashes returns the hashes of the approvers in a playbook's approvals, and in those of its callees.
func approverHashes(p *playbooks.Program) []string {
	var out []string
	for _, book := range append([]*playbooks.Program{p}, p.TransitiveCallees()...) {
		book.WalkSteps(func(s *playbooks.Step) {
			if s.Approval != nil {
				out = append(out, activities.ApproversHash(s.Approval.Approvers))
			}
		})
	}
	return out
}

// Programs returns the playbooks.
func (l *Store) Programs() []*playbooks.Program {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.programs
}

// Problems returns the diagnostics of the last read.
func (l *Store) Problems() diagnostic.Diagnostics {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problems
}

// InvalidPlaybooks returns the first error of each playbook whose current file is invalid.
func (l *Store) InvalidPlaybooks() []string {
	var out []string
	seen := map[string]bool{}
	for _, p := range l.Problems() {
		if p.Severity == "error" && !seen[p.File] {
			seen[p.File] = true
			out = append(out, fmt.Sprintf("invalid playbook; its last valid version stays in use, if there is one: %s",
				p.String()))
		}
	}
	return out
}
