package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// The results of a mutant.
const (
	resultKilled     = "killed"
	resultTimedOut   = "timed out" // counts as killed
	resultSurvived   = "survived"
	resultNotReached = "not reached" // no test runs the code; counts as survived
)

// mutant is one change of the code.
type mutant struct {
	ID       int    `json:"id"`
	Target   string `json:"target"`
	File     string `json:"file"`
	Line     int    `json:"line"`
	Function string `json:"function"`
	Text     string `json:"text"`   // the source line at which the changed code begins
	Change   string `json:"change"` // the code, and what replaces it
	Result   string `json:"result"`
}

// mutator finds the mutants of one file.
type mutator struct {
	*typedPackage
	target, file string
	src          string
	nextID       *int
	mutants      []mutant
	edits        []edit

	tree     *ast.File
	chosen   []string   // functions that are changed; nil means all
	function string     // name of the function that is walked
	parents  []ast.Node // from the file to the parent of the current node
}

// mutateFile returns the mutants of a file, and its source with all of them behind switches.
func (m *mutator) mutateFile() string {
	for _, d := range m.tree.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		m.function = f.Name.Name
		if f.Recv != nil {
			m.function = strings.TrimPrefix(types.ExprString(f.Recv.List[0].Type), "*") + "." + m.function
		}
		if m.chosen != nil && !slices.Contains(m.chosen, m.function) {
			continue
		}
		m.parents = []ast.Node{f}
		ast.Inspect(f.Body, func(n ast.Node) bool {
			if n == nil {
				m.parents = m.parents[:len(m.parents)-1]
				return true
			}
			m.visit(n)
			m.parents = append(m.parents, n)
			return true
		})
	}
	return render(m.src, m.edits)
}

func (m *mutator) visit(n ast.Node) {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		m.mutateBinary(n)
	case *ast.CallExpr:
		m.mutateTimeCall(n)
	case *ast.ReturnStmt:
		m.mutateResults(n)
	}
	if e, ok := n.(ast.Expr); ok {
		m.mutateCondition(e)
		m.mutateConstant(e)
	}
	if s, ok := n.(ast.Stmt); ok && m.isInList(s) {
		m.removeStatement(s)
	}
	if c, ok := n.(*ast.CaseClause); ok {
		m.removeCaseBody(c)
	}
}

func (m *mutator) parent() ast.Node { return m.parents[len(m.parents)-1] }

// add records a mutant of the code in a node, and returns its number.
func (m *mutator) add(n ast.Node, mutated string) int {
	*m.nextID++
	start := m.offset(n.Pos())
	from := strings.LastIndexByte(m.src[:start], '\n') + 1
	text, _, _ := strings.Cut(m.src[from:], "\n")
	m.mutants = append(m.mutants, mutant{
		ID: *m.nextID, Target: m.target, File: m.file, Line: m.files.Position(n.Pos()).Line, Function: m.function,
		Text: strings.TrimSpace(text), Change: oneLine(m.text(n)) + " → " + oneLine(mutated),
	})
	return *m.nextID
}

func (m *mutator) wrap(n ast.Node, wrap func(inner string) string) {
	m.edits = append(m.edits, edit{m.offset(n.Pos()), m.offset(n.End()), wrap})
}

func (m *mutator) offset(p token.Pos) int { return m.files.Position(p).Offset }

func (m *mutator) text(n ast.Node) string { return m.src[m.offset(n.Pos()):m.offset(n.End())] }

// oneLine returns code on one line, without its end if it is long.
func oneLine(code string) string {
	code = strings.Join(strings.Fields(code), " ")
	const longest = 100
	if r := []rune(code); len(r) > longest {
		return string(r[:longest]) + "…"
	}
	return code
}

// typeText returns the text of a type in the current file, and whether the file can name it.
func (m *mutator) typeText(t types.Type) (string, bool) {
	known := true
	text := types.TypeString(t, func(p *types.Package) string {
		if p == m.types {
			return ""
		}
		for _, i := range m.tree.Imports {
			if strings.Trim(i.Path.Value, `"`) == p.Path() {
				if i.Name != nil {
					return i.Name.Name
				}
				return p.Name()
			}
		}
		known = false
		return p.Name()
	})
	return text, known
}

// results returns the result types of the innermost function around the current node.
func (m *mutator) results() []types.Type {
	var signature *types.Signature
	for _, p := range m.parents {
		switch f := p.(type) {
		case *ast.FuncDecl:
			signature = m.info.Defs[f.Name].Type().(*types.Signature)
		case *ast.FuncLit:
			signature = m.info.TypeOf(f).(*types.Signature)
		}
	}
	var out []types.Type
	for v := range signature.Results().Variables() {
		out = append(out, v.Type())
	}
	return out
}

// isInList reports whether a statement stands in a block or a case, and not in the head of an `if` or `for`.
func (m *mutator) isInList(s ast.Stmt) bool {
	var list []ast.Stmt
	switch p := m.parent().(type) {
	case *ast.BlockStmt:
		list = p.List
	case *ast.CaseClause:
		list = p.Body
	case *ast.CommClause:
		list = p.Body
	case *ast.FuncDecl:
		return false
	}
	return slices.Contains(list, s)
}

func (m *mutator) removal(s ast.Stmt) {
	id := m.add(s, "removed")
	m.wrap(s, func(inner string) string { return fmt.Sprintf("if !mutOn(%d) { %s }", id, inner) })
}
