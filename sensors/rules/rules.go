// Package rules turns events into detections. Rules come from YAML packs. Their conditions are expr expressions, which
// are compiled and type-checked when the pack is loaded. Each rule contains tests: an event that it matches and one
// that it does not match. LANGUAGE.md describes the pack format.
//
// The package refuses to keep state: a rule sees one event. The agent deduplicates repeated detections, and incidents
// correlate related ones. It also refuses to replace a condition silently: an override can only disable a rule, change
// its severity and confidence, and add exceptions, and every detection says so.
package rules

import (
	"cmp"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
)

// ShippedPacks contains the rule packs that are part of Stanch.
//
//go:embed *.yaml
var ShippedPacks embed.FS

// SupportedKinds lists the kinds of events that a rule can match.
var SupportedKinds = append(slices.Clone(sensors.NodeKinds), sensors.KindKubernetesAudit, sensors.KindCloudAPICall,
	sensors.KindSensorHealth)

// PackSource is a file system with packs. For a directory, only FS is required.
type PackSource struct {
	FS    fs.FS
	Name  string   // of the directory; prefix of the file names in messages
	Files []string // the files to read; default every *.yaml and *.yml
	// SuppressProblems omits warnings about these files; errors are reported anyway. It is set for the shipped packs
	// when a user checks their own pack.
	SuppressProblems bool
}

// ShippedSource returns the source of the packs that are part of Stanch.
func ShippedSource() PackSource { return PackSource{FS: ShippedPacks, Name: "shipped"} }

// Rule is one rule of a pack with its overrides applied.
type Rule struct {
	Name       string              `json:"rule"`
	Aliases    []string            `json:"aliases,omitempty"` // stable rule names of Falco
	Title      string              `json:"title"`
	Kind       sensors.Kind        `json:"on"`
	Condition  string              `json:"condition"`
	Exceptions []*Exception        `json:"exceptions,omitempty"`
	Severity   sensors.Severity    `json:"severity"`
	Namespaces NamespaceSeverities `json:"namespaces,omitempty"` // severities per namespace that differ from Severity
	Confidence float64             `json:"confidence"`
	Objective  sensors.Objective   `json:"objective"`
	Technique  string              `json:"technique"`
	Reason     string              `json:"reason"`
	// Position is where the rule is defined: "file:line".
	Position  string      `json:"at"`
	Disabled  bool        `json:"disabled,omitempty"`
	Overrides []*Override `json:"overrides,omitempty"` // in the order of application
	Tests     []*RuleTest `json:"-"`

	file     *packFile
	nodes    fieldNodes
	compiled *compiledCondition
	original originalSettings // the values in its pack
	counters *counters
}

// originalSettings are the values by the author of a rule, so that a detection can say what an override changed.
type originalSettings struct {
	severity   sensors.Severity
	confidence float64
}

// File returns the name of the file that defines the rule.
func (r *Rule) File() string { return r.file.name }

// Set is a set of loaded rules. Except for its counters it is immutable. It is safe for concurrent use.
type Set struct {
	rules       []*Rule
	byKind      map[sensors.Kind]*kindRules
	testResults []TestResult
	envPool     sync.Pool
}

// LoadShipped loads the packs that are part of Stanch. It returns an error if a pack has a problem.
func LoadShipped() (*Set, error) {
	set, problems := LoadSources(ShippedSource())
	return set, problems.Err()
}

// Load loads every pack in the file systems; see LoadSources.
func Load(systems ...fs.FS) (*Set, diagnostic.Diagnostics) {
	sources := make([]PackSource, len(systems))
	for i, s := range systems {
		sources[i].FS = s
	}
	return LoadSources(sources...)
}

// LoadSources reads packs, compiles the rules, runs their tests and applies the overrides. The set contains the valid
// rules and is never nil. The diagnostics contain the errors of all others.
func LoadSources(sources ...PackSource) (*Set, diagnostic.Diagnostics) {
	l := loadPacks(sources)
	return l.set, l.problems(false)
}

// Lint is like LoadSources, and also returns warnings about rules that are valid but probably not intended.
func Lint(sources ...PackSource) (*Set, diagnostic.Diagnostics) {
	l := loadPacks(sources)
	l.lint()
	return l.set, l.problems(true)
}

// Rules returns the rules in the order of their files, including disabled ones. The caller must not change the slice.
func (s *Set) Rules() []*Rule { return s.rules }

// TestResults returns the results of the tests in the rules and overrides. The caller must not change the slice.
func (s *Set) TestResults() []TestResult { return s.testResults }

// Find returns the rule with this name or, if there is none, with this alias (case-insensitive). It returns nil for an
// unknown name.
func (s *Set) Find(name string) *Rule {
	for _, r := range s.rules {
		if r.Name == name {
			return r
		}
	}
	for _, r := range s.rules {
		if r.hasName(name) {
			return r
		}
	}
	return nil
}

func (r *Rule) hasName(name string) bool {
	return strings.EqualFold(r.Name, name) || slices.ContainsFunc(r.Aliases,
		func(alias string) bool { return strings.EqualFold(alias, name) })
}

// Names returns the names of the rules in alphabetical order.
func (s *Set) Names() []string {
	names := make([]string, 0, len(s.rules))
	for _, r := range s.rules {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return names
}

// problems returns the problems of all files, by file and line.
func (l *loader) problems(advice bool) diagnostic.Diagnostics {
	var out diagnostic.Diagnostics
	for _, f := range l.files {
		if f.suppressProblems && !f.reader.Problems.HasErrors() {
			continue
		}
		out = append(out, f.reader.Problems.Sorted()...)
	}
	if !advice {
		out = out.WithoutWarnings()
	}
	return append(l.readProblems, out...)
}

func (l *loader) reportUnreadable(name string, err error) {
	l.readProblems = append(l.readProblems, diagnostic.Diagnostic{
		File: cmp.Or(name, "."), Line: 1, Column: 1, Severity: "error", Code: "read",
		Message: fmt.Sprintf("cannot be read: %v", err),
	})
}
