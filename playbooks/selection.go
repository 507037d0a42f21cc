package playbooks

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"stanch/sensors"

	"github.com/expr-lang/expr/ast"
	exprparser "github.com/expr-lang/expr/parser"
)

// Matches reports whether the playbook handles the incident, with the reason in one sentence.
func (p *Program) Matches(incident Incident) (bool, string) {
	if p.Match == nil {
		return false, "only `call` runs it"
	}
	if p.ReplacedBy != "" {
		return false, fmt.Sprintf("your playbook %s replaces it", p.ReplacedBy)
	}
	if why := p.mismatchReason(incident); why != "" {
		return false, why
	}
	env, err := p.NewEvalEnv(incident, nil)
	ok := false
	if err == nil {
		ok, err = p.EvalCondition(p.Match.When, env)
	}
	switch {
	case err != nil:
		return false, fmt.Sprintf("its condition cannot be evaluated: %v", err)
	case !ok:
		return false, fmt.Sprintf("its condition is false: %s", p.Match.When.Source)
	}
	return true, "it matches"
}

// mismatchReason returns why the incident's objective or severity does not match, or "".
func (p *Program) mismatchReason(incident Incident) string {
	m := p.Match
	if len(m.Objectives) > 0 {
		var names []string
		for _, o := range m.Objectives {
			names = append(names, o.Text)
		}
		if !slices.Contains(names, string(incident.Objective)) {
			return fmt.Sprintf("the objective is %s, not %s", incident.Objective, strings.Join(names, " or "))
		}
	}
	if s := m.Severity.Text; s != "" && incident.Severity.Rank() < sensors.Severity(s).Rank() {
		return fmt.Sprintf("the severity is %s, below %s", incident.Severity, s)
	}
	return ""
}

// enrichedFields are the fields of an incident that enrichment sets or changes.
var enrichedFields = []string{"workload", "changes", "blast_radius", "context", "reasons"}

// mayMatchLater reports whether the playbook does not match only because enrichment of the incident has not finished.
func (p *Program) mayMatchLater(incident Incident) bool {
	if p.Match == nil || p.Match.When == nil || p.ReplacedBy != "" || incident.Context.Enriched ||
		p.mismatchReason(incident) != "" {
		return false
	}
	tree, err := exprparser.Parse(p.Match.When.Source)
	if err != nil {
		return false
	}
	v := &incidentFieldVisitor{}
	ast.Walk(&tree.Node, v)
	return v.incidentReads > v.fieldReads || v.readsEnrichedField
}

// incidentFieldVisitor collects the fields of the incident that an expression reads.
type incidentFieldVisitor struct {
	incidentReads, fieldReads int // uses of `incident`, and how many of them read one field
	readsEnrichedField        bool
}

// Visit implements ast.Visitor.
func (v *incidentFieldVisitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if n.Value == "incident" {
			v.incidentReads++
		}
	case *ast.MemberNode:
		id, isName := n.Node.(*ast.IdentifierNode)
		property, isWord := n.Property.(*ast.StringNode)
		if isName && isWord && id.Value == "incident" {
			v.fieldReads++
			v.readsEnrichedField = v.readsEnrichedField || slices.Contains(enrichedFields, property.Value)
		}
	}
}

// CanContain reports whether the playbook or one of its callees has a containment.
func (p *Program) CanContain() bool {
	found := false
	for _, book := range append([]*Program{p}, p.TransitiveCallees()...) {
		book.WalkSteps(func(s *Step) { found = found || s.Verb == VerbContain })
	}
	return found
}

// defaultUserPriority is the priority of a user's playbook without `priority`. It is higher than that of most shipped
// playbooks.
const defaultUserPriority = 100

// Priority returns the priority in the file; by default 100 for a user's playbook and 0 for a shipped one.
func (p *Program) Priority() int {
	switch {
	case p.Match != nil && p.Match.Priority != nil:
		return *p.Match.Priority
	case p.Shipped:
		return 0
	}
	return defaultUserPriority
}

// comparePrecedence orders playbooks: higher priority first, then users' before shipped, then exclusive ones.
func comparePrecedence(a, b *Program) int {
	return cmp.Or(cmp.Compare(b.Priority(), a.Priority()), compareTrueFirst(b.Shipped, a.Shipped),
		compareTrueFirst(a.isExclusive(), b.isExclusive()))
}

func (p *Program) isExclusive() bool { return p.Match != nil && p.Match.Exclusive }

// compareTrueFirst orders true before false.
func compareTrueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// SelectionResult is the decision about a playbook for an incident, and its reason.
type SelectionResult struct {
	*Program
	// Selected means that the playbook starts now.
	Selected bool
	Reason   string
	// IsFallback means that it matches and contains, and starts if those before it are refused or fail before they
	// contain anything.
	IsFallback bool
	// WaitsForEnrichment means that it is a shipped playbook that contains, and that a user's playbook may still match
	// after enrichment.
	WaitsForEnrichment bool
}

// SelectPlaybooks decides which playbooks handle an incident, in order of priority. Of the matching playbooks that
// contain, only the first starts. Every other matching playbook starts, unless an exclusive one precedes it.
func SelectPlaybooks(programs []*Program, incident Incident) []SelectionResult {
	out := make([]SelectionResult, 0, len(programs))
	later := false
	for _, p := range programs {
		matches, why := p.Matches(incident)
		out = append(out, SelectionResult{Program: p, Selected: matches, Reason: why})
		later = later || !matches && !p.Shipped && p.mayMatchLater(incident) && p.CanContain()
	}
	slices.SortStableFunc(out, func(a, b SelectionResult) int { return comparePrecedence(a.Program, b.Program) })
	var exclusive, winner *SelectionResult
	for i := range out {
		c := &out[i]
		if !c.Selected {
			continue
		}
		switch contains := c.CanContain(); {
		case exclusive != nil:
			c.Selected, c.Reason = false,
				fmt.Sprintf("it matches, but %s is exclusive with priority %d", exclusive.Name, exclusive.Priority())
		case contains && winner != nil:
			c.Selected, c.IsFallback = false, true
			c.Reason = fmt.Sprintf("it matches, but %s also includes a containment and takes precedence (%s)", winner.Name,
				winner.precedenceReason(c.Program))
		case contains:
			winner = c
			c.WaitsForEnrichment = c.Shipped && later
		}
		if c.isExclusive() && exclusive == nil && (c.Selected || c.IsFallback) {
			exclusive = c
		}
	}
	return out
}

// precedenceReason returns why the playbook precedes another.
func (p *Program) precedenceReason(other *Program) string {
	switch {
	case p.Priority() != other.Priority():
		return fmt.Sprintf("priority %d over %d", p.Priority(), other.Priority())
	case p.Shipped != other.Shipped:
		return fmt.Sprintf("same priority %d; your playbook takes precedence over a shipped one", p.Priority())
	}
	return fmt.Sprintf("same priority %d; it is listed first", p.Priority())
}
