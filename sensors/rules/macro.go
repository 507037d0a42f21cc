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

	"stanch/sensors/condition"
	"stanch/sensors/yamlnode"
)

// maxExpanded bounds a condition in which every macro is written out: macros of macros multiply.
const maxExpanded = 2000

// macro is a condition with a name. It stands for its syntax tree wherever it is named.
type macro struct {
	name, source string
	file         *file
	key, at      *yaml.Node
	uses         map[string]use // names in it
	own          int            // nodes
	expanded     int            // nodes with macros written out; 0 before it is known
	broken       bool
}

// use is a name in an expression: how often, and the character where it first stands.
type use struct{ times, at int }

// namesIn counts the names and the nodes of an expression; nothing where it does not parse.
func namesIn(source string) (names map[string]use, nodes int, err error) {
	if len(source) > condition.MaxBytes {
		return nil, 0, nil
	}
	tree, err := parser.Parse(source)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // it is located, and made into a diagnostic by who compiles
	}
	v := &nameCounter{names: map[string]use{}}
	ast.Walk(&tree.Node, v)
	return v.names, v.nodes, nil
}

type nameCounter struct {
	names map[string]use
	nodes int
}

// Visit counts one node.
func (v *nameCounter) Visit(node *ast.Node) {
	v.nodes++
	if id, ok := (*node).(*ast.IdentifierNode); ok {
		u, again := v.names[id.Value]
		if !again {
			u.at = id.Location().From
		}
		u.times++
		v.names[id.Value] = u
	}
}

func (l *loader) readMacros(f *file, v *yaml.Node) {
	f.named(v, "macros", func(key, value *yaml.Node) {
		if source := f.r.String(value, yamlnode.Clip(key.Value, 40)); l.free(f, key) && source != "" {
			l.macros[key.Value] = &macro{name: key.Value, source: source, file: f, key: key, at: value}
		}
	})
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
		m.file.errorf(m.key, "cycle", "write one of them out", "the macro `%s` uses itself: %s", m.name, strings.Join(append(way[i:], m.name), " → "))
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
		m.expanded = min(m.expanded+m.uses[used].times*inner.expanded, maxExpanded+1)
	}
	if done[m.name] {
		return // it was found in a cycle
	}
	done[m.name] = true
	switch {
	case m.expanded > maxExpanded:
		m.broken = true
		m.file.errorf(m.key, "too-large", "use fewer macros in macros", "the macro `%s` has more than %d parts when it is written out", m.name, maxExpanded)
	case m.broken && len(m.uses) > 0: // one that it uses
	default:
		m.broken = l.check(m.file, "the macro `"+m.name+"`", m.source, m.at) == nil
	}
}

// expandable tells why a condition's macros cannot be written out.
func (l *loader) expandable(source string) error {
	names, nodes, err := namesIn(source)
	if err != nil {
		return nil //nolint:nilerr // compiling says what is wrong with it
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		m := l.macros[name]
		if m == nil {
			continue
		}
		l.used[name] = true
		if m.broken {
			return &brokenMacro{name, names[name].at}
		}
		nodes += names[name].times * m.expanded
	}
	if nodes > maxExpanded {
		return &condition.Error{Message: fmt.Sprintf("with its macros written out the condition has %d parts, at most %d are allowed", nodes, maxExpanded)}
	}
	return nil
}

type brokenMacro struct {
	name string
	at   int
}

func (b *brokenMacro) Error() string {
	return fmt.Sprintf("the macro `%s` has errors of its own", b.name)
}

// macroPatcher writes macros out. Each use is parsed anew, since a tree is changed by what compiles it.
type macroPatcher struct {
	l *loader
}

// Visit replaces one name.
func (p *macroPatcher) Visit(node *ast.Node) {
	id, ok := (*node).(*ast.IdentifierNode)
	if !ok || p.l.macros[id.Value] == nil {
		return
	}
	program, err := condition.Compile(p.l.macros[id.Value].source, &env{}, append(p.l.options(), expr.Optimize(false))...)
	if err == nil { // it was compiled before: the name stays unknown otherwise
		ast.Patch(node, program.Node())
	}
}
