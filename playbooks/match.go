package playbooks

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"stanch/sensors"
)

// Matches tells whether the playbook handles the incident, and why or why not in one sentence.
func (p *Program) Matches(incident Incident) (bool, string) {
	m := p.Match
	if m == nil {
		return false, "only `call` runs it"
	}
	if len(m.Objectives) > 0 {
		var names []string
		for _, o := range m.Objectives {
			names = append(names, o.Text)
		}
		if !slices.Contains(names, string(incident.Objective)) {
			return false, fmt.Sprintf("the objective is %s, not %s", incident.Objective, strings.Join(names, " or "))
		}
	}
	if s := m.Severity.Text; s != "" && incident.Severity.Rank() < sensors.Severity(s).Rank() {
		return false, fmt.Sprintf("the severity is %s, below %s", incident.Severity, s)
	}
	env, err := p.NewEnv(incident, nil)
	ok := false
	if err == nil {
		ok, err = p.Bool(m.When, env)
	}
	switch {
	case err != nil:
		return false, fmt.Sprintf("its condition cannot be evaluated: %v", err)
	case !ok:
		return false, fmt.Sprintf("its condition does not hold: %s", m.When.Source)
	}
	return true, "it matches"
}

// Choice is what was decided about a playbook for an incident, and why.
type Choice struct {
	*Program
	Chosen bool
	Why    string
}

// Choose decides which of the playbooks handle an incident: those that match, the highest priority first, and none that
// an exclusive one holds back.
func Choose(programs []*Program, incident Incident) []Choice {
	out := make([]Choice, 0, len(programs))
	for _, p := range programs {
		matches, why := p.Matches(incident)
		out = append(out, Choice{p, matches, why})
	}
	slices.SortStableFunc(out, func(a, b Choice) int { return cmp.Compare(b.priority(), a.priority()) })
	first := slices.IndexFunc(out, func(c Choice) bool { return c.Chosen && c.Match.Exclusive })
	for i := range out {
		if first >= 0 && i > first && out[i].Chosen || first >= 0 && i < first && out[i].Chosen && out[i].priority() == out[first].priority() {
			out[i].Chosen, out[i].Why = false, fmt.Sprintf("it matches, and %s is exclusive with priority %d", out[first].Name, out[first].priority())
		}
	}
	return out
}

func (c Choice) priority() int {
	if c.Match == nil {
		return -1
	}
	return c.Match.Priority
}
