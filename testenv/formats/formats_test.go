// Package formats lists every name that Stanch puts on a wire or on a disk, and compares the list with formats.txt.
// Formats are compatible from one version to the next, so a name that disappears from the list, or changes, breaks
// whatever an older Stanch stored. It refuses to judge: a changed list is accepted by a person, with -update.
package formats_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/bpf"
	"stanch/workflows/budget"
	"stanch/workflows/chatmessage"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

var update = flag.Bool("update", false, "write formats.txt again")

// products are the directories whose names leave the process. Test environments store nothing that must be read later.
var products = []string{"bpf", "sensors", "playbooks", "activities", "workflows", "worker", "cmd"}

func TestWireAndDiskNamesAreListed(t *testing.T) {
	is := listFormats(t)
	if *update {
		require.NoError(t, os.WriteFile("formats.txt", []byte(is), 0o600))
	}
	want, err := os.ReadFile("formats.txt")
	require.NoError(t, err)
	require.Equal(
		t,
		string(want),
		is,
		"a name on a wire or on a disk changed: an older Stanch's data may not be readable; if that is meant, run: go test ./testenv/formats -update",
	)
}

func listFormats(t *testing.T) string {
	t.Helper()
	var structs, constants, metrics, files []string
	for _, source := range parseProducts(t) {
		structs = append(structs, taggedStructs(source)...)
		constants = append(constants, stringConstants(source)...)
		metrics = append(metrics, metricNames(source)...)
		files = append(files, fileNames(source)...)
	}
	var out strings.Builder
	section := func(title string, lines []string) {
		sort.Strings(lines)
		fmt.Fprintf(&out, "# %s\n%s\n\n", title, strings.Join(slices.Compact(lines), "\n"))
	}
	section("Temporal workflow types", workflowTypes())
	section("Temporal activity types", activityTypes())
	section("eBPF maps and programs (the pinned ones outlive the sensor)", kernelNames(t))
	section("String constants: signals, queries, queues, purposes, annotations, labels, states, outcomes", constants)
	section("Metrics", metrics)
	section("Files and folders", files)
	section("Fields of JSON, YAML and expressions", structs)
	return strings.TrimSpace(out.String()) + "\n"
}

type sourceFile struct {
	dir    string // from the root, with slashes
	syntax *ast.File
}

func parseProducts(t *testing.T) []sourceFile {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []sourceFile
	for _, product := range products {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, product), func(path string, entry os.DirEntry,
			err error,
		) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				strings.HasSuffix(path, "_bpfel.go") || strings.HasSuffix(path, ".pb.go") {
				return err
			}
			syntax, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			dir, err := filepath.Rel(root, filepath.Dir(path))
			out = append(out, sourceFile{filepath.ToSlash(dir), syntax})
			return err
		}))
	}
	return out
}

// wireTags are the struct tags that name something outside of the process.
var wireTags = []string{"json", "yaml", "expr", "mapstructure"}

// taggedStructs returns a line for each field with a tag, and for each exported field without one next to such a field:
// encoders use its Go name.
func taggedStructs(source sourceFile) []string {
	var out []string
	ast.Inspect(source.syntax, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		ast.Inspect(spec.Type, func(n ast.Node) bool {
			if structure, ok := n.(*ast.StructType); ok {
				out = append(out, taggedFields(source.dir+"."+spec.Name.Name, structure)...)
			}
			return true
		})
		return false
	})
	return out
}

func taggedFields(owner string, structure *ast.StructType) []string {
	var out, untagged []string
	for _, field := range structure.Fields.List {
		var tags []string
		if field.Tag != nil {
			raw, _ := strconv.Unquote(field.Tag.Value)
			for _, name := range wireTags {
				if value, ok := reflect.StructTag(raw).Lookup(name); ok {
					tags = append(tags, fmt.Sprintf("%s:%q", name, value))
				}
			}
		}
		if len(tags) > 0 {
			out = append(out, owner+" "+strings.Join(tags, " "))
			continue
		}
		for _, name := range field.Names {
			if name.IsExported() {
				untagged = append(untagged, owner+" untagged "+name.Name)
			}
		}
	}
	if len(out) == 0 {
		return nil
	}
	return append(out, untagged...)
}

// stringConstants returns the package-level string constants that are names, which sentences are not.
func stringConstants(source sourceFile) []string {
	var out []string
	for _, declaration := range source.syntax.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok || general.Tok != token.CONST {
			continue
		}
		for _, spec := range general.Specs {
			for _, value := range spec.(*ast.ValueSpec).Values {
				if text, ok := literal(value); ok && text != "" && !strings.ContainsAny(text, " \n%") {
					out = append(out, source.dir+" "+text)
				}
			}
		}
	}
	return out
}

var metricName = regexp.MustCompile(`^stanch_[a-z_]+$`)

func metricNames(source sourceFile) []string {
	var out []string
	ast.Inspect(source.syntax, func(n ast.Node) bool {
		if text, ok := literal(n); ok && metricName.MatchString(text) {
			out = append(out, text)
		}
		return true
	})
	return out
}

// fileNames returns the constant parts of the paths that are built.
func fileNames(source sourceFile) []string {
	var out []string
	ast.Inspect(source.syntax, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		function, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || function.Sel.Name != "Join" {
			return true
		}
		if of, ok := function.X.(*ast.Ident); !ok || of.Name != "filepath" {
			return true
		}
		for _, argument := range call.Args {
			if text, ok := literal(argument); ok {
				out = append(out, source.dir+" "+text)
			}
		}
		return true
	})
	return out
}

func literal(n ast.Node) (string, bool) {
	basic, ok := n.(*ast.BasicLit)
	if !ok || basic.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(basic.Value)
	return text, err == nil
}

func workflowTypes() []string {
	var out []string
	for _, function := range []any{
		budget.Budget, (*incident.Workflows)(nil).Incident, (*lease.Workflows)(nil).Lease,
		(*playbook.Workflows)(nil).Playbook, chatmessage.ChatMessage,
	} {
		name := strings.TrimSuffix(runtime.FuncForPC(reflect.ValueOf(function).Pointer()).Name(), "-fm")
		out = append(out, name[strings.LastIndex(name, ".")+1:])
	}
	return append(out, "activity "+incident.MatchPlaybooksActivity, "activity "+incident.MatchManualRequestActivity)
}

// activityTypes returns the methods that a worker registers: they take a context and return an error.
func activityTypes() []string {
	var out []string
	kind := reflect.TypeFor[*activities.Activities]()
	for method := range kind.Methods() {
		if f := method.Type; f.NumIn() > 1 && f.In(1).String() == "context.Context" && f.NumOut() > 0 &&
			f.Out(f.NumOut()-1).String() == "error" {
			out = append(out, method.Name)
		}
	}
	return out
}

func kernelNames(t *testing.T) []string {
	t.Helper()
	lock, err := bpf.LoadLock()
	require.NoError(t, err)
	observe, err := bpf.LoadObserve()
	require.NoError(t, err)
	var out []string
	for name := range lock.Maps {
		out = append(out, "lock map "+name)
	}
	for name := range lock.Programs {
		out = append(out, "lock program "+name)
	}
	for name := range observe.Maps {
		out = append(out, "observe map "+name)
	}
	for name := range observe.Programs {
		out = append(out, "observe program "+name)
	}
	return out
}
