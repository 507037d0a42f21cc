package manifests

import (
	"fmt"
	"maps"
	"slices"

	"sigs.k8s.io/yaml"

	"stanch/playbooks"
	"stanch/worker/permissions"
)

// permissionsTable is the content of the chart's files/permissions.yaml.
type permissionsTable struct {
	// Purposes say for each list of an action what its permissions are for.
	Purposes map[string]string `json:"purposes"`
	// Gateway are the permissions that every worker has.
	Gateway []permissions.Reasoned `json:"gateway"`
	// All are the names and classes of all actions, also of those that need no permission in the cluster.
	All     []actionClass       `json:"all"`
	Actions []actionPermissions `json:"actions"`
}

// actionClass is an action with its class.
type actionClass struct {
	Name  string          `json:"name"`
	Class playbooks.Class `json:"class"`
}

// actionPermissions are the permissions that one action declares.
type actionPermissions struct {
	Name    string                           `json:"name"`
	Class   playbooks.Class                  `json:"class"`
	Plan    []playbooks.KubernetesPermission `json:"plan,omitempty"`
	Orphans []playbooks.KubernetesPermission `json:"orphans,omitempty"`
	Apply   []playbooks.KubernetesPermission `json:"apply,omitempty"`
}

// WritePermissions returns the chart's file with the permissions of the catalog's actions.
func WritePermissions(catalog playbooks.Catalog) ([]byte, error) {
	table := permissionsTable{
		Purposes: map[string]string{
			"plan": "observe and to plan", "orphans": "find what a lost lease left behind",
			"apply": "apply, to verify and to undo",
		},
		Gateway: permissions.Gateway(),
	}
	for _, name := range slices.Sorted(maps.Keys(catalog)) {
		spec := catalog[name]
		table.All = append(table.All, actionClass{name, spec.Class})
		if len(spec.PlanPermissions)+len(spec.OrphanPermissions)+len(spec.ApplyPermissions) == 0 {
			continue
		}
		table.Actions = append(table.Actions, actionPermissions{
			Name: name, Class: spec.Class, Plan: spec.PlanPermissions, Orphans: spec.OrphanPermissions,
			Apply: spec.ApplyPermissions,
		})
	}
	raw, err := yaml.Marshal(table)
	if err != nil {
		return nil, fmt.Errorf("write the permissions: %w", err)
	}
	return append([]byte("# Generated from the actions: go test ./worker/manifests -update.\n"), raw...), nil
}
