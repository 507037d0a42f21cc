package architecture_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The limits of what one reader keeps in mind. Only the limit of files applies to tests and their environment: a
// scenario reads from top to bottom.
const (
	maxFileLines       = 400
	maxFunctionLines   = 60
	maxParameters      = 5
	maxFilesOfPackages = 25
)

// The reasons of sizeExceptions.
const (
	oneFilePerCommand = "one file for each command"
	declaration       = "a command's help, flags and function are one declaration"
	table             = "a literal table: a line for each case"
	foreignSignature  = "the signature is the library's"
	scanner           = "one scan whose cases share its position"
	language          = "the stages of one language share its syntax tree; a part of it has no meaning alone"
)

// sizeExceptions are the places above a limit, with the reason. An exception that is no longer needed is an error.
var sizeExceptions = map[string]string{
	"stanch/cmd/stanch": oneFilePerCommand,
	"stanch/playbooks":  language,
	"cmd/stanch-sensor/baseline.go baselineCommand":      declaration,
	"cmd/stanch-sensor/main.go rootCommand":              declaration,
	"cmd/stanch/actions.go actionsCommand":               declaration,
	"cmd/stanch/cert.go certCommand":                     declaration,
	"cmd/stanch/forward.go forwardCommand":               declaration,
	"cmd/stanch/playbooks.go playbooksCommand":           declaration,
	"cmd/stanch/rules_run_tests.go rulesTestCommand":     declaration,
	"playbooks/grammar.go StepKinds":                     table,
	"playbooks/testspec/parse.go testFields":             table,
	"playbooks/testspec/rewrite_flow.go findFlowListEnd": scanner,
	"sensors/probe/decode.go decodeRecord":               table,
	"sensors/probe/sensitive.go sensitiveClass":          table,
	"sensors/rules/fields.go textField":                  table,
	"sensors/rules/fields_api.go requestTextField":       table,
	"sensors/yamlnode/field.go ListField":                "two of its parameters are functions, which read best as arguments",
	"worker/metrics/temporal.go countStartedIncidents":   foreignSignature,
}

// oversized returns the places of the project above a limit, each with its size.
func oversized(t *testing.T, root string) map[string]string {
	t.Helper()
	out, files := map[string]string{}, map[string]int{}
	read := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") ||
			strings.HasSuffix(path, "_bpfel.go") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		read++
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if lines := set.File(file.Pos()).LineCount(); lines > maxFileLines {
			out[name] = fmt.Sprintf("%d lines", lines)
		}
		if strings.HasSuffix(name, "_test.go") || isIn(name, "testenv") {
			return nil
		}
		files[filepath.Dir(name)]++
		for function, size := range oversizedFunctions(set, file) {
			out[name+" "+function] = size
		}
		return nil
	}))
	require.Greater(t, read, 500, "no files were read")
	for dir, n := range files {
		if n > maxFilesOfPackages {
			out["stanch/"+dir] = fmt.Sprintf("%d files", n)
		}
	}
	return out
}

func oversizedFunctions(set *token.FileSet, file *ast.File) map[string]string {
	out := map[string]string{}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1; lines > maxFunctionLines {
			out[f.Name.Name] = fmt.Sprintf("%d lines", lines)
		}
		if n := f.Type.Params.NumFields(); n > maxParameters {
			out[f.Name.Name] = fmt.Sprintf("%d parameters", n)
		}
	}
	return out
}

func TestFilesFunctionsAndPackagesAreSmall(t *testing.T) {
	found := oversized(t, filepath.Join("..", ".."))
	var wrong []string
	for place, size := range found {
		if sizeExceptions[place] == "" {
			wrong = append(wrong, fmt.Sprintf("%s: %s; split it, or state the reason in sizeExceptions", place, size))
		}
	}
	for place := range sizeExceptions {
		if found[place] == "" {
			wrong = append(wrong, place+": it is within the limits; remove it from sizeExceptions")
		}
	}
	slices.Sort(wrong)
	require.Empty(t, wrong)
}

func TestOversizedFunctionIsFound(t *testing.T) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "x.go", "package x\n\nfunc long() {\n"+strings.Repeat("\n", 58)+
		"}\n\nfunc wide(a, b, c int, d, e, f string) {}\n\nfunc small(a, b, c, d, e int) {}\n", 0)
	require.NoError(t, err)
	require.Empty(t, oversizedFunctions(set, file)["long"], "60 lines are allowed")
	require.Equal(t, map[string]string{"wide": "6 parameters"}, oversizedFunctions(set, file))
	file, err = parser.ParseFile(set, "y.go", "package x\n\nfunc long() {\n"+strings.Repeat("\n", 59)+"}\n", 0)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"long": "61 lines"}, oversizedFunctions(set, file))
}
