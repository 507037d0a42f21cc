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

// Bounds of one file, and of all.
const (
	maxPackBytes = 1 << 20
	maxPackNodes = 100_000
	maxFiles     = 1000
)

// file is one pack's file, and what is wrong with it.
type file struct {
	name  string
	lines []string
	r     *yamlnode.Reader
	quiet bool
}

func (f *file) errorf(at *yaml.Node, code, hint, format string, args ...any) {
	f.r.Errorf(yamlnode.At(at), code, hint, format, args...)
}

func (f *file) place(at *yaml.Node) string { return fmt.Sprintf("%s:%d", f.name, yamlnode.At(at).Line) }

// loader goes through the stages of loading: read, settle names, compile, prove, override.
type loader struct {
	files     []*file
	unread    diagnostic.Diagnostics
	lists     map[string]*list
	macros    map[string]*macro
	appended  []*listAppend
	seen      map[string]*Rule // by name and by alias, in lower case
	parsed    []*Rule
	half      []*Rule // with mistakes
	overrides []*Override
	set       *Set
	used      map[string]bool // lists and macros that something names
}

func load(sources []Source) *loader {
	l := &loader{
		lists: map[string]*list{}, macros: map[string]*macro{}, seen: map[string]*Rule{}, used: map[string]bool{},
		set: &Set{byKind: map[sensors.Kind]*kindRules{}},
	}
	for _, s := range sources {
		l.read(s)
	}
	l.extendLists()
	l.settle()
	for _, r := range l.parsed {
		if l.compile(r) && l.prove(r, r.Tests) {
			r.written = written{r.Severity, r.Confidence}
			l.set.rules = append(l.set.rules, r)
		}
	}
	for _, r := range l.half {
		l.compile(r)
	}
	for _, o := range l.overrides {
		l.override(o)
	}
	for _, r := range l.set.rules {
		if !r.Disabled {
			l.set.index(r)
		}
	}
	return l
}

func (l *loader) read(s Source) {
	names := s.Files
	if names == nil {
		entries, err := fs.ReadDir(s.FS, ".")
		if err != nil {
			l.unreadable(s.Name, err)
		}
		for _, e := range entries {
			// What begins with a dot is an editor's, or the folder that a ConfigMap's links lead to.
			if ext := path.Ext(e.Name()); (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	for _, name := range names {
		shown := path.Join(s.Name, name)
		if len(l.files) >= maxFiles {
			l.unreadable(shown, fmt.Errorf("there are more than %d files", maxFiles))
			return
		}
		raw, err := readBounded(s.FS, name)
		if err != nil {
			l.unreadable(shown, err)
			continue
		}
		f := &file{name: shown, lines: strings.Split(string(raw), "\n"), quiet: s.Quiet, r: &yamlnode.Reader{File: shown, Begin: "a pack has `lists`, `macros`, `rules` and `overrides`"}}
		l.files = append(l.files, f)
		root := f.r.Document(raw, yamlnode.Limits{Bytes: maxPackBytes, Nodes: maxPackNodes})
		if root == nil {
			// Who comments everything out, or has nothing yet, made no mistake.
			f.r.Problems = slices.DeleteFunc(f.r.Problems, func(d diagnostic.Diagnostic) bool { return d.Code == "empty" })
			continue
		}
		if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
			continue
		}
		f.r.Mapping(root, "a pack", l.packFields(f))
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
