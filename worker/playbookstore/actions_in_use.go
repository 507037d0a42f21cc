package playbookstore

import (
	"maps"
	"slices"

	"stanch/playbooks"
	"stanch/worker/config"
)

// cloudTrailAction declares the permissions with which CloudTrail's events are attributed to pods.
const cloudTrailAction = "aws.identity"

// ActionsInUse returns the names of the actions that an installation with these playbooks can run, sorted: those of the
// playbooks' steps, with every branch and every playbook that they call, and those that Stanch runs without a playbook.
// A shipped playbook that a user's playbook replaces counts too, because `stanch run` can start it. A nil configuration
// has no account.
func ActionsInUse(c *config.Config, programs []*playbooks.Program, catalog playbooks.Catalog) []string {
	used := map[string]bool{}
	for _, p := range programs {
		collectActions(used, p)
	}
	for _, p := range requestablePlaybooks(catalog) { // `stanch contain`
		collectActions(used, p)
	}
	if c != nil && c.AWS != nil && c.AWS.CloudTrail != nil {
		used[cloudTrailAction] = true
	}
	return slices.Sorted(maps.Keys(used))
}

// collectActions adds the actions of a playbook and of its callees.
func collectActions(used map[string]bool, p *playbooks.Program) {
	for _, book := range append([]*playbooks.Program{p}, p.TransitiveCallees()...) {
		book.WalkSteps(func(s *playbooks.Step) {
			if s.Action != "" {
				used[s.Action] = true
			}
		})
	}
}

// ActionsInUse returns the actions that this installation can run with the playbooks in force.
func (l *Store) ActionsInUse() []string { return ActionsInUse(l.config, l.Programs(), l.catalog) }
