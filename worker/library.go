package worker

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/sensors/diagnostic"
	"stanch/sensors/proof"
	"stanch/worker/config"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// Library is the playbooks that a worker runs, checked.
type Library struct {
	// Authority signs what is selected, so that its approvals count as this installation's. Nil signs nothing.
	Authority activities.Authority
	programs  []*playbooks.Program
}

// LibraryOf is a library of the playbooks given: simulation selects by the same code.
func LibraryOf(authority activities.Authority, programs ...*playbooks.Program) *Library {
	return &Library{Authority: authority, programs: programs}
}

// LoadLibrary loads the shipped playbooks and those of the configured folders. A playbook of a folder takes the
// place of a shipped one of its name.
func LoadLibrary(c *config.Config, catalogue playbooks.Catalogue) (*Library, diagnostic.Diagnostics, error) {
	var sources []playbooks.Source
	add := func(source fs.FS, where string) error {
		files, err := fs.Glob(source, "*.yaml")
		if err != nil {
			return fmt.Errorf("list playbooks in %s: %w", where, err)
		}
		for _, file := range files {
			if isTest(file) {
				continue
			}
			raw, err := fs.ReadFile(source, file)
			if err != nil {
				return fmt.Errorf("read playbook %s: %w", file, err)
			}
			sources = append(sources, playbooks.Source{File: where + file, Source: raw})
		}
		return nil
	}
	if c.Library == nil || *c.Library {
		sources = library.Sources()
	}
	for _, dir := range c.Playbooks {
		if err := add(os.DirFS(dir), dir+"/"); err != nil {
			return nil, nil, err
		}
	}
	programs, problems := playbooks.LoadAll(sources, catalogue)
	return &Library{programs: programs}, problems, nil
}

func isTest(file string) bool {
	const suffix = "_test.yaml"
	return len(file) > len(suffix) && file[len(file)-len(suffix):] == suffix
}

// Match gives the playbooks that handle an incident. It is a local activity: its result is recorded.
func (l *Library) Match(_ context.Context, in playbooks.Incident) ([]incident.Selected, error) {
	out := []incident.Selected{}
	for _, choice := range playbooks.Choose(l.programs, in) {
		if !choice.Chosen {
			continue
		}
		p := choice.Program
		selected := incident.Selected{Name: p.Name, File: p.File, Source: p.Source, Called: p.Sources()}
		if l.Authority != nil {
			signed, err := l.Authority.Sign(proof.PurposeSelection, proof.Selection{Playbook: p.Name, Hash: p.Hash, Asks: asks(p), At: time.Now()})
			if err != nil {
				return nil, fmt.Errorf("sign the selection of %s: %w", p.Name, err)
			}
			selected.Selection = &signed
		}
		out = append(out, selected)
	}
	return out, nil
}

// asks are the hashes of whom each approval of a playbook asks, and of those that it calls.
func asks(p *playbooks.Program) []string {
	var out []string
	for _, book := range append([]*playbooks.Program{p}, p.Called()...) {
		book.Walk(func(s *playbooks.Step) {
			if s.Approval != nil {
				out = append(out, activities.AsksHash(playbook.ApproversOf(s.Approval)))
			}
		})
	}
	return out
}

// Programs lists the playbooks.
func (l *Library) Programs() []*playbooks.Program { return l.programs }
