package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/yamlnode"
)

// warn gives advice at a place.
func (f *file) warn(at *yaml.Node, code, hint, format string, args ...any) {
	pos := yamlnode.At(at)
	f.r.Problems = append(f.r.Problems, diagnostic.Diagnostic{
		File: f.name, Line: pos.Line, Column: pos.Column, Severity: "warning", Code: code, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// advise looks for what is no mistake and most likely not meant, in the files that somebody asked about.
func (l *loader) advise() {
	for _, r := range l.set.rules {
		if r.file.quiet {
			continue
		}
		l.adviseWeight(r)
		l.adviseKind(r)
		l.adviseShadow(r)
	}
	for _, r := range l.set.rules {
		for _, e := range r.Exceptions {
			if f := l.fileOf(e.At); f != nil && !f.quiet {
				adviseException(f, e)
			}
		}
	}
	for _, name := range keysOf(l.lists) {
		if one := l.lists[name]; !one.file.quiet && !l.used[name] {
			one.file.warn(one.at, "unused", "remove it", "nothing uses the list `%s`", name)
		}
	}
	for _, name := range keysOf(l.macros) {
		if one := l.macros[name]; !one.file.quiet && !l.used[name] {
			one.file.warn(one.key, "unused", "remove it", "nothing uses the macro `%s`", name)
		}
	}
}

func (l *loader) fileOf(at string) *file {
	for _, f := range l.files {
		if strings.HasPrefix(at, f.name+":") {
			return f
		}
	}
	return nil
}

func (l *loader) adviseWeight(r *Rule) {
	highest := r.written.severity
	for _, s := range r.Namespaces {
		if s.Rank() > highest.Rank() {
			highest = s
		}
	}
	if highest.Rank() >= sensors.SeverityHigh.Rank() && r.written.confidence < 0.5 {
		r.file.warn(r.nodes["confidence"], "unsure", "lower the severity, or narrow the condition until the rule is surer",
			"`%s` has the severity %s and is less than half sure of itself", r.Name, highest)
	}
	negated := &negationFinder{}
	ast.Walk(&r.condition.tree, negated)
	if len(r.Exceptions) == 0 && highest.Rank() >= sensors.SeverityHigh.Rank() && r.written.confidence < 0.7 && !negated.found {
		r.file.warn(r.nodes[""], "no-exception", "say in `exceptions` who does this rightly: the workload, the image, the program",
			"`%s` has the severity %s, is not sure of itself and excepts nobody", r.Name, highest)
	}
}

// negationFinder tells whether a condition leaves something out itself.
type negationFinder struct{ found bool }

// Visit looks at one node.
func (v *negationFinder) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.UnaryNode:
		v.found = v.found || n.Operator == "!" || n.Operator == "not"
	case *ast.BinaryNode:
		v.found = v.found || n.Operator == "!="
	case *ast.BuiltinNode:
		v.found = v.found || n.Name == "none"
	}
}

// carried are the kinds of event that have a value in a group of fields, where not all have.
func carried() map[string][]sensors.Kind {
	elsewhere := []sensors.Kind{sensors.KindAudit, sensors.KindCloud, sensors.KindHealth}
	calls := []sensors.Kind{
		sensors.KindDelete, sensors.KindChmod, sensors.KindUnix, sensors.KindOpen, sensors.KindRawSocket, sensors.KindMount, sensors.KindNamespace, sensors.KindTrace,
		sensors.KindBPF, sensors.KindURing, sensors.KindModule, sensors.KindListen, sensors.KindDNS, sensors.KindConnect,
	}
	return map[string][]sensors.Kind{
		"network":                  append([]sensors.Kind{sensors.KindConnect, sensors.KindListen, sensors.KindDNS, sensors.KindRawSocket}, elsewhere...),
		"network.domain":           append([]sensors.Kind{sensors.KindDNS}, elsewhere...),
		"file":                     append([]sensors.Kind{sensors.KindOpen, sensors.KindDelete, sensors.KindChmod, sensors.KindUnix, sensors.KindMount, sensors.KindModule, sensors.KindTrace}, elsewhere...),
		"call":                     append(calls, elsewhere...),
		"exit_code":                {sensors.KindExit},
		"count":                    append([]sensors.Kind{sensors.KindBurst}, elsewhere...),
		"baseline.new_exe":         {sensors.KindExec},
		"baseline.new_destination": {sensors.KindConnect, sensors.KindDNS},
		"actor":                    elsewhere,
		"audit":                    {sensors.KindAudit},
		"cloud":                    {sensors.KindCloud},
	}
}

// adviseKind finds fields that no event of the rule's kind has a value in.
func (l *loader) adviseKind(r *Rule) {
	paths := &pathFinder{}
	ast.Walk(&r.condition.tree, paths)
	groups := carried()
	for _, group := range keysOf(groups) {
		if slices.Contains(groups[group], r.On) {
			continue
		}
		i := slices.IndexFunc(paths.found, func(p string) bool { return p == group || strings.HasPrefix(p, group+".") })
		if i < 0 || strings.Contains(group, ".") && !slices.Contains(groups[strings.Split(group, ".")[0]], r.On) && groups[strings.Split(group, ".")[0]] != nil {
			continue
		}
		r.file.warn(r.nodes["condition"], "never", fmt.Sprintf("`%s` has a value in events of the kinds %s", group, join(groups[group])),
			"`%s` reads `%s`, which is always empty in events of the kind `%s`", r.Name, paths.found[i], r.On)
	}
}

func join[T ~string](words []T) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = string(w)
	}
	return strings.Join(out, ", ")
}

// pathFinder collects the fields that an expression reads, the longest path of each last.
type pathFinder struct{ found []string }

// Visit looks at one node.
func (p *pathFinder) Visit(node *ast.Node) {
	if path := fieldPath(*node); path != "" {
		p.found = append(p.found, path)
	}
}

// adviseShadow finds a rule of which another fires on every event too, and weighs no less.
func (l *loader) adviseShadow(r *Rule) {
	mine := conjuncts(r.condition.tree)
	for _, other := range l.set.rules {
		if other == r || other.On != r.On || other.Disabled || len(other.Exceptions) > 0 {
			continue
		}
		theirs := conjuncts(other.condition.tree)
		covers := !slices.ContainsFunc(theirs, func(c string) bool { return !slices.Contains(mine, c) })
		same := len(theirs) == len(mine)
		if covers && (same || other.written.severity.Rank() >= r.written.severity.Rank() && other.written.confidence >= r.written.confidence) && (!same || !l.before(r, other)) {
			r.file.warn(r.nodes["condition"], "shadowed", "remove it, or narrow the other",
				"`%s` at %s fires on every event on which `%s` does, and weighs no less", other.Name, other.At, r.Name)
		}
	}
}

// before tells whether a rule stands before another.
func (l *loader) before(r, other *Rule) bool {
	return slices.Index(l.set.rules, r) < slices.Index(l.set.rules, other)
}

// conjuncts are the parts of a condition that all have to hold.
func conjuncts(node ast.Node) []string {
	if b, ok := node.(*ast.BinaryNode); ok && (b.Operator == "&&" || b.Operator == "and") {
		return append(conjuncts(b.Left), conjuncts(b.Right)...)
	}
	return []string{node.String()}
}

// adviseException looks for an exception that an attacker can make hold.
func adviseException(f *file, e *Exception) {
	if e.check != nil {
		paths := &pathFinder{}
		ast.Walk(&e.check.tree, paths)
		for _, forged := range []struct{ path, hint string }{
			{"process.name", "`exe` and `process.exe` are the kernel's word"},
			{"process.args", "`exe` and `process.exe` are the kernel's word"},
			{"command", "`exe` and `process.exe` are the kernel's word"},
		} {
			// What only narrows another check harms nobody; alone it lets everybody pass.
			if slices.Contains(paths.found, forged.path) && !e.who() && !slices.ContainsFunc(paths.found, trusted) {
				f.warn(e.node, "forgeable", forged.hint, "the exception rests on `%s`, which a process can set as it likes", forged.path)
			}
		}
	}
	pinned := slices.ContainsFunc(e.Image, func(p string) bool { return splitImage(p).digest != "" })
	if (len(e.Image) > 0 || len(e.Labels) > 0 || e.Workload != (Workload{})) && len(e.Namespace) == 0 && !pinned && e.When == "" {
		f.warn(e.node, "wide", "add the `namespace`, or a digest to the image",
			"whoever may create pods anywhere can have this exception: names, labels and tags are theirs to choose")
	}
	if !e.plain && e.Because == "" {
		f.warn(e.node, "because", "write for example `because: the build's own compiler`", "the exception does not say why")
	}
}

func trusted(path string) bool {
	return slices.Contains([]string{"exe", "process.exe", "parent", "container.image_digest", "container.pod.namespace", "process.memfd", "process.inode"}, path)
}
