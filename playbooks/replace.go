package playbooks

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"stanch/sensors/diagnostic"
)

// markReplaced marks the shipped playbooks that users' playbooks replace, and warns if a replacement removes
// safeguards.
func (l *loader) markReplaced(programs []*Program) {
	shipped := map[string]*Program{}
	for _, p := range programs {
		if p.Shipped {
			shipped[p.Name] = p
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.playbooksByName)) {
		if book := l.playbooksByName[name]; !book.Shipped && l.programsByName[name] == nil &&
			shipped[book.Replaces.Text] != nil {
			l.addError(book, book.Replaces.Pos, "replaced", "fix this playbook",
				fmt.Sprintf("the shipped playbook `%s` stays in use until then", book.Replaces.Text))
		}
	}
	for _, p := range programs {
		if was := l.shippedByName[p.Name]; !p.Shipped && was != nil {
			l.warnLostSafeguards(p, p.NamePos, was, nil)
		}
		name := p.Replaces.Text
		if name == "" {
			continue
		}
		was := shipped[name]
		switch {
		case was == nil && l.shippedByName[name] != nil:
			l.addWarning(p.Playbook, p.Replaces.Pos, "replaces", "remove `replaces`",
				fmt.Sprintf("your playbook with the name `%s` already replaces the shipped one", name))
		case was == nil && len(l.shippedByName) == 0:
			// The library is disabled or not loaded: nothing can be replaced.
		case was == nil:
			l.addError(p.Playbook, p.Replaces.Pos, "replaces", diagnostic.DidYouMean(name, l.shippedPlaybookNames()),
				fmt.Sprintf("unknown shipped playbook `%s`", name))
		case was.Match == nil:
			l.addError(p.Playbook, p.Replaces.Pos, "replaces",
				fmt.Sprintf("rename your playbook to `%s`, so that callers run yours instead", name),
				fmt.Sprintf("`%s` cannot be replaced: no incident starts it, and other playbooks call it", name))
		default:
			was.ReplacedBy = p.Name
			l.warnLostSafeguards(p, p.Replaces.Pos, was.Playbook, was)
		}
	}
}

func (l *loader) shippedPlaybookNames() []string {
	var names []string
	for name, book := range l.shippedByName {
		if book.Match != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// warnLostSafeguards warns about evidence, approvals and containments that the replaced playbook has and its
// replacement lacks. program is the replaced playbook if it was loaded; otherwise the callees of the new one are used.
func (l *loader) warnLostSafeguards(p *Program, pos Pos, was *Playbook, program *Program) {
	does := func(books ...*Playbook) map[string]bool {
		found := map[string]bool{}
		for _, b := range books {
			walkSteps(slices.Concat(b.Steps, b.Finally), func(s *Step) {
				switch {
				case s.Approval != nil:
					found["approval"] = true
				case s.Verb == VerbContain || s.Verb == VerbEvidence:
					found[string(s.Verb)+": "+s.Action] = true
				}
			})
		}
		return found
	}
	old := []*Playbook{was}
	if program != nil {
		for _, callee := range program.TransitiveCallees() {
			old = append(old, callee.Playbook)
		}
	} else {
		walkSteps(was.Steps, func(s *Step) {
			if s.Call != nil && l.playbooksByName[s.Call.Playbook] != nil {
				old = append(old, l.playbooksByName[s.Call.Playbook])
			}
		})
	}
	own := []*Playbook{p.Playbook}
	for _, callee := range p.TransitiveCallees() {
		own = append(own, callee.Playbook)
	}
	now := does(own...)
	var missing []string
	for what := range does(old...) {
		if !now[what] {
			missing = append(missing, "`"+what+"`")
		}
	}
	if len(missing) == 0 {
		return
	}
	slices.Sort(missing)
	l.addWarning(p.Playbook, pos, "replacement", "add the missing steps, or accept that they no longer run",
		fmt.Sprintf("the playbook replaces the shipped playbook `%s`, but lacks its %s", was.Name,
			strings.Join(missing, ", ")))
}

func (l *loader) addWarning(book *Playbook, pos Pos, code, hint, message string) {
	l.addError(book, pos, code, hint, message)
	l.problems[len(l.problems)-1].Severity = "warning"
}

// PlaybookOverlap is a pair of playbooks that may match the same incident and both contain.
type PlaybookOverlap struct {
	First, Second *Program // Second runs only if First is refused or fails before it contains anything
	Reason        string
}

// FindOverlaps returns the pairs of playbooks that may match the same incident and both contain, if at least one is a
// user's. It compares objectives only: it does not compute whether two conditions can both be true.
func FindOverlaps(programs []*Program) []PlaybookOverlap {
	sorted := slices.Clone(programs)
	slices.SortStableFunc(sorted, comparePrecedence)
	var out []PlaybookOverlap
	for i, a := range sorted {
		for _, b := range sorted[i+1:] {
			if a.Shipped && b.Shipped || !a.isSelectable() || !b.isSelectable() || !sharesObjective(a.Match.Objectives,
				b.Match.Objectives) {
				continue
			}
			out = append(out, PlaybookOverlap{First: a, Second: b, Reason: a.precedenceReason(b)})
		}
	}
	return out
}

func (p *Program) isSelectable() bool { return p.Match != nil && p.ReplacedBy == "" && p.CanContain() }

// sharesObjective reports whether two lists have an objective in common. An empty list contains every objective.
func sharesObjective(a, b []Identifier) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(x Identifier) bool {
		return slices.ContainsFunc(b, func(y Identifier) bool { return x.Text == y.Text })
	})
}
