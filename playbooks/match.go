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

// Matches reports whether the playbook handles the incident, and why or why not in one sentence.
func (p *Program) Matches(incident Incident) (bool, string) {
	if p.Match == nil {
		return false, "only `call` runs it"
	}
	if p.ReplacedBy != "" {
		return false, fmt.Sprintf("your playbook %s replaces it", p.ReplacedBy)
	}
	if why := p.outside(incident); why != "" {
		return false, why
	}
	env, err := p.NewEnv(incident, nil)
	ok := false
	if err == nil {
		ok, err = p.Bool(p.Match.When, env)
	}
	switch {
	case err != nil:
		return false, fmt.Sprintf("its condition cannot be evaluated: %v", err)
	case !ok:
		return false, fmt.Sprintf("its condition does not hold: %s", p.Match.When.Source)
	}
	return true, "it matches"
}

// outside says why the incident's objective or severity is not the playbook's, or "".
func (p *Program) outside(incident Incident) string {
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

// enrichedFields are the fields of an incident that its enrichment fills in or changes.
var enrichedFields = []string{"workload", "changes", "blast_radius", "context", "reasons"}

// mayMatchLater reports whether the playbook does not match now only because the incident's enrichment has not ended.
func (p *Program) mayMatchLater(incident Incident) bool {
	if p.Match == nil || p.Match.When == nil || p.ReplacedBy != "" || incident.Context.Enriched || p.outside(incident) != "" {
		return false
	}
	tree, err := exprparser.Parse(p.Match.When.Source)
	if err != nil {
		return false
	}
	v := &fieldVisitor{}
	ast.Walk(&tree.Node, v)
	return v.whole > v.fields || v.enriched
}

// fieldVisitor finds which fields of the incident an expression reads.
type fieldVisitor struct {
	whole, fields int // uses of `incident`, and those of them that read one field
	enriched      bool
}

// Visit looks at one node.
func (v *fieldVisitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if n.Value == "incident" {
			v.whole++
		}
	case *ast.MemberNode:
		id, isName := n.Node.(*ast.IdentifierNode)
		property, isWord := n.Property.(*ast.StringNode)
		if isName && isWord && id.Value == "incident" {
			v.fields++
			v.enriched = v.enriched || slices.Contains(enrichedFields, property.Value)
		}
	}
}

// Contains reports whether the playbook, or one that it calls, may contain something.
func (p *Program) Contains() bool {
	found := false
	for _, book := range append([]*Program{p}, p.Called()...) {
		book.Walk(func(s *Step) { found = found || s.Verb == VerbContain })
	}
	return found
}

// ownPriority is the priority of a user's playbook that gives none: above most shipped ones, and before those of its own.
const ownPriority = 100

// Priority is the one that the file gives, else 100 for a user's playbook and 0 for a shipped one.
func (p *Program) Priority() int {
	switch {
	case p.Match != nil && p.Match.Priority != nil:
		return *p.Match.Priority
	case p.Shipped:
		return 0
	}
	return ownPriority
}

// before orders playbooks: the higher priority first; among equals a user's before a shipped one, then those that are exclusive.
func before(a, b *Program) int {
	return cmp.Or(cmp.Compare(b.Priority(), a.Priority()), compareBool(b.Shipped, a.Shipped), compareBool(a.exclusive(), b.exclusive()))
}

func (p *Program) exclusive() bool { return p.Match != nil && p.Match.Exclusive }

// compareBool puts true first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// Choice is what was decided about a playbook for an incident, and why.
type Choice struct {
	*Program
	// Chosen: it starts now.
	Chosen bool
	Why    string
	// Next: it matches and contains, and starts if those before it are refused or fail before they contain anything.
	Next bool
	// Waits: it is a shipped playbook that contains, and a user's may still match once the incident is enriched.
	Waits bool
}

// Choose decides which of the playbooks handle an incident, in the order of their priorities: of those that match and
// contain only the first, and every other that matches, unless an exclusive one comes before it.
func Choose(programs []*Program, incident Incident) []Choice {
	out := make([]Choice, 0, len(programs))
	later := false
	for _, p := range programs {
		matches, why := p.Matches(incident)
		out = append(out, Choice{Program: p, Chosen: matches, Why: why})
		later = later || !matches && !p.Shipped && p.mayMatchLater(incident) && p.Contains()
	}
	slices.SortStableFunc(out, func(a, b Choice) int { return before(a.Program, b.Program) })
	var exclusive, winner *Choice
	for i := range out {
		c := &out[i]
		if !c.Chosen {
			continue
		}
		switch contains := c.Contains(); {
		case exclusive != nil:
			c.Chosen, c.Why = false, fmt.Sprintf("it matches, and %s is exclusive with priority %d", exclusive.Name, exclusive.Priority())
		case contains && winner != nil:
			c.Chosen, c.Next = false, true
			c.Why = fmt.Sprintf("it matches, and %s contains too and comes first (%s)", winner.Name, winner.precedes(c.Program))
		case contains:
			winner = c
			c.Waits = c.Shipped && later
		}
		if c.exclusive() && exclusive == nil && (c.Chosen || c.Next) {
			exclusive = c
		}
	}
	return out
}

// precedes says why the playbook comes before another.
func (p *Program) precedes(other *Program) string {
	switch {
	case p.Priority() != other.Priority():
		return fmt.Sprintf("priority %d over %d", p.Priority(), other.Priority())
	case p.Shipped != other.Shipped:
		return fmt.Sprintf("priority %d as well, and yours before a shipped one", p.Priority())
	}
	return fmt.Sprintf("priority %d as well, and it is listed first", p.Priority())
}
