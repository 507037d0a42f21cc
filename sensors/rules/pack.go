// Package rules turns events into detections: packs of YAML rules, whose conditions are expr, compiled and
// type-checked when they are loaded, each with an event that fires it and one that does not.
//
// It refuses to remember: a rule sees one event. What repeats is folded by the node's agent, and what belongs
// together is correlated in the incident.
package rules

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/vm"
	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/condition"
	"stanch/sensors/diagnostic"
)

// Shipped holds the packs that Stanch ships.
//
//go:embed *.yaml
var Shipped embed.FS

// Rule is one rule of a pack.
type Rule struct {
	Name       string            `yaml:"rule" json:"rule"`
	Aliases    []string          `yaml:"aliases" json:"aliases,omitempty"` // Falco's stable names of it
	Title      string            `yaml:"title" json:"title"`
	On         sensors.Kind      `yaml:"on" json:"on"`
	Condition  string            `yaml:"condition" json:"condition"`
	Exceptions []string          `yaml:"exceptions" json:"exceptions,omitempty"`
	Severity   sensors.Severity  `yaml:"severity" json:"severity"`
	Confidence float64           `yaml:"confidence" json:"confidence"`
	Objective  sensors.Objective `yaml:"objective" json:"objective"`
	Technique  string            `yaml:"technique" json:"technique"`
	Reason     string            `yaml:"reason" json:"reason"`
	Tests      Tests             `yaml:"tests" json:"-"`

	file       string
	pos        map[string]*yaml.Node
	condition  *vm.Program
	exceptions []*vm.Program
}

// Tests are the events that prove a rule.
type Tests struct {
	Fires  map[string]any `yaml:"fires"`
	Silent map[string]any `yaml:"silent"`
}

type pack struct {
	Lists  map[string][]string  `yaml:"lists"`
	Macros map[string]yaml.Node `yaml:"macros"`
	Rules  []yaml.Node          `yaml:"rules"`
}

// maxPackBytes bounds one file.
const maxPackBytes = 1 << 20

// Set is every loaded rule, ready to evaluate. It is immutable and may be used by many goroutines.
type Set struct {
	rules  []*Rule
	byKind map[sensors.Kind][]*Rule
}

// LoadShipped loads the packs that Stanch ships.
func LoadShipped() (*Set, error) {
	set, problems := Load(Shipped)
	return set, problems.Err()
}

// Load reads every *.yaml of the file systems, compiles the rules and runs each rule's own tests. The set holds the
// rules that are sound; the diagnostics say what is wrong with the others.
func Load(sources ...fs.FS) (*Set, diagnostic.Diagnostics) {
	l := &loader{lists: map[string][]string{}, macros: map[string]*macro{}, set: &Set{byKind: map[sensors.Kind][]*Rule{}}, seen: map[string]*Rule{}}
	for _, source := range sources {
		files, err := fs.Glob(source, "*.yaml")
		if err != nil {
			l.errorf(".", nil, "read", "", "%v", err)
		}
		for _, file := range files {
			raw, err := fs.ReadFile(source, file)
			if err != nil {
				l.errorf(file, nil, "read", "", "%v", err)
				continue
			}
			l.parse(file, raw)
		}
	}
	l.settle()
	for _, r := range l.parsed {
		if l.compile(r) && l.prove(r) {
			l.set.rules = append(l.set.rules, r)
			l.set.byKind[r.On] = append(l.set.byKind[r.On], r)
		}
	}
	return l.set, l.problems.Sorted()
}

type loader struct {
	problems diagnostic.Diagnostics
	lists    map[string][]string
	macros   map[string]*macro
	seen     map[string]*Rule // by name and by alias, in lower case
	parsed   []*Rule
	set      *Set
}

func (l *loader) errorf(file string, at *yaml.Node, code, hint, format string, args ...any) {
	d := diagnostic.Diagnostic{File: file, Line: 1, Column: 1, Severity: "error", Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
	if at != nil {
		d.Line, d.Column = at.Line, at.Column
	}
	l.problems = append(l.problems, d)
}

var listName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func (l *loader) parse(file string, raw []byte) {
	if len(raw) > maxPackBytes {
		l.errorf(file, nil, "too-large", "split it", "the pack has %d bytes, at most %d are read", len(raw), maxPackBytes)
		return
	}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	var p pack
	if err := decoder.Decode(&p); err != nil && !errors.Is(err, io.EOF) {
		l.errorf(file, nil, "yaml", "a pack has `lists` and `rules`", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	for name, values := range p.Lists {
		if _, taken := l.lists[name]; taken || !listName.MatchString(name) {
			l.errorf(file, nil, "list", "choose another name", "the list `%s` is defined twice or misnamed", name)
			continue
		}
		l.lists[name] = values
	}
	for name, n := range p.Macros {
		switch {
		case l.macros[name] != nil || l.lists[name] != nil || !listName.MatchString(name):
			l.errorf(file, &n, "macro", "choose another name, in lower case", "the macro `%s` is defined twice, called as a list is, or misnamed", name)
		case n.Kind != yaml.ScalarNode:
			l.errorf(file, &n, "type", "", "the macro `%s` must be a condition", name)
		default:
			l.macros[name] = &macro{name: name, source: n.Value, file: file, at: &n}
		}
	}
	for i := range p.Rules {
		l.rule(file, &p.Rules[i])
	}
}

var ruleKeys = []string{"rule", "aliases", "title", "on", "condition", "exceptions", "severity", "confidence", "objective", "technique", "reason", "tests"}

func (l *loader) rule(file string, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		l.errorf(file, n, "type", "begin with `- rule: NAME`", "a rule must be a mapping")
		return
	}
	r := &Rule{file: file, pos: map[string]*yaml.Node{"": n}}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !slices.Contains(ruleKeys, key.Value) {
			l.errorf(file, key, "unknown-key", diagnostic.DidYouMean(key.Value, ruleKeys), "a rule has no key `%s`", key.Value)
		}
		if _, twice := r.pos[key.Value]; twice {
			l.errorf(file, key, "duplicate-key", "remove one of them", "`%s` is given twice", key.Value)
		}
		r.pos[key.Value] = n.Content[i+1]
	}
	if err := n.Decode(r); err != nil {
		l.errorf(file, n, "type", "", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	before := len(l.problems)
	for _, key := range []string{"rule", "title", "on", "condition", "severity", "confidence", "objective", "technique", "reason", "tests"} {
		if r.pos[key] == nil {
			l.errorf(file, n, "required", "", "rule `%s` has no `%s`", r.Name, key)
		}
	}
	for i, name := range append([]string{r.Name}, r.Aliases...) {
		at := r.pos["rule"]
		if list := r.pos["aliases"]; i > 0 && list != nil && i <= len(list.Content) {
			at = list.Content[i-1]
		}
		if first, twice := l.seen[strings.ToLower(name)]; twice {
			l.errorf(file, at, "duplicate-rule", "choose another name", "a rule called `%s` stands in %s already", name, first.file)
		}
	}
	if r.pos["severity"] != nil && r.Severity.Rank() < 0 {
		l.errorf(file, r.pos["severity"], "value", "info, low, medium, high or critical", "`%s` is not a severity", r.Severity)
	}
	if r.Confidence < 0 || r.Confidence > 1 {
		l.errorf(file, r.pos["confidence"], "range", "", "`confidence` must be from 0 to 1")
	}
	if r.pos["objective"] != nil && !slices.Contains(sensors.Objectives, r.Objective) {
		l.errorf(file, r.pos["objective"], "value", "", "`%s` is not an objective", r.Objective)
	}
	if kinds := append(slices.Clone(sensors.NodeKinds), sensors.KindAudit, sensors.KindCloud, sensors.KindHealth); r.pos["on"] != nil && !slices.Contains(kinds, r.On) {
		l.errorf(file, r.pos["on"], "value", fmt.Sprintf("one of %v", kinds), "`%s` is not a kind of event", r.On)
	}
	if len(l.problems) == before {
		for _, name := range append([]string{r.Name}, r.Aliases...) {
			l.seen[strings.ToLower(name)] = r
		}
		l.parsed = append(l.parsed, r)
	}
}

func (l *loader) compile(r *Rule) bool {
	before := len(l.problems)
	r.condition = l.program(r.file, "rule `"+r.Name+"`", r.Condition, r.pos["condition"])
	for i, source := range r.Exceptions {
		at := r.pos["exceptions"]
		if at != nil && i < len(at.Content) {
			at = at.Content[i]
		}
		r.exceptions = append(r.exceptions, l.program(r.file, "rule `"+r.Name+"`", source, at))
	}
	return len(l.problems) == before
}

// prove runs a rule's own tests.
func (l *loader) prove(r *Rule) bool {
	for name, test := range map[string]map[string]any{"fires": r.Tests.Fires, "silent": r.Tests.Silent} {
		if test == nil {
			l.errorf(r.file, r.pos["tests"], "required", "", "rule `%s` has no test `%s`", r.Name, name)
			return false
		}
		event, err := testEvent(r.On, test)
		if err != nil {
			l.errorf(r.file, r.pos["tests"], "test", "", "rule `%s`, test `%s`: %v", r.Name, name, err)
			return false
		}
		fired, err := r.fires(newEnv(&event))
		if err != nil || fired != (name == "fires") {
			l.errorf(r.file, r.pos["tests"], "test", "", "rule `%s` does not pass its test `%s` (fired: %v, error: %v)", r.Name, name, fired, err)
			return false
		}
	}
	return true
}

func testEvent(kind sensors.Kind, fields map[string]any) (sensors.Event, error) {
	event := sensors.Event{ID: "test", Kind: kind}
	raw, err := json.Marshal(fields)
	if err != nil {
		return event, fmt.Errorf("encode: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&event); err != nil {
		return event, fmt.Errorf("decode: %w", err)
	}
	return event, nil
}

// Rules lists the rules in the order of their files.
func (s *Set) Rules() []*Rule { return s.rules }

// File is where the rule stands.
func (r *Rule) File() string { return r.file }

// program compiles one condition of what is named; nil after a problem.
func (l *loader) program(file, what, source string, at *yaml.Node) *vm.Program {
	var program *vm.Program
	_, err := l.expandedSize(source)
	if err == nil {
		program, err = condition.Compile(source, env{}, l.options()...)
	}
	if err != nil {
		d := diagnostic.Diagnostic{File: file, Severity: "error", Code: "expression", Message: fmt.Sprintf("%s: %v", what, err)}
		d.Line, d.Column = 1, 1
		if at != nil {
			d.Line, d.Column = at.Line, at.Column
			var located *condition.Error
			if errors.As(err, &located) {
				if at.Style == yaml.LiteralStyle || at.Style == yaml.FoldedStyle {
					d.Line += 1 + located.Line
				} else {
					d.Column += located.Offset
				}
			}
		}
		l.problems = append(l.problems, d)
		return nil
	}
	return program
}
