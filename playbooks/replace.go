package playbooks

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"stanch/sensors/diagnostic"
)

// markReplaced marks the shipped playbooks that a user's playbook replaces, and warns where a replacement does less.
func (l *loader) markReplaced(programs []*Program) {
	shipped := map[string]*Program{}
	for _, p := range programs {
		if p.Shipped {
			shipped[p.Name] = p
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.playbooksByName)) {
		if book := l.playbooksByName[name]; !book.Shipped && l.programsByName[name] == nil && shipped[book.Replaces.Text] != nil {
			l.addError(book, book.Replaces.Pos, "replaced", "correct this one", fmt.Sprintf("the shipped playbook `%s` stays in force until then", book.Replaces.Text))
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
			l.addWarning(p.Playbook, p.Replaces.Pos, "replaces", "remove `replaces`", fmt.Sprintf("the shipped playbook `%s` is replaced already by yours of that name", name))
		case was == nil && len(l.shippedByName) == 0:
			// The library is off, or is not known here: there is nothing to replace.
		case was == nil:
			l.addError(p.Playbook, p.Replaces.Pos, "replaces", diagnostic.DidYouMean(name, l.shippedPlaybookNames()), fmt.Sprintf("no shipped playbook has the name `%s`", name))
		case was.Match == nil:
			l.addError(p.Playbook, p.Replaces.Pos, "replaces", fmt.Sprintf("name yours `%s` if the playbooks that call it are to call yours", name),
				fmt.Sprintf("no incident starts `%s`: other playbooks call it", name))
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

// warnLostSafeguards warns of evidence, approvals and containments that the replaced playbook has and its replacement has not.
// program is the replaced one where it was loaded; else its callees are taken from those of the new one.
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
	l.addWarning(p.Playbook, pos, "replacement", "add what is missing, or accept that it no longer happens",
		fmt.Sprintf("it replaces the shipped playbook `%s` and lacks its %s", was.Name, strings.Join(missing, ", ")))
}

func (l *loader) addWarning(book *Playbook, pos Pos, code, hint, message string) {
	l.addError(book, pos, code, hint, message)
	l.problems[len(l.problems)-1].Severity = "warning"
}

// PlaybookOverlap is two playbooks that may match one incident and both contain.
type PlaybookOverlap struct {
	First, Second *Program // First runs; Second if First is refused or fails before it contains anything
	Reason        string
}

// FindOverlaps finds the pairs of playbooks that may match one incident and both contain, where at least one is a user's. It
// compares objectives only: whether two conditions can hold at once is not computed.
func FindOverlaps(programs []*Program) []PlaybookOverlap {
	sorted := slices.Clone(programs)
	slices.SortStableFunc(sorted, comparePrecedence)
	var out []PlaybookOverlap
	for i, a := range sorted {
		for _, b := range sorted[i+1:] {
			if a.Shipped && b.Shipped || !a.isSelectable() || !b.isSelectable() || !sharesObjective(a.Match.Objectives, b.Match.Objectives) {
				continue
			}
			out = append(out, PlaybookOverlap{First: a, Second: b, Reason: a.precedenceReason(b)})
		}
	}
	return out
}

func (p *Program) isSelectable() bool { return p.Match != nil && p.ReplacedBy == "" && p.CanContain() }

// sharesObjective reports whether some objective is in both lists; an empty list has all.
func sharesObjective(a, b []Identifier) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(x Identifier) bool {
		return slices.ContainsFunc(b, func(y Identifier) bool { return x.Text == y.Text })
	})
}
