package playbooks

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
	exprparser "github.com/expr-lang/expr/parser"
)

// evidenceAttempt is an evidence step that runs before a given point: its targets and its conditions.
type evidenceAttempt struct {
	targetExpr           string
	conditions           []string
	coversDetectedTarget bool // it captures from targets of detections, not only from targets found through them
}

// pathConditions are the conditions that are true on the path to a step.
type pathConditions struct {
	conditions []string
	inApproval bool
}

func (c pathConditions) withCondition(text string) pathConditions {
	return pathConditions{append(slices.Clone(c.conditions), text), c.inApproval}
}

// safetyWalker walks a playbook and everything that it calls.
type safetyWalker struct {
	*checker
	currentProgram *Program
	callOnly       bool              // the playbook has no `match`
	callSite       *Step             // the call that leads to this playbook
	pathPrefix     string            // prefix of step paths
	callDepth      int               // depth of nested calls
	stepCount      *int              // number of steps
	nameBindings   map[string]string // text of the expression that each loop variable, input or `set` name stands for
	symbols        *symbolTable
}

// symbolTable assigns unique names to values that differ although the same text reads them: the element of one loop, or
// a value that may have been set again. Playbooks cannot contain these names, because names start with a letter.
type symbolTable struct {
	sourceLists map[string]string // by loop element: the text of the list that it is taken from
}

func (s *symbolTable) newSymbol(list string) string {
	name := fmt.Sprintf("$%d", len(s.sourceLists))
	if len(list) > maxResolvedBytes {
		list = ""
	}
	s.sourceLists[name] = list
	return name
}

// reportPosition returns where an error is reported, and a note about the call that leads there.
func (w *safetyWalker) reportPosition(pos Pos) (Pos, string) {
	if w.callSite == nil {
		return pos, ""
	}
	return w.callSite.Call.Pos, fmt.Sprintf(" (%s:%d)", w.currentProgram.File, pos.Line)
}

func (w *safetyWalker) reportf(pos Pos, code, hint, format string, args ...any) {
	pos, where := w.reportPosition(pos)
	w.errorf(pos, code, hint, "%s%s", fmt.Sprintf(format, args...), where)
}

// walkSteps walks a sequence. It returns the evidence that has been attempted when the sequence ends.
func (w *safetyWalker) walkSteps(steps []Step, before []evidenceAttempt, in pathConditions) []evidenceAttempt {
	have := slices.Clone(before)
	for i := range steps {
		if containsStop(&steps[i]) {
			// A `stop` ends a called playbook while its caller continues: the steps after it may not have run.
			in = in.withCondition("not stopped:" + w.pathPrefix + steps[i].Path)
		}
		have = w.walkStep(&steps[i], have, in)
	}
	return have
}

// containsStop reports whether a step is or contains a `stop`. A `stop` in a called playbook ends only that playbook.
func containsStop(s *Step) bool {
	found := false
	walkSteps([]Step{*s}, func(inner *Step) { found = found || inner.Stop != nil })
	return found
}

// newBlockScope returns a walker for a block. Values that the block sets may be unset after it.
func (w *safetyWalker) newBlockScope() *safetyWalker {
	inner := *w
	return &inner
}

// invalidateAssignments forgets the values that the blocks of a step may have set.
func (w *safetyWalker) invalidateAssignments(s *Step) {
	for _, b := range s.Blocks() {
		walkSteps(b.Steps, func(inner *Step) {
			for _, a := range inner.Assignments {
				w.nameBindings = withEntry(w.nameBindings, a.Name, w.symbols.newSymbol(""))
			}
		})
	}
}

// bindAssignments records what the names of a `set` stand for. A name that is set again gets a new symbol.
func (w *safetyWalker) bindAssignments(s *Step) {
	meant := map[string]string{}
	for _, a := range s.Assignments {
		meant[a.Name] = w.symbols.newSymbol("")
		if text := w.resolveExpr(a.Value.Expr); s.If == nil && a.Value.Expr != nil && len(text) <= maxResolvedBytes {
			meant[a.Name] = "(" + text + ")"
		}
	}
	for name, text := range meant {
		w.nameBindings = withEntry(w.nameBindings, name, text)
	}
}

func (w *safetyWalker) walkStep(s *Step, have []evidenceAttempt, in pathConditions) []evidenceAttempt {
	if w.stepCount == nil {
		w.stepCount = new(int)
	}
	if *w.stepCount++; *w.stepCount == maxExpandedSteps {
		w.errorf(s.Pos, "too-large", "call fewer playbooks",
			"the playbook and the playbooks that it calls have more than %d steps", maxExpandedSteps)
	}
	if *w.stepCount >= maxExpandedSteps {
		return have
	}
	if s.If != nil {
		in = in.withCondition("if:" + w.pathPrefix + w.resolveExpr(s.If))
	}
	inside := in
	if s.Timeout > 0 && s.Verb == "" {
		inside = in.withCondition("in time:" + w.pathPrefix + s.Path) // a timeout can end the block early
	}
	switch {
	case s.Verb == VerbEvidence:
		have = append(have, evidenceAttempt{
			w.resolveStepTarget(s), in.conditions,
			w.currentProgram.catalog[s.Action].worksOnDetectedTargets(),
		})
	case s.Verb == VerbContain:
		w.checkEvidenceBeforeContainment(s, have, in)
	case s.Parallel != nil:
		after := slices.Clone(have)
		for i := range s.Parallel {
			// Branches run at the same time: evidence in one does not precede a containment in another.
			after = append(after, w.newBlockScope().walkStep(&s.Parallel[i], have, inside)[len(have):]...)
		}
		have = after
	case s.Approval != nil:
		if in.inApproval {
			w.reportf(s.Pos, "nested-approval", "raise the quorum of the outer approval", "an approval inside an approval")
		}
		approved := inside.withCondition("approved:" + w.pathPrefix + s.Path)
		approved.inApproval = true
		w.newBlockScope().walkSteps(s.Approval.Steps, have, approved)
	case s.ForEach != nil:
		inner := w.newBlockScope()
		inner.invalidateAssignments(s) // an earlier iteration may have set it
		inner.nameBindings = withEntry(inner.nameBindings, s.ForEach.Variable,
			w.symbols.newSymbol(w.resolveExpr(s.ForEach.List)))
		inner.walkSteps(s.ForEach.Steps, have, inside.withCondition("each:"+w.pathPrefix+s.Path))
	case s.Call != nil:
		have = w.walkCall(s, have, inside)
	case s.Assignments != nil:
		w.bindAssignments(s)
	}
	w.newBlockScope().walkSteps(s.OnFailure, have, in.withCondition("failed:"+w.pathPrefix+s.Path))
	w.newBlockScope().walkSteps(s.OnDenied, have, in.withCondition("denied:"+w.pathPrefix+s.Path))
	w.invalidateAssignments(s)
	return have
}

// walkCall walks the playbook that a step calls.
func (w *safetyWalker) walkCall(s *Step, have []evidenceAttempt, in pathConditions) []evidenceAttempt {
	callee := w.currentProgram.Callees[s.Call.Playbook]
	if callee == nil {
		return have
	}
	if w.callDepth >= maxCallDepth {
		w.reportf(s.Pos, "too-deep", "", "playbook calls are nested more than %d levels deep", maxCallDepth)
		return have
	}
	inner := *w
	inner.currentProgram, inner.pathPrefix, inner.callDepth = callee, w.pathPrefix+s.Path+"/", w.callDepth+1
	if w.callSite == nil {
		inner.callSite = s
	}
	inner.nameBindings = map[string]string{}
	for _, arg := range s.Arguments {
		if arg.Value.Expr != nil {
			inner.nameBindings["inputs."+arg.Name] = w.resolveExpr(arg.Value.Expr)
		}
	}
	return inner.walkSteps(callee.Steps, have, in)
}

func withEntry(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// maxResolveDepth limits how deeply names are resolved. maxResolvedBytes limits the text, which would double with each
// name that uses another one twice.
const (
	maxResolveDepth  = 16
	maxResolvedBytes = 1 << 10
)

// dottedNamePattern matches a name in an expression, with the fields after it.
var dottedNamePattern = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_.]*`)

// resolveExpr returns an expression's text with each name replaced by the expression that it stands for.
func (w *safetyWalker) resolveExpr(e *Expr) string { return w.resolveExprAtDepth(e, 0) }

func (w *safetyWalker) resolveExprAtDepth(e *Expr, deep int) string {
	if e == nil {
		return ""
	}
	if deep > maxResolveDepth {
		return "(unknown)" // circular names are reported as errors elsewhere
	}
	text := dottedNamePattern.ReplaceAllStringFunc(normalizeSpaces(e.Source), func(name string) string {
		if meant, ok := w.nameBindings[name]; ok {
			return meant
		}
		if id, ok := strings.CutSuffix(name, ".failed"); ok {
			if s := findStepByID(w.currentProgram, id); s != nil && s.Target != nil && normalizeSpaces(s.Target.Source) != name {
				return "(" + w.resolveExprAtDepth(s.Target, deep+1) + ")"
			} else if s != nil {
				return "(incident.targets)" // a subset of them
			}
		}
		return name
	})
	if w.pathPrefix != "" {
		return qualifyNames(text, w.pathPrefix)
	}
	return text
}

// findStepByID returns the step with an id, or nil.
func findStepByID(p *Program, id string) (found *Step) {
	p.WalkSteps(func(s *Step) {
		if s.ID == id {
			found = s
		}
	})
	return found
}

func (w *safetyWalker) resolveStepTarget(s *Step) string { return w.resolveExpr(s.Target) }

// checkEvidenceBeforeContainment checks that every path to a containment attempts evidence of its target first, and
// that disruptive actions require an approval.
func (w *safetyWalker) checkEvidenceBeforeContainment(s *Step, have []evidenceAttempt, in pathConditions) {
	spec, known := w.currentProgram.catalog[s.Action]
	if !known || w.callOnly {
		return
	}
	if spec.Class == ClassDisrupt && !in.inApproval {
		w.reportf(s.ActionPos, "needs-approval", "put it under the `steps` of an approval",
			"`%s` is disruptive, so it is allowed only inside an approval", s.Action)
	}
	// A target that no detection is about has no evidence of its own: evidence of any target of the incident counts, as
	// in the guard.
	derived := len(spec.Targets) > 0 && !spec.Targets[0].IsDetectable()
	target := w.resolveStepTarget(s)
	covers := func(a evidenceAttempt) bool {
		return derived || a.coversDetectedTarget && w.symbols.evidenceCovers(a.targetExpr, target)
	}
	covered := slices.ContainsFunc(have, func(a evidenceAttempt) bool {
		return covers(a) && !slices.ContainsFunc(a.conditions, func(cond string) bool {
			return !slices.Contains(in.conditions,
				cond)
		})
	})
	if covered {
		return
	}
	hint := "put `- evidence: process.snapshot` before it"
	if target != "" {
		hint = "put an evidence step with the same `target` before it"
	}
	if slices.ContainsFunc(have, covers) {
		hint = "the evidence step before it has its own `if`: remove that `if`, or put the containment under the same `if`"
	}
	w.reportf(s.ActionPos, "evidence-first", hint, "`%s` runs before any evidence of its target", s.Action)
}

// allTargetsExpr is the default target: every pod or container of the incident with a detection of its own.
const allTargetsExpr = "incident.targets"

// qualifyNames returns an expression of a called playbook with unique names, because the caller may use the same names
// for other values. `incident` is the same in both.
func qualifyNames(text, prefix string) string {
	tree, err := exprparser.Parse(text)
	if err != nil {
		return prefix + text
	}
	ast.Walk(&tree.Node, nameQualifier{"$" + nonNameChars.ReplaceAllString(prefix, "_")})
	return tree.Node.String()
}

var nonNameChars = regexp.MustCompile(`[^A-Za-z0-9]`)

type nameQualifier struct{ prefix string }

// Visit implements ast.Visitor.
func (o nameQualifier) Visit(node *ast.Node) {
	if id, ok := (*node).(*ast.IdentifierNode); ok && id.Value != "incident" && !strings.HasPrefix(id.Value, "$") {
		id.Value = o.prefix + id.Value
	}
}

// evidenceCovers reports whether evidence of one target or list also covers another: the same one, or one that is
// always taken from that list.
func (s *symbolTable) evidenceCovers(evidence, containment string) bool {
	if evidence == "" {
		evidence = allTargetsExpr
	}
	if containment == "" {
		containment = allTargetsExpr
	}
	have, err := exprparser.Parse(evidence)
	if err != nil {
		return evidence == containment
	}
	want, err := exprparser.Parse(containment)
	if err != nil {
		return evidence == containment
	}
	return s.isTakenFrom(want.Node, have.Node.String(), 0)
}

// selectingFunctions return only elements of their first argument.
var selectingFunctions = []string{"filter", "find", "first", "last", "take", "reverse", "sort", "sortBy", "uniq"}

// concatenatingFunctions return only elements of their arguments.
var concatenatingFunctions = []string{"concat", "flatten"}

// isTakenFrom reports whether every target that an expression returns is one of those in from. It returns false if that
// is not certain.
func (s *symbolTable) isTakenFrom(n ast.Node, from string, deep int) bool {
	if deep > maxResolveDepth {
		return false
	}
	if n.String() == from {
		return true
	}
	all := func(nodes ...ast.Node) bool {
		return len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n ast.Node) bool { return !s.isTakenFrom(n, from, deep+1) })
	}
	switch n := n.(type) {
	case *ast.IdentifierNode:
		list := s.sourceLists[n.Value]
		if list == "" {
			return false
		}
		tree, err := exprparser.Parse(list)
		return err == nil && s.isTakenFrom(tree.Node, from, deep+1)
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
		case slices.Contains(selectingFunctions, n.Name) && len(n.Arguments) > 0:
			return all(n.Arguments[0])
		case slices.Contains(concatenatingFunctions, n.Name):
			return all(n.Arguments...)
		}
	}
	return false
}
