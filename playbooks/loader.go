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

// SourceFile is one playbook file.
type SourceFile struct {
	File    string `json:"file"`
	Content []byte `json:"content"`
	// Shipped is set for a playbook of Stanch's library. It affects selection only.
	Shipped bool `json:"-"`
}

// LoadPlaybooks parses and checks files that may call each other, in the given order. If two have the same name, the
// later one replaces the earlier one. A user's playbook may also name a shipped playbook that it `replaces`. Files with
// errors produce no program, and neither do files that call them.
func LoadPlaybooks(files []SourceFile, catalog Catalog) ([]*Program, diagnostic.Diagnostics) {
	return loadSources(files, catalog, false)
}

// fatalProblems returns the problems that prevent a playbook from running at all.
func fatalProblems(problems diagnostic.Diagnostics) diagnostic.Diagnostics {
	return slices.DeleteFunc(slices.Clone(problems), func(d diagnostic.Diagnostic) bool {
		return !slices.Contains([]string{
			"yaml", "encoding", "empty", "alias", "expression", "unknown-action",
			"unknown-playbook", "cycle", "callee",
		}, d.Code)
	})
}

func loadSources(files []SourceFile, catalog Catalog, run bool) ([]*Program, diagnostic.Diagnostics) {
	l := &loader{
		forActiveRun: run, catalog: catalog, playbooksByName: map[string]*Playbook{},
		programsByName: map[string]*Program{}, loadStates: map[string]int{}, replacedByName: map[string]*Playbook{},
		shippedByName: map[string]*Playbook{},
	}
	var order []string
	for _, f := range files {
		book, problems := ParsePlaybook(f.File, f.Content)
		book.Shipped = f.Shipped
		if l.forActiveRun {
			problems = fatalProblems(problems)
		}
		l.problems = append(l.problems, problems...)
		if book.Name == "" {
			continue
		}
		order = slices.DeleteFunc(order, func(name string) bool { return name == book.Name })
		order = append(order, book.Name)
		if book.Shipped && l.shippedByName[book.Name] == nil {
			l.shippedByName[book.Name] = book
		}
		if was := l.playbooksByName[book.Name]; was != nil {
			l.replacedByName[book.Name] = was
			book.Shipped = book.Shipped || was.Shipped && bytes.Equal(was.SourceText, book.SourceText) // an unchanged copy
		}
		l.playbooksByName[book.Name] = book
		l.setInvalid(book.Name, problems.HasErrors())
	}
	var programs []*Program
	for _, name := range order {
		p := l.loadPlaybook(name, nil)
		if was := l.replacedByName[name]; p == nil && was != nil {
			// An invalid file does not remove the playbook that it replaces.
			l.addError(l.playbooksByName[name], l.playbooksByName[name].NamePos, "replaced", "fix this playbook",
				fmt.Sprintf("the version of `%s` from %s stays in use until then", name, was.File))
			l.playbooksByName[name], l.loadStates[name] = was, loadStateNotStarted
			l.setInvalid(name, false)
			p = l.loadPlaybook(name, nil)
		}
		if p != nil {
			programs = append(programs, p)
		}
	}
	if !l.forActiveRun {
		l.markReplaced(programs)
	}
	return programs, l.problemsByFile(files)
}

// problemsByFile returns the problems in the order of the files. The warnings of a file matter after its errors are
// fixed.
func (l *loader) problemsByFile(files []SourceFile) diagnostic.Diagnostics {
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
	return problems
}

type loader struct {
	forActiveRun    bool // the playbook belongs to a run in progress
	catalog         Catalog
	playbooksByName map[string]*Playbook
	programsByName  map[string]*Program // nil for files with errors
	loadStates      map[string]int
	replacedByName  map[string]*Playbook // the earlier file of the same name
	shippedByName   map[string]*Playbook // the library's, including replaced ones
	invalidNames    []string
	problems        diagnostic.Diagnostics
}

// The loading states of a playbook.
const (
	loadStateNotStarted = iota
	loadStateInProgress
	loadStateDone
)

func (l *loader) setInvalid(name string, is bool) {
	l.invalidNames = slices.DeleteFunc(l.invalidNames, func(n string) bool { return n == name })
	if is {
		l.invalidNames = append(l.invalidNames, name)
	}
}

// loadPlaybook checks a playbook after the playbooks that it calls.
func (l *loader) loadPlaybook(name string, path []string) *Program {
	switch l.loadStates[name] {
	case loadStateDone:
		return l.programsByName[name]
	case loadStateInProgress:
		return nil // its caller reports the cycle
	}
	l.loadStates[name] = loadStateInProgress
	book := l.playbooksByName[name]
	path = append(slices.Clone(path), name)
	var callees []*Program
	unusable := map[string]string{}
	walkSteps(slices.Concat(book.Steps, book.Finally), func(s *Step) {
		if s.Call == nil || s.Call.Playbook == name || l.playbooksByName[s.Call.Playbook] == nil {
			return
		}
		callee := l.loadPlaybook(s.Call.Playbook, path)
		switch {
		case callee != nil:
			callees = append(callees, callee)
		case l.loadStates[s.Call.Playbook] == loadStateInProgress:
			from := slices.Index(path, s.Call.Playbook)
			cycle := strings.Join(append(slices.Clone(path[from:]), s.Call.Playbook), " → ")
			l.addError(book, s.Call.Pos, "cycle", "use `foreach` to repeat steps",
				"playbooks call each other in a cycle: "+cycle)
			unusable[s.Call.Playbook] = "cycle"
		default:
			l.addError(book, s.Call.Pos, "callee", "fix that playbook first",
				fmt.Sprintf("the playbook `%s` has errors", s.Call.Playbook))
			unusable[s.Call.Playbook] = "errors"
		}
	})
	upTo := len(checkStages)
	if l.forActiveRun {
		upTo = stagesForActiveRun
	}
	program, problems := runCheckStages(book, l.catalog, upTo, callees)
	if l.forActiveRun {
		problems = fatalProblems(problems)
	}
	for _, p := range problems {
		if p.Code == "unknown-playbook" && slices.ContainsFunc(slices.Sorted(maps.Keys(unusable)),
			func(n string) bool { return strings.HasSuffix(p.Message, "`"+n+"`") }) {
			continue // the cause is already reported
		}
		l.problems = append(l.problems, p)
	}
	l.loadStates[name] = loadStateDone
	if !problems.HasErrors() && len(unusable) == 0 && !slices.Contains(l.invalidNames, name) {
		l.programsByName[name] = program
	}
	return l.programsByName[name]
}

func (l *loader) addError(book *Playbook, pos Pos, code, hint, message string) {
	l.problems = append(l.problems, diagnostic.Diagnostic{
		File: book.File, Line: pos.Line, Column: pos.Column, Severity: "error", Code: code, Message: message, Hint: hint,
	})
}

// TransitiveCallees returns all playbooks that the program reaches by calls, by name.
func (p *Program) TransitiveCallees() []*Program {
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

// CalleeSources returns the files of all playbooks that the program reaches by calls.
func (p *Program) CalleeSources() []SourceFile {
	var out []SourceFile
	for _, callee := range p.TransitiveCallees() {
		out = append(out, SourceFile{File: callee.File, Content: callee.SourceText})
	}
	return out
}

// LoadForRun loads the playbook of a run in progress with its callees. The playbook passed all checks when it was
// selected, so only problems that prevent it from running are errors.
func LoadForRun(main SourceFile, called []SourceFile, catalog Catalog) (*Program, diagnostic.Diagnostics) {
	programs, problems := loadSources(append(slices.Clone(called), main), catalog, true)
	for _, p := range programs {
		if string(p.SourceText) == string(main.Content) && !problems.HasErrors() {
			return p, problems
		}
	}
	return nil, problems
}

// HashWithCallees returns the hash of a playbook: the SHA-256 of its source and, if it calls others, of their sources.
func HashWithCallees(source []byte, called []SourceFile) string {
	sum := sha256.Sum256(source)
	if len(called) == 0 {
		return hex.EncodeToString(sum[:])
	}
	var sums []string
	for _, c := range called {
		one := sha256.Sum256(c.Content)
		sums = append(sums, hex.EncodeToString(one[:]))
	}
	slices.Sort(sums)
	sum = sha256.Sum256([]byte("a Stanch playbook and the playbooks that it calls\n" + hex.EncodeToString(sum[:]) + "\n" +
		strings.Join(sums, "\n")))
	return hex.EncodeToString(sum[:])
}
