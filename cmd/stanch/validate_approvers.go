package main

import (
	"fmt"
	"slices"

	"stanch/playbooks"
	"stanch/sensors/diagnostic"
	"stanch/worker/config"
)

// findUnknownApprovers returns an error for every approver of a playbook that the configuration does not define.
func (g *globalFlags) findUnknownApprovers(c *config.Config, files []string,
	sources map[string][]byte,
) diagnostic.Diagnostics {
	groups := c.GroupNames()
	var people []string
	for _, p := range c.People {
		people = append(people, p.Name)
	}
	var out diagnostic.Diagnostics
	programs, _ := loadValidated(files, sources)
	for _, p := range programs {
		if sources[p.File] == nil {
			continue
		}
		p.WalkSteps(func(s *playbooks.Step) {
			if s.Approval == nil {
				return
			}
			unknown := func(what, name string, known []string) {
				if !slices.Contains(known, name) {
					out = append(out, diagnostic.Diagnostic{
						File: p.File, Line: s.Pos.Line, Column: s.Pos.Column, Severity: "error", Code: "unknown-" + what,
						Hint: diagnostic.DidYouMean(name, known),
						Message: fmt.Sprintf("unknown %s `%s` in the approval: not defined in %s", what, name,
							g.configFile),
					})
				}
			}
			asked := append(append([]string{}, s.Approval.Groups...),
				escalationNames(s.Approval, func(e *playbooks.Escalation) []string { return e.Groups })...)
			for _, name := range asked {
				unknown("group", name, groups)
			}
			for _, name := range append(append([]string{}, s.Approval.Users...),
				escalationNames(s.Approval, func(e *playbooks.Escalation) []string { return e.Users })...) {
				unknown("person", name, people)
			}
		})
	}
	return out
}

// escalationNames returns the names that an approval escalates to; nil without escalation.
func escalationNames(a *playbooks.Approval, of func(*playbooks.Escalation) []string) []string {
	if a.Escalate == nil {
		return nil
	}
	return of(a.Escalate)
}
