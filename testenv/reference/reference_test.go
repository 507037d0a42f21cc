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

var updateFlag = flag.Bool("update", false, "write the page anew")

const (
	pagePath    = "../../playbooks/LANGUAGE.md"
	examplesDir = "../../playbooks/testdata/constructs"
)

func TestTheReferencePageIsWhatTheCodeSays(t *testing.T) {
	got := renderPage(t)
	if *updateFlag {
		require.NoError(t, os.WriteFile(pagePath, []byte(got), 0o600))
	}
	want, err := os.ReadFile(pagePath)
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
			files, err := filepath.Glob(filepath.Join(examplesDir, name, "*.yaml"))
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
	entries, err := os.ReadDir(examplesDir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// pageWriter writes the page.
type pageWriter struct {
	*testing.T
	strings.Builder
}

func (w *pageWriter) writeLine(format string, args ...any) {
	fmt.Fprintf(&w.Builder, format+"\n", args...)
}

// writeRow writes a table's row; its bars are its own.
func (w *pageWriter) writeRow(cells ...string) {
	for i := range cells {
		cells[i] = strings.ReplaceAll(cells[i], "|", "\\|")
	}
	w.writeLine("| %s |", strings.Join(cells, " | "))
}

func (w *pageWriter) writeKeys(keys []playbooks.GrammarKey) {
	w.writeRow("key", "value", "what it is for")
	w.writeRow("---", "---", "---")
	for _, k := range keys {
		doc := k.Doc
		if k.Required {
			doc += " **(required)**"
		}
		w.writeRow("`"+k.Name+"`", k.Type, doc)
	}
	w.writeLine("")
}

func (w *pageWriter) writeExample(name string) {
	files, err := filepath.Glob(filepath.Join(examplesDir, name, "*.yaml"))
	require.NoError(w, err)
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Base(b), filepath.Base(a)) })
	for _, file := range files {
		if base := filepath.Base(file); base == "fail.yaml" || base == "q.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(w, err)
		w.writeLine("```yaml\n%s```\n", text)
	}
	w.writeLine("What goes wrong, and what is said then: [fail.yaml](testdata/constructs/%[1]s/fail.yaml), [fail.txt](testdata/constructs/%[1]s/fail.txt).\n", name)
}

func renderPage(t *testing.T) string {
	w := &pageWriter{T: t}
	w.writeLine("# The playbook language\n")
	w.writeLine("A playbook says which incidents it handles and what to do about them. This page is written by")
	w.writeLine("`go test ./testenv/reference -update` from the grammar, the actions and the examples that the tests run; edit those.\n")
	w.writeLine("Write one with the help of your editor: `stanch schema playbook > playbook.schema.json`, and begin the file with")
	w.writeLine("`# yaml-language-server: $schema=playbook.schema.json`. `stanch validate` says what is wrong with it, `stanch explain` what it does in")
	w.writeLine("each phase, `stanch simulate` what it would have done, and `stanch test` whether it still does what you want.\n")
	w.writeLine("## A playbook\n")
	w.writeKeys(playbooks.PlaybookKeys)
	w.writeLine("Durations are written `45s`, `15m`, `1h30m`, `1d12h` or `2w`, here as in the configuration and in flags: a day is 24 hours, a week 7 days.\n")
	w.writeLine("### match\n\nAll that is given must hold.\n")
	w.writeKeys(playbooks.MatchKeys)
	w.writeExample("match")
	w.writeLine("### inputs and outputs\n")
	w.writeKeys(playbooks.InputKeys)
	w.writeExample("inputs")
	w.writeLine("### finally\n")
	w.writeExample("finally")
	w.writeLine("## Steps\n\nA step is a mapping with exactly one of these keys, and those that its table names.\n")
	for _, kind := range playbooks.StepKinds() {
		w.writeLine("### %s\n\n`%s:` %s. %s\n", kind.Name, kind.Name, kind.Type, kind.Doc)
		w.writeKeys(kind.Keys)
		if kind.Name == "approval" {
			w.writeLine("The keys of `from`:\n")
			w.writeKeys(playbooks.ApproverKeys)
		}
		if kind.Name != "notify" && kind.Name != "ticket" {
			w.writeExample(kind.Name)
		}
	}
	w.writeOutcomes()
	w.writeExpressions()
	w.writeActions()
	w.writeLimits()
	return w.String()
}

func (w *pageWriter) writeOutcomes() {
	w.writeLine("## Outcomes\n")
	w.writeRow("outcome", "meaning", "`on_failure` runs", "`on_denied` runs", "outputs can be read")
	w.writeRow("---", "---", "---", "---", "---")
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	for _, o := range playbooks.Outcomes {
		w.writeRow("`"+string(o)+"`", o.Description(), yes(o.RunsOnFailure()), yes(o.RunsOnDenied()), yes(o.HasOutputs()))
	}
	w.writeLine("\nA step with several targets, and a step that holds others, has the worst of their outcomes, which is the later in this table. Where")
	w.writeLine("`on_failure` or `on_denied` ran, what it came to counts instead. The sequence goes on after a step that failed; `stop` ends it.\n")
	w.writeLine("### Outputs of steps that may not have run\n")
	w.writeLine("`NAME.outcome` and `NAME.targets` are always known. Outputs are there only if the outcome says so: reading them where the step may not")
	w.writeLine("have run is a mistake that `stanch validate` names; where it ran and failed, the step that reads them has `failed`, and says so. In texts")
	w.writeLine("for people it says `(unknown: …)` instead. An expression that looks at the outcome too takes care of itself.\n")
	w.writeExample("outcome")
}

func (w *pageWriter) writeExpressions() {
	w.writeLine("## Expressions\n")
	w.writeLine("[expr](https://expr-lang.org/docs/language-definition), compiled and type-checked before anything runs. A value may hold `${expression}`; a")
	w.writeLine("value that is one expression and nothing else keeps its type. `$${` stands for a plain `${`. Known are `incident` (as it was when the playbook")
	w.writeLine("matched), `inputs`, the ids of the steps before, the names of `set`, in a loop its element, and in `until` also `live`, the incident as it is now.\n")
	w.writeLine("Functions: `%s`.\n", strings.Join(expression.Builtins(), "`, `"))
	w.writeLine("The fields of `incident` and `live`:\n")
	w.writeRow("field", "type")
	w.writeRow("---", "---")
	w.writeFields("incident", reflect.TypeFor[playbooks.Incident](), 0)
	w.writeLine("")
	var objectives []string
	for _, o := range sensors.Objectives {
		objectives = append(objectives, string(o))
	}
	w.writeLine("Objectives: `%s`.\n", strings.Join(objectives, "`, `"))
}

func (w *pageWriter) writeFields(prefix string, t reflect.Type, deep int) {
	for f := range t.Fields() {
		name := f.Tag.Get("expr")
		if name == "" {
			continue
		}
		kind, inner := typeName(f.Type)
		w.writeRow("`"+prefix+"."+name+"`", kind)
		if inner != nil && deep < 1 && name != "trigger" && name != "playbooks" {
			suffix := ""
			if f.Type.Kind() == reflect.Slice {
				suffix = "[]"
			}
			w.writeFields(prefix+"."+name+suffix, inner, deep+1)
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

func (w *pageWriter) writeActions() {
	w.writeLine("## Actions\n\n`stanch actions NAME` also says which permissions each needs.\n")
	catalogue := worker.ActionCatalog()
	for _, verb := range playbooks.Verbs {
		for _, name := range slices.Sorted(maps.Keys(catalogue)) {
			spec := catalogue[name]
			if spec.Verb != verb {
				continue
			}
			w.writeLine("### %s: %s\n\n%s\n", verb, name, spec.Doc)
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
			w.writeLine("%s.\n", kind)
			w.writeParams("parameter", spec.ParamType(), true)
			w.writeParams("output", spec.OutputType(), false)
		}
	}
}

func (w *pageWriter) writeParams(what string, t reflect.Type, docs bool) {
	if t == nil || t.NumField() == 0 {
		return
	}
	w.writeRow(what, "type", "what it is")
	w.writeRow("---", "---", "---")
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind, _ := typeName(f.Type)
		if f.IsExported() && name != "-" && (name != "" || !docs) {
			bounds := strings.ReplaceAll(strings.ReplaceAll(f.Tag.Get("jsonschema"), "=", " "), ",", ", ")
			if bounds != "" && docs {
				kind += " (" + bounds + ")"
			}
			w.writeRow("`"+name+"`", kind, f.Tag.Get("doc"))
		}
	}
	w.writeLine("")
}

func (w *pageWriter) writeLimits() {
	w.writeLine("## Limits\n")
	w.writeLine("A file has at most %d KiB, %d values, %d levels and %d steps; no anchors, aliases or second documents. A step has at most %d targets, a loop at", playbooks.MaxFileBytes>>10, playbooks.MaxNodes, playbooks.MaxDepth, playbooks.MaxSteps, playbooks.MaxTargets)
	w.writeLine("most %d elements. An expression has at most 4 KiB and 400 nodes, predicates nest at most two deep, and one evaluation makes at most 5,000", playbooks.MaxItems)
	w.writeLine("elements, texts of at most 64 KiB (4 KiB inside of a predicate) and a value of at most 256 KiB. What a run sets has at most 4 MiB together. Calls go at most")
	w.writeLine("8 deep and expand to at most 2,000 steps.")
}
