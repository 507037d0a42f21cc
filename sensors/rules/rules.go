// Package rules turns events into detections: packs of YAML rules, whose conditions are expr, compiled and
// type-checked when they are loaded, each with an event that fires it and one that does not. LANGUAGE.md tells how
// packs are written.
//
// It refuses to remember: a rule sees one event. What repeats is folded by the node's agent, and what belongs
// together is correlated in the incident. It refuses to replace a condition silently: who overrides a rule can only
// disable it, weigh it otherwise and except from it, and every detection says so.
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

// ShippedPacks holds the packs that Stanch ships.
//
//go:embed *.yaml
var ShippedPacks embed.FS

// SupportedKinds are the kinds of event that a rule may be about.
var SupportedKinds = append(slices.Clone(sensors.NodeKinds), sensors.KindKubernetesAudit, sensors.KindCloudAPICall, sensors.KindSensorHealth)

// PackSource is where packs come from. The zero value of each field but FS is right for a folder.
type PackSource struct {
	FS    fs.FS
	Name  string   // of the folder, before each file's name in what is told to people
	Files []string // these files only; default every *.yaml and *.yml
	// SuppressProblems: only what others write is told to be wrong. The shipped packs are when somebody's own pack is checked.
	SuppressProblems bool
}

// ShippedSource is the packs that Stanch ships.
func ShippedSource() PackSource { return PackSource{FS: ShippedPacks, Name: "shipped"} }

// Rule is one rule of a pack, as it is in force.
type Rule struct {
	Name       string              `json:"rule"`
	Aliases    []string            `json:"aliases,omitempty"` // Falco's stable names of it
	Title      string              `json:"title"`
	Kind       sensors.Kind        `json:"on"`
	Condition  string              `json:"condition"`
	Exceptions []*Exception        `json:"exceptions,omitempty"`
	Severity   sensors.Severity    `json:"severity"`
	Namespaces NamespaceSeverities `json:"namespaces,omitempty"` // severities of namespaces, where another than Severity
	Confidence float64             `json:"confidence"`
	Objective  sensors.Objective   `json:"objective"`
	Technique  string              `json:"technique"`
	Reason     string              `json:"reason"`
	// Position is where it stands, "file:line".
	Position  string      `json:"at"`
	Disabled  bool        `json:"disabled,omitempty"`
	Overrides []*Override `json:"overrides,omitempty"` // in the order in which they took effect
	Tests     []*RuleTest `json:"-"`

	file     *packFile
	nodes    fieldNodes
	compiled *compiledCondition
	original originalSettings // as it stood in its pack
	counters *counters
}

// originalSettings is what a rule's author gave it, so that a detection can say what was overridden.
type originalSettings struct {
	severity   sensors.Severity
	confidence float64
}

// File is the file in which the rule stands.
func (r *Rule) File() string { return r.file.name }

// Set is every loaded rule, ready to evaluate. It is immutable but for its counters, and may be used by many goroutines.
type Set struct {
	rules       []*Rule
	byKind      map[sensors.Kind]*kindRules
	testResults []TestResult
	envPool     sync.Pool
}

// LoadShipped loads the packs that Stanch ships.
func LoadShipped() (*Set, error) {
	set, problems := LoadSources(ShippedSource())
	return set, problems.Err()
}

// Load reads every pack of the file systems; see LoadSources.
func Load(systems ...fs.FS) (*Set, diagnostic.Diagnostics) {
	sources := make([]PackSource, len(systems))
	for i, s := range systems {
		sources[i].FS = s
	}
	return LoadSources(sources...)
}

// LoadSources reads packs, compiles the rules, runs their tests and applies the overrides. The set holds the rules
// that are sound; the diagnostics say what is wrong with the others, all of it at once.
func LoadSources(sources ...PackSource) (*Set, diagnostic.Diagnostics) {
	l := loadPacks(sources)
	return l.set, l.problems(false)
}

// Lint is LoadSources with advice: warnings about what is no mistake and most likely not meant.
func Lint(sources ...PackSource) (*Set, diagnostic.Diagnostics) {
	l := loadPacks(sources)
	l.lint()
	return l.set, l.problems(true)
}

// Rules lists the rules in the order of their files, the disabled too.
func (s *Set) Rules() []*Rule { return s.rules }

// TestResults are what became of the rules' own tests.
func (s *Set) TestResults() []TestResult { return s.testResults }

// Find gives the rule of a name: its own, or a stable name of Falco's that it carries as an alias. Nil if there is none.
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
	return strings.EqualFold(r.Name, name) || slices.ContainsFunc(r.Aliases, func(alias string) bool { return strings.EqualFold(alias, name) })
}

// Names lists the rules' names in order.
func (s *Set) Names() []string {
	names := make([]string, 0, len(s.rules))
	for _, r := range s.rules {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return names
}

// problems are those of all files, in the order of the files and their lines.
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
		File: cmp.Or(name, "."), Line: 1, Column: 1, Severity: "error", Code: "read", Message: fmt.Sprintf("cannot be read: %v", err),
	})
}
