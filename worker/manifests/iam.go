package manifests

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"stanch/playbooks"
)

// policy is an IAM policy as AWS takes it.
type policy struct {
	Version   string
	Statement []statement
}

type statement struct {
	Sid      string
	Effect   string
	Action   []string
	Resource []string
}

// IAM writes the policy that Stanch's own identity needs in a phase and nothing more, from the actions' specs: what all
// need to observe and to plan, and what those need to act whose class the phase lets run.
func IAM(catalogue playbooks.Catalog, phase int) ([]byte, error) {
	if phase < 1 || phase > 3 {
		return nil, fmt.Errorf("the phase %d is none: 1 observes, 2 contains, 3 disrupts behind approval", phase)
	}
	raw, err := json.MarshalIndent(iamPolicy(catalogue, phase), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the IAM policy: %w", err)
	}
	return append(raw, '\n'), nil
}

func iamPolicy(catalogue playbooks.Catalog, phase int) policy {
	actions := map[string]map[string]bool{} // by resources
	add := func(rights []playbooks.IAMPermission) {
		for _, r := range rights {
			for _, resource := range r.Resources {
				if actions[resource] == nil {
					actions[resource] = map[string]bool{}
				}
				for _, a := range r.Actions {
					actions[resource][a] = true
				}
			}
		}
	}
	for _, spec := range catalogue {
		add(spec.PlanIAMPermissions)
		if runsIn(spec.Class, phase) {
			add(spec.ApplyIAMPermissions)
		}
	}
	if phase > 1 {
		add(sweeps)
	}
	out := policy{Version: "2012-10-17"}
	for _, resource := range slices.Sorted(maps.Keys(actions)) {
		var reads, writes []string
		for _, a := range slices.Sorted(maps.Keys(actions[resource])) {
			if readsOnly(a) {
				reads = append(reads, a)
			} else {
				writes = append(writes, a)
			}
		}
		for _, part := range []struct {
			word    string
			actions []string
		}{{"Reads", reads}, {"Writes", writes}} {
			if len(part.actions) > 0 {
				out.Statement = append(out.Statement, statement{Sid: "Stanch" + part.word + kindOf(resource), Effect: "Allow", Action: part.actions, Resource: []string{resource}})
			}
		}
	}
	return out
}

// sweeps are what the sweeper reads by itself, to find what outlived its lease.
var sweeps = []playbooks.IAMPermission{{Actions: []string{"iam:GetAccountAuthorizationDetails"}, Resources: []string{"*"}}}

// readsOnly tells whether an action changes nothing, by the verb of its name.
func readsOnly(action string) bool {
	_, name, _ := strings.Cut(action, ":")
	return slices.ContainsFunc([]string{"Get", "List", "Describe", "Lookup", "Simulate"}, func(verb string) bool { return strings.HasPrefix(name, verb) })
}

// kindOf names a statement after what it is about.
func kindOf(resource string) string {
	for part, name := range map[string]string{":role/": "Roles", ":user/": "Users"} {
		if strings.Contains(resource, part) {
			return name
		}
	}
	return ""
}
