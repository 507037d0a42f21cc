package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/parser"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/expression"
	"stanch/sensors/truncate"
)

// maxExpandedNodes is the maximum size of a condition with all macros expanded, because nested macros multiply.
const maxExpandedNodes = 2000

// macro is a named condition. Its syntax tree replaces its name in other conditions.
type macro struct {
	name, source  string
	file          *packFile
	key, at       *yaml.Node
	usedNames     map[string]nameUse // names in its source
	ownNodes      int                // syntax tree nodes of its source
	expandedNodes int                // nodes with macros expanded; 0 until it is known
	broken        bool
}

// nameUse is the use of a name in an expression: the number of uses, and the offset of the first one in characters.
type nameUse struct{ count, offset int }

// countNames returns the names in an expression and the number of its nodes.
func countNames(source string) (names map[string]nameUse, nodes int, err error) {
	if len(source) > expression.MaxSourceBytes {
		return nil, 0, nil
	}
	tree, err := parser.Parse(source)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // it has a position; the compiler reports it
	}
	v := &nameCounter{names: map[string]nameUse{}}
	ast.Walk(&tree.Node, v)
	return v.names, v.nodes, nil
}

type nameCounter struct {
	names map[string]nameUse
	nodes int
}

// Visit counts one node.
func (v *nameCounter) Visit(node *ast.Node) {
	v.nodes++
	if id, ok := (*node).(*ast.IdentifierNode); ok {
		u, again := v.names[id.Value]
		if !again {
			u.offset = id.Location().From
		}
		u.count++
		v.names[id.Value] = u
	}
}

func (l *loader) readMacros(f *packFile, v *yaml.Node) {
	f.visitNamed(v, "macros", func(key, value *yaml.Node) {
		if source := f.reader.ReadString(value, truncate.Text(key.Value, 40)); l.isNameAvailable(f, key) && source != "" {
			l.macros[key.Value] = &macro{name: key.Value, source: source, file: f, key: key, at: value}
		}
	})
}

// compileMacros compiles the macros in order of their dependencies, so that each problem is reported once and at its
// position.
func (l *loader) compileMacros() {
	for _, name := range slices.Sorted(maps.Keys(l.macros)) {
		m := l.macros[name]
		names, nodes, err := countNames(m.source)
		if err != nil {
			m.broken = true // the compilation reports the problem
		}
		m.usedNames, m.ownNodes = names, nodes
	}
	done := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(l.macros)) {
		l.compileMacro(l.macros[name], nil, done)
	}
}

func (l *loader) compileMacro(m *macro, way []string, done map[string]bool) {
	if done[m.name] {
		return
	}
	if i := slices.Index(way, m.name); i >= 0 {
		m.broken, done[m.name] = true, true
		m.file.errorf(m.key, "cycle", "replace one of them with its condition", "the macro `%s` uses itself: %s", m.name,
			strings.Join(append(way[i:], m.name), " → "))
		return
	}
	m.expandedNodes = m.ownNodes
	for _, used := range slices.Sorted(maps.Keys(m.usedNames)) {
		inner := l.macros[used]
		if inner == nil {
			continue
		}
		l.compileMacro(inner, append(slices.Clone(way), m.name), done)
		m.broken = m.broken || inner.broken
		m.expandedNodes = min(m.expandedNodes+m.usedNames[used].count*inner.expandedNodes, maxExpandedNodes+1)
	}
	if done[m.name] {
		return // it is part of a cycle
	}
	done[m.name] = true
	switch {
	case m.expandedNodes > maxExpandedNodes:
		m.broken = true
		m.file.errorf(m.key, "too-large", "use fewer nested macros", "the macro `%s` has more than %d nodes when expanded",
			m.name, maxExpandedNodes)
	case m.broken && len(m.usedNames) > 0: // caused by a macro that it uses
	default:
		m.broken = l.compileCondition(m.file, "the macro `"+m.name+"`", m.source, m.at) == nil
	}
}

// checkExpandable returns an error if the macros in a condition cannot be expanded.
func (l *loader) checkExpandable(source string) error {
	names, nodes, err := countNames(source)
	if err != nil {
		return nil //nolint:nilerr // the compilation reports it
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		m := l.macros[name]
		if m == nil {
			continue
		}
		l.usedNames[name] = true
		if m.broken {
			return &brokenMacroError{name, names[name].offset}
		}
		nodes += names[name].count * m.expandedNodes
	}
	if nodes > maxExpandedNodes {
		return &expression.Error{
			Message: fmt.Sprintf(
				"with its macros expanded, the condition has %d nodes; the maximum is %d",
				nodes,
				maxExpandedNodes,
			),
		}
	}
	return nil
}

type brokenMacroError struct {
	name   string
	offset int
}

// Error names the macro.
func (b *brokenMacroError) Error() string {
	return fmt.Sprintf("the macro `%s` has errors", b.name)
}

// macroPatcher expands macros. Each use is parsed again, because compilation changes the syntax tree.
type macroPatcher struct {
	loader *loader
}

// Visit expands the node if it is the name of a macro.
func (p *macroPatcher) Visit(node *ast.Node) {
	id, ok := (*node).(*ast.IdentifierNode)
	if !ok || p.loader.macros[id.Value] == nil {
		return
	}
	program, err := expression.Compile(p.loader.macros[id.Value].source, &conditionEnv{}, append(p.loader.compileOptions(),
		expr.Optimize(false))...)
	if err == nil { // on an error the name stays unknown, which is reported
		ast.Patch(node, program.Node())
	}
}
