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
	"stanch/sensors/yamlnode"
)

// maxExpandedNodes bounds a condition in which every macro is written out: macros of macros multiply.
const maxExpandedNodes = 2000

// macro is a condition with a name. It stands for its syntax tree wherever it is named.
type macro struct {
	name, source  string
	file          *packFile
	key, at       *yaml.Node
	usedNames     map[string]nameUse // names in it
	ownNodes      int                // nodes
	expandedNodes int                // nodes with macros written out; 0 before it is known
	broken        bool
}

// nameUse is a name in an expression: how often, and the character where it first stands.
type nameUse struct{ count, offset int }

// countNames counts the names and the nodes of an expression; nothing where it does not parse.
func countNames(source string) (names map[string]nameUse, nodes int, err error) {
	if len(source) > expression.MaxSourceBytes {
		return nil, 0, nil
	}
	tree, err := parser.Parse(source)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // it is located, and made into a diagnostic by who compiles
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
		if source := f.reader.ReadString(value, yamlnode.Truncate(key.Value, 40)); l.isNameAvailable(f, key) && source != "" {
			l.macros[key.Value] = &macro{name: key.Value, source: source, file: f, key: key, at: value}
		}
	})
}

// compileMacros compiles the macros, those that others use first, so that each mistake is told once and at its place.
func (l *loader) compileMacros() {
	for _, name := range slices.Sorted(maps.Keys(l.macros)) {
		m := l.macros[name]
		names, nodes, err := countNames(m.source)
		if err != nil {
			m.broken = true // compiling says how
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
		m.file.errorf(m.key, "cycle", "write one of them out", "the macro `%s` uses itself: %s", m.name, strings.Join(append(way[i:], m.name), " → "))
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
		return // it was found in a cycle
	}
	done[m.name] = true
	switch {
	case m.expandedNodes > maxExpandedNodes:
		m.broken = true
		m.file.errorf(m.key, "too-large", "use fewer macros in macros", "the macro `%s` has more than %d parts when it is written out", m.name, maxExpandedNodes)
	case m.broken && len(m.usedNames) > 0: // one that it uses
	default:
		m.broken = l.compileCondition(m.file, "the macro `"+m.name+"`", m.source, m.at) == nil
	}
}

// checkExpandable tells why a condition's macros cannot be written out.
func (l *loader) checkExpandable(source string) error {
	names, nodes, err := countNames(source)
	if err != nil {
		return nil //nolint:nilerr // compiling says what is wrong with it
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
		return &expression.Error{Message: fmt.Sprintf("with its macros written out the condition has %d parts, at most %d are allowed", nodes, maxExpandedNodes)}
	}
	return nil
}

type brokenMacroError struct {
	name   string
	offset int
}

func (b *brokenMacroError) Error() string {
	return fmt.Sprintf("the macro `%s` has errors of its own", b.name)
}

// macroPatcher writes macros out. Each use is parsed anew, since a tree is changed by what compiles it.
type macroPatcher struct {
	loader *loader
}

// Visit replaces one name.
func (p *macroPatcher) Visit(node *ast.Node) {
	id, ok := (*node).(*ast.IdentifierNode)
	if !ok || p.loader.macros[id.Value] == nil {
		return
	}
	program, err := expression.Compile(p.loader.macros[id.Value].source, &conditionEnv{}, append(p.loader.compileOptions(), expr.Optimize(false))...)
	if err == nil { // it was compiled before: the name stays unknown otherwise
		ast.Patch(node, program.Node())
	}
}
