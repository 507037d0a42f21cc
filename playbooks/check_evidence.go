package playbooks

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
	exprparser "github.com/expr-lang/expr/parser"
)

// attempt is an evidence step that will have been attempted: for which targets and under which conditions.
type attempt struct {
	target     string
	conditions []string
	detected   bool // it looks at what detections are about, and not only at what was found through it
}

// path is what must have held on the way to a step.
type path struct {
	all        []string
	inApproval bool
}

func (c path) and(text string) path {
	return path{append(slices.Clone(c.all), text), c.inApproval}
}

// safetyWalk goes through a playbook and all that it calls.
type safetyWalk struct {
	*checker
	book    *Program
	alone   bool              // only `call` runs it
	site    *Step             // the call through which the walk came here
	prefix  string            // of paths
	deep    int               // in calls
	seen    *int              // steps
	aliases map[string]string // what a name of a loop, an input or a `set` stands for, as text
	symbols *symbols
}

// symbols are names for values that differ from each other although the same text reads them: the element of one loop,
// and a value that was perhaps set again. No playbook can write one: names begin with a letter.
type symbols struct {
	lists map[string]string // of a loop's element: the list that it is taken from, as text
}

func (s *symbols) fresh(list string) string {
	name := fmt.Sprintf("$%d", len(s.lists))
	if len(list) > maxMeant {
		list = ""
	}
	s.lists[name] = list
	return name
}

// at is where an error is reported, and what it says of the place.
func (w *safetyWalk) at(pos Pos) (Pos, string) {
	if w.site == nil {
		return pos, ""
	}
	return w.site.Call.Pos, fmt.Sprintf(" (%s:%d)", w.book.File, pos.Line)
}

func (w *safetyWalk) report(pos Pos, code, hint, format string, args ...any) {
	pos, where := w.at(pos)
	w.errorf(pos, code, hint, "%s%s", fmt.Sprintf(format, args...), where)
}

// steps walks a sequence. It returns what evidence will have been attempted once it has run.
func (w *safetyWalk) steps(steps []Step, before []attempt, in path) []attempt {
	have := slices.Clone(before)
	for i := range steps {
		if stops(&steps[i]) {
			// A `stop` ends a playbook that is called, and its caller goes on: what follows may not have run.
			in = in.and("not stopped:" + w.prefix + steps[i].Path)
		}
		have = w.step(&steps[i], have, in)
	}
	return have
}

// stops reports whether a step is a `stop` or has one inside. One of a called playbook ends that one alone.
func stops(s *Step) bool {
	found := false
	walk([]Step{*s}, func(inner *Step) { found = found || inner.Stop != nil })
	return found
}

// scoped is a walk of a block: what it sets is perhaps not set when the block has run.
func (w *safetyWalk) scoped() *safetyWalk {
	inner := *w
	return &inner
}

// forget makes unknown what the blocks of a step may have set.
func (w *safetyWalk) forget(s *Step) {
	for _, b := range s.Blocks() {
		walk(b.Steps, func(inner *Step) {
			for _, a := range inner.Set {
				w.aliases = with(w.aliases, a.Name, w.symbols.fresh(""))
			}
		})
	}
}

// set remembers what the values of a `set` stand for: the same name means something else after it is set again.
func (w *safetyWalk) set(s *Step) {
	meant := map[string]string{}
	for _, a := range s.Set {
		meant[a.Name] = w.symbols.fresh("")
		if text := w.resolve(a.Value.Expr); s.If == nil && a.Value.Expr != nil && len(text) <= maxMeant {
			meant[a.Name] = "(" + text + ")"
		}
	}
	for name, text := range meant {
		w.aliases = with(w.aliases, name, text)
	}
}

func (w *safetyWalk) step(s *Step, have []attempt, in path) []attempt {
	if w.seen == nil {
		w.seen = new(int)
	}
	if *w.seen++; *w.seen == maxExpanded {
		w.errorf(s.Pos, "too-large", "call fewer playbooks", "with all that it calls the playbook has more than %d steps", maxExpanded)
	}
	if *w.seen >= maxExpanded {
		return have
	}
	if s.If != nil {
		in = in.and("if:" + w.prefix + w.resolve(s.If))
	}
	inside := in
	if s.Timeout > 0 && s.Verb == "" {
		inside = in.and("in time:" + w.prefix + s.Path) // a block is cut off when its time is over
	}
	switch {
	case s.Verb == VerbEvidence:
		have = append(have, attempt{w.targetOf(s), in.all, w.book.catalogue[s.Action].detected()})
	case s.Verb == VerbContain:
		w.contains(s, have, in)
	case s.Parallel != nil:
		after := slices.Clone(have)
		for i := range s.Parallel {
			// Branches run at once: evidence in one is not before a containment in another.
			after = append(after, w.scoped().step(&s.Parallel[i], have, inside)[len(have):]...)
		}
		have = after
	case s.Approval != nil:
		if in.inApproval {
			w.report(s.Pos, "nested-approval", "give the outer one a higher quorum", "an approval inside of an approval")
		}
		approved := inside.and("approved:" + w.prefix + s.Path)
		approved.inApproval = true
		w.scoped().steps(s.Approval.Steps, have, approved)
	case s.ForEach != nil:
		inner := w.scoped()
		inner.forget(s) // what an earlier round set
		inner.aliases = with(inner.aliases, s.ForEach.As, w.symbols.fresh(w.resolve(s.ForEach.List)))
		inner.steps(s.ForEach.Steps, have, inside.and("each:"+w.prefix+s.Path))
	case s.Call != nil:
		have = w.call(s, have, inside)
	case s.Set != nil:
		w.set(s)
	}
	w.scoped().steps(s.OnFailure, have, in.and("failed:"+w.prefix+s.Path))
	w.scoped().steps(s.OnDenied, have, in.and("denied:"+w.prefix+s.Path))
	w.forget(s)
	return have
}

// call walks what a step calls.
func (w *safetyWalk) call(s *Step, have []attempt, in path) []attempt {
	callee := w.book.Callees[s.Call.Playbook]
	if callee == nil {
		return have
	}
	if w.deep >= maxCallDeep {
		w.report(s.Pos, "too-deep", "", "playbooks call each other more than %d deep", maxCallDeep)
		return have
	}
	inner := *w
	inner.book, inner.prefix, inner.deep = callee, w.prefix+s.Path+"/", w.deep+1
	if w.site == nil {
		inner.site = s
	}
	inner.aliases = map[string]string{}
	for _, arg := range s.With {
		if arg.Value.Expr != nil {
			inner.aliases["inputs."+arg.Name] = w.resolve(arg.Value.Expr)
		}
	}
	return inner.steps(callee.Steps, have, in)
}

func with(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// maxResolve bounds what names stand for: each may stand for another. maxMeant bounds the text, which would double with
// each name that stands for another twice.
const (
	maxResolve = 16
	maxMeant   = 1 << 10
)

// word is a name in an expression, with the fields that follow it.
var word = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_.]*`)

// resolve is an expression's text, with names that stand for other expressions replaced by these.
func (w *safetyWalk) resolve(e *Expr) string { return w.resolved(e, 0) }

func (w *safetyWalk) resolved(e *Expr, deep int) string {
	if e == nil {
		return ""
	}
	if deep > maxResolve {
		return "(nobody knows)" // names that stand for each other: they are errors of their own
	}
	text := word.ReplaceAllStringFunc(normal(e.Source), func(name string) string {
		if meant, ok := w.aliases[name]; ok {
			return meant
		}
		if id, ok := strings.CutSuffix(name, ".failed"); ok {
			if s := stepOf(w.book, id); s != nil && s.Target != nil && normal(s.Target.Source) != name {
				return "(" + w.resolved(s.Target, deep+1) + ")"
			} else if s != nil {
				return "(incident.targets)" // a selection of them
			}
		}
		return name
	})
	if w.prefix != "" {
		return own(text, w.prefix)
	}
	return text
}

// stepOf finds a step by its id.
func stepOf(p *Program, id string) (found *Step) {
	p.Walk(func(s *Step) {
		if s.ID == id {
			found = s
		}
	})
	return found
}

func (w *safetyWalk) targetOf(s *Step) string { return w.resolve(s.Target) }

// contains checks that evidence of the target was attempted on every path to a containment, and that what disrupts
// stands behind an approval.
func (w *safetyWalk) contains(s *Step, have []attempt, in path) {
	spec, known := w.book.catalogue[s.Action]
	if !known || w.alone {
		return
	}
	if spec.Class == ClassDisrupt && !in.inApproval {
		w.report(s.ActionPos, "needs-approval", "put it under the `steps` of an approval", "`%s` disrupts: it is allowed only inside of an approval", s.Action)
	}
	// What no detection is about has no evidence of its own: any of the incident counts, as it does for the guard.
	derived := len(spec.Targets) > 0 && !spec.Targets[0].Detected()
	target := w.targetOf(s)
	covers := func(a attempt) bool { return derived || a.detected && w.symbols.covers(a.target, target) }
	covered := slices.ContainsFunc(have, func(a attempt) bool {
		return covers(a) && !slices.ContainsFunc(a.conditions, func(cond string) bool { return !slices.Contains(in.all, cond) })
	})
	if covered {
		return
	}
	hint := "put `- evidence: process.snapshot` before it"
	if target != "" {
		hint = "put an evidence step with the same `target` before it"
	}
	if slices.ContainsFunc(have, covers) {
		hint = "the evidence step before it stands under an `if` of its own: move it out, or put the containment under the same `if`"
	}
	w.report(s.ActionPos, "evidence-first", hint, "`%s` comes before any evidence of its target", s.Action)
}

// everyTarget is what a step without a target works on: every pod of the incident with a detection of its own.
const everyTarget = "incident.targets"

// own returns an expression of a called playbook with names that are its own: what its caller calls the same is something
// else. The incident is the same for both.
func own(text, prefix string) string {
	tree, err := exprparser.Parse(text)
	if err != nil {
		return prefix + text
	}
	ast.Walk(&tree.Node, ownNames{"$" + notInNames.ReplaceAllString(prefix, "_")})
	return tree.Node.String()
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9]`)

type ownNames struct{ prefix string }

// Visit looks at one node.
func (o ownNames) Visit(node *ast.Node) {
	if id, ok := (*node).(*ast.IdentifierNode); ok && id.Value != "incident" && !strings.HasPrefix(id.Value, "$") {
		id.Value = o.prefix + id.Value
	}
}

// covers reports whether evidence of one target, or list of targets, is evidence of the other: of the same, or of a list
// from which the other is certainly taken.
func (s *symbols) covers(evidence, containment string) bool {
	if evidence == "" {
		evidence = everyTarget
	}
	if containment == "" {
		containment = everyTarget
	}
	have, err := exprparser.Parse(evidence)
	if err != nil {
		return evidence == containment
	}
	want, err := exprparser.Parse(containment)
	if err != nil {
		return evidence == containment
	}
	return s.taken(want.Node, have.Node.String(), 0)
}

// selecting are the functions that give elements of their first argument and nothing else.
var selecting = []string{"filter", "find", "first", "last", "take", "reverse", "sort", "sortBy", "uniq"}

// gathering are those that give elements of all their arguments.
var gathering = []string{"concat", "flatten"}

// taken reports whether every target that an expression gives is one of those in from. What is not known to be taken from
// it counts as another.
func (s *symbols) taken(n ast.Node, from string, deep int) bool {
	if deep > maxResolve {
		return false
	}
	if n.String() == from {
		return true
	}
	all := func(nodes ...ast.Node) bool {
		return len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n ast.Node) bool { return !s.taken(n, from, deep+1) })
	}
	switch n := n.(type) {
	case *ast.IdentifierNode:
		list := s.lists[n.Value]
		if list == "" {
			return false
		}
		tree, err := exprparser.Parse(list)
		return err == nil && s.taken(tree.Node, from, deep+1)
	case *ast.MemberNode:
		if _, isIndex := n.Property.(*ast.StringNode); isIndex {
			return false // a field
		}
		return all(n.Node)
	case *ast.SliceNode:
		return all(n.Node)
	case *ast.ChainNode:
		return all(n.Node)
	case *ast.ArrayNode:
		return all(n.Nodes...)
	case *ast.ConditionalNode:
		return all(n.Exp1, n.Exp2)
	case *ast.BuiltinNode:
		switch {
		case slices.Contains(selecting, n.Name) && len(n.Arguments) > 0:
			return all(n.Arguments[0])
		case slices.Contains(gathering, n.Name):
			return all(n.Arguments...)
		}
	}
	return false
}
