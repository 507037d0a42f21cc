package manifests

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/worker/permissions"
)

// iamPolicyDocument is an IAM policy in AWS's format.
type iamPolicyDocument struct {
	Version   string         `json:"Version"`
	Statement []iamStatement `json:"Statement"`
}

type iamStatement struct {
	Sid      string   `json:"Sid"`
	Effect   string   `json:"Effect"`
	Action   []string `json:"Action"`
	Resource []string `json:"Resource"`
}

// WriteIAMPolicy returns exactly the policy that Stanch's own identity needs in a phase, from the actions' specs: the
// permissions of all actions for observing and planning, and those for applying of the classes that the phase permits.
func WriteIAMPolicy(catalog playbooks.Catalog, phase int) ([]byte, error) {
	if phase < 1 || phase > 3 {
		return nil, fmt.Errorf("invalid phase %d; 1 observes, 2 contains, 3 disrupts with approval", phase)
	}
	raw, err := json.MarshalIndent(buildIAMPolicy(catalog, phase), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the IAM policy: %w", err)
	}
	return append(raw, '\n'), nil
}

func buildIAMPolicy(catalog playbooks.Catalog, phase int) iamPolicyDocument {
	actions := map[string]map[string]bool{} // by resource
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
	for _, spec := range catalog {
		add(spec.PlanIAMPermissions)
		if permissions.IsAllowedInPhase(spec.Class, phase) {
			add(spec.ApplyIAMPermissions)
		}
	}
	if phase > 1 {
		add(orphanReadPermissions)
	}
	out := iamPolicyDocument{Version: "2012-10-17"}
	for _, resource := range slices.Sorted(maps.Keys(actions)) {
		var reads, writes []string
		for _, a := range slices.Sorted(maps.Keys(actions[resource])) {
			if isReadOnly(a) {
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
				out.Statement = append(out.Statement, iamStatement{
					Sid:    "Stanch" + part.word + statementName(resource),
					Effect: "Allow", Action: part.actions, Resource: []string{resource},
				})
			}
		}
	}
	return out
}

// orphanReadPermissions are the permissions of the orphan sweep.
var orphanReadPermissions = []playbooks.IAMPermission{{
	Actions:   []string{"iam:GetAccountAuthorizationDetails"},
	Resources: []string{"*"},
}}

// isReadOnly reports whether an action changes nothing, by the verb in its name.
func isReadOnly(action string) bool {
	_, name, _ := strings.Cut(action, ":")
	return slices.ContainsFunc([]string{"Get", "List", "Describe", "Lookup", "Simulate"},
		func(verb string) bool { return strings.HasPrefix(name, verb) })
}

// statementName returns a statement's name, derived from its resource.
func statementName(resource string) string {
	for part, name := range map[string]string{":role/": "Roles", ":user/": "Users"} {
		if strings.Contains(resource, part) {
			return name
		}
	}
	return ""
}
