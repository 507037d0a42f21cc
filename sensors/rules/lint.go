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

// warnAt reports a warning at a node.
func (f *packFile) warnAt(at *yaml.Node, code, hint, format string, args ...any) {
	pos := yamlnode.PositionOf(at)
	f.reader.Problems = append(f.reader.Problems, diagnostic.Diagnostic{
		File: f.name, Line: pos.Line, Column: pos.Column, Severity: "warning", Code: code,
		Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// lint reports warnings about valid rules that are probably not intended, in files whose problems are not suppressed.
func (l *loader) lint() {
	for _, r := range l.set.rules {
		if r.file.suppressProblems {
			continue
		}
		l.lintConfidence(r)
		l.lintKindFields(r)
		l.lintShadowedRule(r)
	}
	for _, r := range l.set.rules {
		for _, e := range r.Exceptions {
			if f := l.fileOf(e.Position); f != nil && !f.suppressProblems {
				lintException(f, e)
			}
		}
	}
	for _, name := range sortedKeys(l.lists) {
		if one := l.lists[name]; !one.file.suppressProblems && !l.usedNames[name] {
			one.file.warnAt(one.at, "unused", "remove it", "the list `%s` is not used", name)
		}
	}
	for _, name := range sortedKeys(l.macros) {
		if one := l.macros[name]; !one.file.suppressProblems && !l.usedNames[name] {
			one.file.warnAt(one.key, "unused", "remove it", "the macro `%s` is not used", name)
		}
	}
}

func (l *loader) fileOf(at string) *packFile {
	for _, f := range l.files {
		if strings.HasPrefix(at, f.name+":") {
			return f
		}
	}
	return nil
}

func (l *loader) lintConfidence(r *Rule) {
	highest := r.original.severity
	for _, s := range r.Namespaces {
		if s.Rank() > highest.Rank() {
			highest = s
		}
	}
	if highest.Rank() >= sensors.SeverityHigh.Rank() && r.original.confidence < 0.5 {
		r.file.warnAt(r.nodes["confidence"], "unsure", "lower the severity, or narrow the condition and raise the confidence",
			"`%s` has the severity %s and a confidence below 0.5", r.Name, highest)
	}
	negated := &negationFinder{}
	ast.Walk(&r.compiled.syntaxTree, negated)
	if len(r.Exceptions) == 0 && highest.Rank() >= sensors.SeverityHigh.Rank() && r.original.confidence < 0.7 &&
		!negated.found {
		r.file.warnAt(r.nodes[""], "no-exception",
			"list in `exceptions` the workload, image, or program that does this legitimately",
			"`%s` has the severity %s, a confidence below 0.7 and no exceptions", r.Name, highest)
	}
}

// negationFinder finds out whether a condition contains a negation.
type negationFinder struct{ found bool }

// Visit checks one node.
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

// kindsByFieldGroup returns the event kinds that fill a group of fields, for groups that not all kinds fill.
func kindsByFieldGroup() map[string][]sensors.Kind {
	elsewhere := []sensors.Kind{sensors.KindKubernetesAudit, sensors.KindCloudAPICall, sensors.KindSensorHealth}
	calls := []sensors.Kind{
		sensors.KindFileDelete, sensors.KindChmod, sensors.KindUnixConnect, sensors.KindFileOpen, sensors.KindRawSocket,
		sensors.KindMount, sensors.KindNamespaceChange, sensors.KindProcessTrace,
		sensors.KindBPF, sensors.KindIOUring, sensors.KindKernelModule, sensors.KindListen, sensors.KindDNS,
		sensors.KindConnect,
	}
	return map[string][]sensors.Kind{
		"network": append([]sensors.Kind{
			sensors.KindConnect, sensors.KindListen, sensors.KindDNS,
			sensors.KindRawSocket,
		}, elsewhere...),
		"network.domain": append([]sensors.Kind{sensors.KindDNS}, elsewhere...),
		"file": append([]sensors.Kind{
			sensors.KindFileOpen, sensors.KindFileDelete, sensors.KindChmod,
			sensors.KindUnixConnect, sensors.KindMount, sensors.KindKernelModule, sensors.KindProcessTrace,
		}, elsewhere...),
		"syscall":                  append(calls, elsewhere...),
		"exit_code":                {sensors.KindExit},
		"count":                    append([]sensors.Kind{sensors.KindProcessBurst}, elsewhere...),
		"baseline.new_exe":         {sensors.KindExec},
		"baseline.new_destination": {sensors.KindConnect, sensors.KindDNS},
		"actor":                    elsewhere,
		"audit":                    {sensors.KindKubernetesAudit},
		"cloud":                    {sensors.KindCloudAPICall},
	}
}

// lintKindFields reports fields that are always empty in events of the rule's kind.
func (l *loader) lintKindFields(r *Rule) {
	paths := &fieldPathFinder{}
	ast.Walk(&r.compiled.syntaxTree, paths)
	groups := kindsByFieldGroup()
	for _, group := range sortedKeys(groups) {
		if slices.Contains(groups[group], r.Kind) {
			continue
		}
		i := slices.IndexFunc(paths.found, func(p string) bool { return p == group || strings.HasPrefix(p, group+".") })
		if i < 0 || strings.Contains(group, ".") && !slices.Contains(groups[strings.Split(group, ".")[0]], r.Kind) &&
			groups[strings.Split(group, ".")[0]] != nil {
			continue
		}
		r.file.warnAt(r.nodes["condition"], "never", fmt.Sprintf("`%s` is set only in events of kind %s", group,
			joinWords(groups[group])),
			"`%s` reads `%s`, which is always empty in events of the kind `%s`", r.Name, paths.found[i], r.Kind)
	}
}

func joinWords[T ~string](words []T) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = string(w)
	}
	return strings.Join(out, ", ")
}

// fieldPathFinder collects the fields that an expression reads.
type fieldPathFinder struct{ found []string }

// Visit records the field path of one node.
func (p *fieldPathFinder) Visit(node *ast.Node) {
	if path := fieldPath(*node); path != "" {
		p.found = append(p.found, path)
	}
}

// lintShadowedRule reports a rule if another rule with at least the same severity and confidence matches every event
// that it matches.
func (l *loader) lintShadowedRule(r *Rule) {
	mine := splitConjuncts(r.compiled.syntaxTree)
	for _, other := range l.set.rules {
		if other == r || other.Kind != r.Kind || other.Disabled || len(other.Exceptions) > 0 {
			continue
		}
		theirs := splitConjuncts(other.compiled.syntaxTree)
		covers := !slices.ContainsFunc(theirs, func(c string) bool { return !slices.Contains(mine, c) })
		same := len(theirs) == len(mine)
		if covers && (same || other.original.severity.Rank() >= r.original.severity.Rank() &&
			other.original.confidence >= r.original.confidence) && (!same || !l.isBefore(r, other)) {
			r.file.warnAt(r.nodes["condition"], "shadowed", "remove it, or narrow the other rule",
				"`%s` at %s fires on every event on which `%s` does, with at least the same severity and confidence", other.Name,
				other.Position, r.Name)
		}
	}
}

// isBefore reports whether r comes before other.
func (l *loader) isBefore(r, other *Rule) bool {
	return slices.Index(l.set.rules, r) < slices.Index(l.set.rules, other)
}

// splitConjuncts returns the operands of the top-level `&&` operators.
func splitConjuncts(node ast.Node) []string {
	if b, ok := node.(*ast.BinaryNode); ok && (b.Operator == "&&" || b.Operator == "and") {
		return append(splitConjuncts(b.Left), splitConjuncts(b.Right)...)
	}
	return []string{node.String()}
}

// lintException reports an exception that an attacker can make apply.
func lintException(f *packFile, e *Exception) {
	if e.condition != nil {
		paths := &fieldPathFinder{}
		ast.Walk(&e.condition.syntaxTree, paths)
		for _, forged := range []struct{ path, hint string }{
			{"process.name", "use `exe` or `process.exe`, which the kernel sets"},
			{"process.args", "use `exe` or `process.exe`, which the kernel sets"},
			{"command", "use `exe` or `process.exe`, which the kernel sets"},
		} {
			// A forgeable field that only narrows another criterion is harmless; alone, it suppresses the rule for
			// every attacker.
			if slices.Contains(paths.found, forged.path) && !e.identifiesWorkload() && !slices.ContainsFunc(paths.found,
				isTrustedField) {
				f.warnAt(e.node, "forgeable", forged.hint, "the exception depends on `%s`, which a process can set freely",
					forged.path)
			}
		}
	}
	pinned := slices.ContainsFunc(e.Image, func(p string) bool { return parseImageReference(p).digest != "" })
	if (len(e.Image) > 0 || len(e.Labels) > 0 || e.Workload != (WorkloadPattern{})) && len(e.Namespace) == 0 && !pinned &&
		e.When == "" {
		f.warnAt(e.node, "wide", "add the `namespace`, or a digest to the image",
			"anyone who can create pods in any namespace can use this exception: they choose names, labels and tags")
	}
	if !e.conditionOnly && e.Reason == "" {
		f.warnAt(e.node, "reason", "for example, write `reason: the build's own compiler`", "the exception has no reason")
	}
}

func isTrustedField(path string) bool {
	return slices.Contains([]string{
		"exe", "process.exe", "parent", "container.image_digest", "container.pod.namespace",
		"process.memfd", "process.inode",
	}, path)
}
