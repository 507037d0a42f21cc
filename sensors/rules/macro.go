package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/parser"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/condition"
)

// maxExpanded bounds a condition in which every macro is written out: macros of macros multiply.
const maxExpanded = 2000

// macro is a condition with a name. It stands for its syntax tree wherever it is named.
type macro struct {
	name, source string
	file         string
	at           *yaml.Node
	uses         map[string]int // names in it, and how often
	own          int            // nodes
	expanded     int            // nodes with macros written out; 0 before it is known
	broken       bool
}

// namesIn counts the free names and the nodes of an expression; nothing where it does not parse.
func namesIn(source string) (names map[string]int, nodes int, err error) {
	tree, err := parser.Parse(source)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // it is located, and made into a diagnostic by who compiles
	}
	v := &nameCounter{names: map[string]int{}}
	ast.Walk(&tree.Node, v)
	return v.names, v.nodes, nil
}

type nameCounter struct {
	names map[string]int
	nodes int
}

// Visit counts one node.
func (v *nameCounter) Visit(node *ast.Node) {
	v.nodes++
	if id, ok := (*node).(*ast.IdentifierNode); ok {
		v.names[id.Value]++
	}
}

// settle compiles the macros, those that others use first, so that each mistake is told once and at its place.
func (l *loader) settle() {
	for _, name := range slices.Sorted(maps.Keys(l.macros)) {
		m := l.macros[name]
		names, nodes, err := namesIn(m.source)
		if err != nil {
			m.broken = true // compiling says how
		}
		m.uses, m.own = names, nodes
	}
	done := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(l.macros)) {
		l.settleOne(l.macros[name], nil, done)
	}
}

func (l *loader) settleOne(m *macro, way []string, done map[string]bool) {
	if done[m.name] {
		return
	}
	if i := slices.Index(way, m.name); i >= 0 {
		m.broken, done[m.name] = true, true
		l.errorf(m.file, m.at, "cycle", "write one of them out", "the macro `%s` uses itself: %s", m.name, strings.Join(append(way[i:], m.name), " → "))
		return
	}
	m.expanded = m.own
	for _, used := range slices.Sorted(maps.Keys(m.uses)) {
		inner := l.macros[used]
		if inner == nil {
			continue
		}
		l.settleOne(inner, append(slices.Clone(way), m.name), done)
		m.broken = m.broken || inner.broken
		m.expanded = min(m.expanded+m.uses[used]*inner.expanded, maxExpanded+1)
	}
	if done[m.name] {
		return // it was found in a cycle
	}
	done[m.name] = true
	switch {
	case m.expanded > maxExpanded:
		m.broken = true
		l.errorf(m.file, m.at, "too-large", "use fewer macros in macros", "the macro `%s` has more than %d parts when it is written out", m.name, maxExpanded)
	case m.broken && len(m.uses) > 0:
	default:
		if l.program(m.file, "macro `"+m.name+"`", m.source, m.at) == nil {
			m.broken = true
		}
	}
}

// expandedSize is how many nodes a condition has with its macros written out.
func (l *loader) expandedSize(source string) (int, error) {
	names, nodes, err := namesIn(source)
	if err != nil {
		return 0, nil //nolint:nilerr // compiling says what is wrong with it
	}
	for name, n := range names {
		if m := l.macros[name]; m != nil {
			if m.broken {
				return 0, &brokenMacro{name}
			}
			nodes += n * m.expanded
		}
	}
	if nodes > maxExpanded {
		return 0, &condition.Error{Message: fmt.Sprintf("with its macros written out the condition has %d parts, at most %d are allowed", nodes, maxExpanded)}
	}
	return nodes, nil
}

type brokenMacro struct{ name string }

func (b *brokenMacro) Error() string {
	return fmt.Sprintf("the macro `%s` has errors of its own", b.name)
}

// macroPatcher writes macros out. Each use is parsed anew, since a tree is changed by what compiles it.
type macroPatcher struct {
	l       *loader
	problem error
}

// Visit replaces one name.
func (p *macroPatcher) Visit(node *ast.Node) {
	id, ok := (*node).(*ast.IdentifierNode)
	if !ok || p.l.macros[id.Value] == nil {
		return
	}
	program, err := condition.Compile(p.l.macros[id.Value].source, env{}, append(p.l.options(), expr.Optimize(false))...)
	if err != nil {
		p.problem = errors.Join(p.problem, err)
		return
	}
	ast.Patch(node, program.Node())
}
