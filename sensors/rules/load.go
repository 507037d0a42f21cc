package rules

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/yamlnode"
)

// Limits of one file and of all files.
const (
	maxPackBytes = 1 << 20
	maxPackNodes = 100_000
	maxPackFiles = 1000
)

// packFile is one file of a pack, and its problems.
type packFile struct {
	name             string
	lines            []string
	reader           *yamlnode.Reader
	suppressProblems bool
}

func (f *packFile) errorf(at *yaml.Node, code, hint, format string, args ...any) {
	f.reader.Errorf(yamlnode.PositionOf(at), code, hint, format, args...)
}

func (f *packFile) position(at *yaml.Node) string {
	return fmt.Sprintf("%s:%d", f.name, yamlnode.PositionOf(at).Line)
}

// loader loads packs in stages: read, resolve names, compile, run the tests, apply overrides.
type loader struct {
	files          []*packFile
	readProblems   diagnostic.Diagnostics
	lists          map[string]*namedList
	macros         map[string]*macro
	listExtensions []*listExtension
	rulesByName    map[string]*Rule // by name and alias, in lower case
	validRules     []*Rule
	invalidRules   []*Rule // rules with problems
	overrides      []*Override
	set            *Set
	usedNames      map[string]bool // lists and macros that are used
}

func loadPacks(sources []PackSource) *loader {
	l := &loader{
		lists: map[string]*namedList{}, macros: map[string]*macro{}, rulesByName: map[string]*Rule{},
		usedNames: map[string]bool{},
		set:       &Set{byKind: map[sensors.Kind]*kindRules{}},
	}
	for _, s := range sources {
		l.readSource(s)
	}
	l.extendLists()
	l.compileMacros()
	for _, r := range l.validRules {
		if l.compileRule(r) && l.runTests(r, r.Tests) {
			r.original = originalSettings{r.Severity, r.Confidence}
			l.set.rules = append(l.set.rules, r)
		}
	}
	for _, r := range l.invalidRules {
		l.compileRule(r)
	}
	for _, o := range l.overrides {
		l.applyOverride(o)
	}
	for _, r := range l.set.rules {
		if !r.Disabled {
			l.set.indexRule(r)
		}
	}
	return l
}

func (l *loader) readSource(s PackSource) {
	names := s.Files
	if names == nil {
		entries, err := fs.ReadDir(s.FS, ".")
		if err != nil {
			l.reportUnreadable(s.Name, err)
		}
		for _, e := range entries {
			// Names with a leading dot are editor files, or the directory that the links of a ConfigMap point to.
			if ext := path.Ext(e.Name()); (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	for _, name := range names {
		shown := path.Join(s.Name, name)
		if len(l.files) >= maxPackFiles {
			l.reportUnreadable(shown, fmt.Errorf("more than %d files", maxPackFiles))
			return
		}
		raw, err := readBounded(s.FS, name)
		if err != nil {
			l.reportUnreadable(shown, err)
			continue
		}
		f := &packFile{
			name: shown, lines: strings.Split(string(raw), "\n"), suppressProblems: s.SuppressProblems,
			reader: &yamlnode.Reader{File: shown, ExampleStart: "a pack can have `lists`, `macros`, `rules` and `overrides`"},
		}
		l.files = append(l.files, f)
		root := f.reader.ParseDocument(raw, yamlnode.Limits{MaxBytes: maxPackBytes, MaxNodes: maxPackNodes})
		if root == nil {
			// A file that is empty or consists of comments is valid.
			f.reader.Problems = slices.DeleteFunc(f.reader.Problems,
				func(d diagnostic.Diagnostic) bool { return d.Code == "empty" })
			continue
		}
		if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
			continue
		}
		f.reader.ReadMapping(root, "a pack", l.packFields(f))
	}
}

func readBounded(system fs.FS, name string) ([]byte, error) {
	f, err := system.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxPackBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return raw, nil
}
