// Package reference holds the reference page of the playbook language to what the code says, and its examples to what
// they do. It refuses to let either drift: the page is written from the grammar, the actions' specs and the examples.
package reference

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/playbooks/recording"
	"stanch/sensors"
	"stanch/sensors/expression"
	"stanch/worker"
	"stanch/worker/simulate"
)

var update = flag.Bool("update", false, "write the page anew")

const (
	page     = "../../playbooks/LANGUAGE.md"
	examples = "../../playbooks/testdata/constructs"
)

func TestTheReferencePageIsWhatTheCodeSays(t *testing.T) {
	got := write(t)
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(got), 0o600))
	}
	want, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "write it anew: go test ./testenv/reference -update")
}

// Each example of the page is valid with the real actions, and runs through the production workflows to its end.
func TestTheExamplesRun(t *testing.T) {
	raw, err := os.ReadFile("../recordings/cryptominer.json")
	require.NoError(t, err)
	recorded, err := recording.Decode(raw)
	require.NoError(t, err)
	for _, name := range exampleNames(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files, err := filepath.Glob(filepath.Join(examples, name, "*.yaml"))
			require.NoError(t, err)
			sources := library.PlaybookSources()
			for _, file := range files {
				if filepath.Base(file) != "fail.yaml" && filepath.Base(file) != "q.yaml" {
					text, err := os.ReadFile(file)
					require.NoError(t, err)
					sources = append(sources, playbooks.SourceFile{File: file, Content: text})
				}
			}
			programs, problems := playbooks.LoadPlaybooks(sources, worker.ActionCatalog())
			require.NoError(t, problems.Err())
			programs = slices.DeleteFunc(programs, func(p *playbooks.Program) bool { return p.Name != "p" })
			require.Len(t, programs, 1)
			result := simulate.Run(t.Context(), name, recorded, simulate.Options{
				Catalog: worker.ActionCatalog(), Timeout: time.Minute,
				NewMatchFunc: func(a activities.Authority) simulate.MatchFunc {
					return worker.NewFixedLibrary(a, programs...).MatchPlaybooks
				},
			})
			require.Empty(t, result.Error)
			if len(result.Playbooks) > 0 {
				require.NotEmpty(t, result.Steps)
			}
		})
	}
}

func exampleNames(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(examples)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// writer writes the page.
type writer struct {
	*testing.T
	strings.Builder
}

func (w *writer) line(format string, args ...any) { fmt.Fprintf(&w.Builder, format+"\n", args...) }

// row writes a table's row; its bars are its own.
func (w *writer) row(cells ...string) {
	for i := range cells {
		cells[i] = strings.ReplaceAll(cells[i], "|", "\\|")
	}
	w.line("| %s |", strings.Join(cells, " | "))
}

func (w *writer) keys(keys []playbooks.GrammarKey) {
	w.row("key", "value", "what it is for")
	w.row("---", "---", "---")
	for _, k := range keys {
		doc := k.Doc
		if k.Required {
			doc += " **(required)**"
		}
		w.row("`"+k.Name+"`", k.Type, doc)
	}
	w.line("")
}

func (w *writer) example(name string) {
	files, err := filepath.Glob(filepath.Join(examples, name, "*.yaml"))
	require.NoError(w, err)
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Base(b), filepath.Base(a)) })
	for _, file := range files {
		if base := filepath.Base(file); base == "fail.yaml" || base == "q.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(w, err)
		w.line("```yaml\n%s```\n", text)
	}
	w.line("What goes wrong, and what is said then: [fail.yaml](testdata/constructs/%[1]s/fail.yaml), [fail.txt](testdata/constructs/%[1]s/fail.txt).\n", name)
}

func write(t *testing.T) string {
	w := &writer{T: t}
	w.line("# The playbook language\n")
	w.line("A playbook says which incidents it handles and what to do about them. This page is written by")
	w.line("`go test ./testenv/reference -update` from the grammar, the actions and the examples that the tests run; edit those.\n")
	w.line("Write one with the help of your editor: `stanch schema playbook > playbook.schema.json`, and begin the file with")
	w.line("`# yaml-language-server: $schema=playbook.schema.json`. `stanch validate` says what is wrong with it, `stanch explain` what it does in")
	w.line("each phase, `stanch simulate` what it would have done, and `stanch test` whether it still does what you want.\n")
	w.line("## A playbook\n")
	w.keys(playbooks.PlaybookKeys)
	w.line("Durations are written `45s`, `15m`, `1h30m`, `1d12h` or `2w`, here as in the configuration and in flags: a day is 24 hours, a week 7 days.\n")
	w.line("### match\n\nAll that is given must hold.\n")
	w.keys(playbooks.MatchKeys)
	w.example("match")
	w.line("### inputs and outputs\n")
	w.keys(playbooks.InputKeys)
	w.example("inputs")
	w.line("### finally\n")
	w.example("finally")
	w.line("## Steps\n\nA step is a mapping with exactly one of these keys, and those that its table names.\n")
	for _, kind := range playbooks.StepKinds() {
		w.line("### %s\n\n`%s:` %s. %s\n", kind.Name, kind.Name, kind.Type, kind.Doc)
		w.keys(kind.Keys)
		if kind.Name == "approval" {
			w.line("The keys of `from`:\n")
			w.keys(playbooks.ApproverKeys)
		}
		if kind.Name != "notify" && kind.Name != "ticket" {
			w.example(kind.Name)
		}
	}
	w.outcomes()
	w.expressions()
	w.actions()
	w.limits()
	return w.String()
}

func (w *writer) outcomes() {
	w.line("## Outcomes\n")
	w.row("outcome", "meaning", "`on_failure` runs", "`on_denied` runs", "outputs can be read")
	w.row("---", "---", "---", "---", "---")
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	for _, o := range playbooks.Outcomes {
		w.row("`"+string(o)+"`", o.Description(), yes(o.RunsOnFailure()), yes(o.RunsOnDenied()), yes(o.HasOutputs()))
	}
	w.line("\nA step with several targets, and a step that holds others, has the worst of their outcomes, which is the later in this table. Where")
	w.line("`on_failure` or `on_denied` ran, what it came to counts instead. The sequence goes on after a step that failed; `stop` ends it.\n")
	w.line("### Outputs of steps that may not have run\n")
	w.line("`NAME.outcome` and `NAME.targets` are always known. Outputs are there only if the outcome says so: reading them where the step may not")
	w.line("have run is a mistake that `stanch validate` names; where it ran and failed, the step that reads them has `failed`, and says so. In texts")
	w.line("for people it says `(unknown: …)` instead. An expression that looks at the outcome too takes care of itself.\n")
	w.example("outcome")
}

func (w *writer) expressions() {
	w.line("## Expressions\n")
	w.line("[expr](https://expr-lang.org/docs/language-definition), compiled and type-checked before anything runs. A value may hold `${expression}`; a")
	w.line("value that is one expression and nothing else keeps its type. `$${` stands for a plain `${`. Known are `incident` (as it was when the playbook")
	w.line("matched), `inputs`, the ids of the steps before, the names of `set`, in a loop its element, and in `until` also `live`, the incident as it is now.\n")
	w.line("Functions: `%s`.\n", strings.Join(expression.Builtins(), "`, `"))
	w.line("The fields of `incident` and `live`:\n")
	w.row("field", "type")
	w.row("---", "---")
	w.fields("incident", reflect.TypeFor[playbooks.Incident](), 0)
	w.line("")
	var objectives []string
	for _, o := range sensors.Objectives {
		objectives = append(objectives, string(o))
	}
	w.line("Objectives: `%s`.\n", strings.Join(objectives, "`, `"))
}

func (w *writer) fields(prefix string, t reflect.Type, deep int) {
	for f := range t.Fields() {
		name := f.Tag.Get("expr")
		if name == "" {
			continue
		}
		kind, inner := typeName(f.Type)
		w.row("`"+prefix+"."+name+"`", kind)
		if inner != nil && deep < 1 && name != "trigger" && name != "playbooks" {
			suffix := ""
			if f.Type.Kind() == reflect.Slice {
				suffix = "[]"
			}
			w.fields(prefix+"."+name+suffix, inner, deep+1)
		}
	}
}

// typeName is a type as people say it, and the struct in it.
func typeName(t reflect.Type) (string, reflect.Type) {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time", nil
	case t.Kind() == reflect.Slice:
		name, inner := typeName(t.Elem())
		return "list of " + name, inner
	case t.Kind() == reflect.Map:
		return "mapping of strings", nil
	case t.Kind() == reflect.Struct:
		return strings.ToLower(t.Name()), t
	case t.Kind() == reflect.Float64:
		return "number", nil
	case t.Kind() == reflect.Bool:
		return "true or false", nil
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return "whole number", nil
	}
	return "string", nil
}

func (w *writer) actions() {
	w.line("## Actions\n\n`stanch actions NAME` also says which permissions each needs.\n")
	catalogue := worker.ActionCatalog()
	for _, verb := range playbooks.Verbs {
		for _, name := range slices.Sorted(maps.Keys(catalogue)) {
			spec := catalogue[name]
			if spec.Verb != verb {
				continue
			}
			w.line("### %s: %s\n\n%s\n", verb, name, spec.Doc)
			kind := fmt.Sprintf("Class `%s`", spec.Class)
			if len(spec.Targets) > 0 {
				kind += ", on " + string(spec.Targets[0])
			}
			switch {
			case spec.Reversible:
				kind += fmt.Sprintf("; a lease of its %s", spec.Facet)
			case verb == playbooks.VerbContain:
				kind += "; cannot be undone"
			}
			w.line("%s.\n", kind)
			w.params("parameter", spec.ParamType(), true)
			w.params("output", spec.OutputType(), false)
		}
	}
}

func (w *writer) params(what string, t reflect.Type, docs bool) {
	if t == nil || t.NumField() == 0 {
		return
	}
	w.row(what, "type", "what it is")
	w.row("---", "---", "---")
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind, _ := typeName(f.Type)
		if f.IsExported() && name != "-" && (name != "" || !docs) {
			bounds := strings.ReplaceAll(strings.ReplaceAll(f.Tag.Get("jsonschema"), "=", " "), ",", ", ")
			if bounds != "" && docs {
				kind += " (" + bounds + ")"
			}
			w.row("`"+name+"`", kind, f.Tag.Get("doc"))
		}
	}
	w.line("")
}

func (w *writer) limits() {
	w.line("## Limits\n")
	w.line("A file has at most %d KiB, %d values, %d levels and %d steps; no anchors, aliases or second documents. A step has at most %d targets, a loop at", playbooks.MaxFileBytes>>10, playbooks.MaxNodes, playbooks.MaxDepth, playbooks.MaxSteps, playbooks.MaxTargets)
	w.line("most %d elements. An expression has at most 4 KiB and 400 nodes, predicates nest at most two deep, and one evaluation makes at most 5,000", playbooks.MaxItems)
	w.line("elements, texts of at most 64 KiB (4 KiB inside of a predicate) and a value of at most 256 KiB. What a run sets has at most 4 MiB together. Calls go at most")
	w.line("8 deep and expand to at most 2,000 steps.")
}
