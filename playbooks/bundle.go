package playbooks

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"stanch/sensors/diagnostic"
)

// Source is a file of a playbook.
type Source struct {
	File   string `json:"file"`
	Source []byte `json:"source"`
	// Shipped: the playbook is one of Stanch's own library and not of a user. It takes part in selection only.
	Shipped bool `json:"-"`
}

// LoadAll parses and checks files that may call each other, in the order given. Where two have one name, the later
// replaces the earlier; a user's playbook may also name a shipped one that it `replaces`. Files with errors give no
// program, and neither do those that call them.
func LoadAll(files []Source, catalogue Catalogue) ([]*Program, diagnostic.Diagnostics) {
	return loadAll(files, catalogue, false)
}

// fatal are the problems with which a playbook cannot be run at all.
func fatal(problems diagnostic.Diagnostics) diagnostic.Diagnostics {
	return slices.DeleteFunc(slices.Clone(problems), func(d diagnostic.Diagnostic) bool {
		return !slices.Contains([]string{"yaml", "encoding", "empty", "alias", "expression", "unknown-action", "unknown-playbook", "cycle", "callee"}, d.Code)
	})
}

func loadAll(files []Source, catalogue Catalogue, run bool) ([]*Program, diagnostic.Diagnostics) {
	l := &loader{run: run, catalogue: catalogue, books: map[string]*Playbook{}, done: map[string]*Program{}, state: map[string]int{}, before: map[string]*Playbook{}, shipped: map[string]*Playbook{}}
	var order []string
	for _, f := range files {
		book, problems := Parse(f.File, f.Source)
		book.Shipped = f.Shipped
		if l.run {
			problems = fatal(problems)
		}
		l.problems = append(l.problems, problems...)
		if book.Name == "" {
			continue
		}
		order = slices.DeleteFunc(order, func(name string) bool { return name == book.Name })
		order = append(order, book.Name)
		if book.Shipped && l.shipped[book.Name] == nil {
			l.shipped[book.Name] = book
		}
		if was := l.books[book.Name]; was != nil {
			l.before[book.Name] = was
			book.Shipped = book.Shipped || was.Shipped && bytes.Equal(was.Source, book.Source) // an unchanged copy
		}
		l.books[book.Name] = book
		l.broken(book.Name, problems.HasErrors())
	}
	var programs []*Program
	for _, name := range order {
		p := l.load(name, nil)
		if was := l.before[name]; p == nil && was != nil {
			// A file that is broken does not take away what it was to replace.
			l.add(l.books[name], l.books[name].NamePos, "replaced", "mend this one", fmt.Sprintf("`%s` of %s stays in force until then", name, was.File))
			l.books[name], l.state[name] = was, unseen
			l.broken(name, false)
			p = l.load(name, nil)
		}
		if p != nil {
			programs = append(programs, p)
		}
	}
	if !l.run {
		l.replace(programs)
	}
	var problems diagnostic.Diagnostics
	for _, f := range files {
		var mine diagnostic.Diagnostics
		for _, p := range l.problems {
			if p.File == f.File {
				mine = append(mine, p)
			}
		}
		if mine.HasErrors() {
			mine = mine.WithoutWarnings()
		}
		problems = append(problems, mine.Sorted()...)
		l.problems = slices.DeleteFunc(l.problems, func(p diagnostic.Diagnostic) bool { return p.File == f.File })
	}
	return programs, problems
}

type loader struct {
	run       bool // one under way is loaded
	catalogue Catalogue
	books     map[string]*Playbook
	done      map[string]*Program // nil where it has errors
	state     map[string]int
	before    map[string]*Playbook // what a later file of the name replaces
	shipped   map[string]*Playbook // the library's, also those that were replaced
	bad       []string
	problems  diagnostic.Diagnostics
}

// What is known of a playbook while it is loaded.
const (
	unseen = iota
	loading
	loaded
)

func (l *loader) broken(name string, is bool) {
	l.bad = slices.DeleteFunc(l.bad, func(n string) bool { return n == name })
	if is {
		l.bad = append(l.bad, name)
	}
}

// load checks a playbook after those that it calls.
func (l *loader) load(name string, path []string) *Program {
	switch l.state[name] {
	case loaded:
		return l.done[name]
	case loading:
		return nil // its caller reports the cycle
	}
	l.state[name] = loading
	book := l.books[name]
	path = append(slices.Clone(path), name)
	var callees []*Program
	unusable := map[string]string{}
	walk(slices.Concat(book.Steps, book.Finally), func(s *Step) {
		if s.Call == nil || s.Call.Playbook == name || l.books[s.Call.Playbook] == nil {
			return
		}
		callee := l.load(s.Call.Playbook, path)
		switch {
		case callee != nil:
			callees = append(callees, callee)
		case l.state[s.Call.Playbook] == loading:
			from := slices.Index(path, s.Call.Playbook)
			cycle := strings.Join(append(slices.Clone(path[from:]), s.Call.Playbook), " → ")
			l.add(book, s.Call.Pos, "cycle", "use `foreach` to repeat steps", "playbooks call each other in a circle: "+cycle)
			unusable[s.Call.Playbook] = "cycle"
		default:
			l.add(book, s.Call.Pos, "callee", "mend that one first", fmt.Sprintf("the playbook `%s` has errors", s.Call.Playbook))
			unusable[s.Call.Playbook] = "errors"
		}
	})
	upTo := len(stages)
	if l.run {
		upTo = forRun
	}
	program, problems := check(book, l.catalogue, upTo, callees)
	if l.run {
		problems = fatal(problems)
	}
	for _, p := range problems {
		if p.Code == "unknown-playbook" && slices.ContainsFunc(slices.Sorted(maps.Keys(unusable)), func(n string) bool { return strings.HasSuffix(p.Message, "`"+n+"`") }) {
			continue // it was said why
		}
		l.problems = append(l.problems, p)
	}
	l.state[name] = loaded
	if !problems.HasErrors() && len(unusable) == 0 && !slices.Contains(l.bad, name) {
		l.done[name] = program
	}
	return l.done[name]
}

func (l *loader) add(book *Playbook, pos Pos, code, hint, message string) {
	l.problems = append(l.problems, diagnostic.Diagnostic{
		File: book.File, Line: pos.Line, Column: pos.Column, Severity: "error", Code: code, Message: message, Hint: hint,
	})
}

// Called are all playbooks that a program reaches by calls, by name.
func (p *Program) Called() []*Program {
	all := map[string]*Program{}
	var collect func(*Program)
	collect = func(p *Program) {
		for _, callee := range p.Callees {
			if all[callee.Name] == nil {
				all[callee.Name] = callee
				collect(callee)
			}
		}
	}
	collect(p)
	out := make([]*Program, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name])
	}
	return out
}

// Sources are the files of all playbooks that a program calls.
func (p *Program) Sources() []Source {
	var out []Source
	for _, callee := range p.Called() {
		out = append(out, Source{File: callee.File, Source: callee.Source})
	}
	return out
}

// LoadRun loads a playbook of a run under way with those that it calls. It was judged when it was selected: only what
// cannot be run at all is an error.
func LoadRun(main Source, called []Source, catalogue Catalogue) (*Program, diagnostic.Diagnostics) {
	programs, problems := loadAll(append(slices.Clone(called), main), catalogue, true)
	for _, p := range programs {
		if string(p.Source) == string(main.Source) && !problems.HasErrors() {
			return p, problems
		}
	}
	return nil, problems
}

// HashOf is the hash of a playbook: SHA-256 of its source, and of the sources of all that it calls where it calls any.
func HashOf(source []byte, called []Source) string {
	sum := sha256.Sum256(source)
	if len(called) == 0 {
		return hex.EncodeToString(sum[:])
	}
	var sums []string
	for _, c := range called {
		one := sha256.Sum256(c.Source)
		sums = append(sums, hex.EncodeToString(one[:]))
	}
	slices.Sort(sums)
	sum = sha256.Sum256([]byte("a playbook of Stanch with those that it calls\n" + hex.EncodeToString(sum[:]) + "\n" + strings.Join(sums, "\n")))
	return hex.EncodeToString(sum[:])
}
