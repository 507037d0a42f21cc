package manifests

import (
	"fmt"
	"maps"
	"slices"

	"sigs.k8s.io/yaml"

	"stanch/activities/kube"
	"stanch/playbooks"
)

// permissionsFile is the chart's generated file with the permissions of every action.
const permissionsFile = "files/permissions.yaml"

// permissionsTable is the content of permissionsFile.
type permissionsTable struct {
	// Purposes say for each list of an action what its permissions are for.
	Purposes map[string]string `json:"purposes"`
	// Gateway are the permissions that every worker has.
	Gateway []reasonedPermission `json:"gateway"`
	// All are the names and classes of all actions, also of those that need no permission in the cluster.
	All     []actionClass       `json:"all"`
	Actions []actionPermissions `json:"actions"`
}

// reasonedPermission is a permission with the reason for it.
type reasonedPermission struct {
	Reason string `json:"reason"`
	playbooks.KubernetesPermission
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

// gatewayPermissions are the permissions that the gateway needs without any action: reads, and the review of tokens.
func gatewayPermissions() []reasonedPermission {
	all := []reasonedPermission{
		{
			"The gateway verifies where a pod runs before it accepts a node's detection.",
			playbooks.KubernetesPermission{Groups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}},
		},
		{
			"Missing nodes are reported.",
			playbooks.KubernetesPermission{Groups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list"}},
		},
		{
			"Namespaces that no longer enforce a pod security standard are reported.",
			playbooks.KubernetesPermission{Groups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list"}},
		},
		{
			"The gateway reviews people's tokens; a review is created and changes nothing.",
			playbooks.KubernetesPermission{
				Groups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"},
			},
		},
	}
	for _, p := range kube.ResolvePermissions() {
		all = append(all, reasonedPermission{"Guards read a target's owners, and which workload it belongs to.", p})
	}
	return all
}

// WritePermissions returns the chart's file with the permissions of the catalog's actions.
func WritePermissions(catalog playbooks.Catalog) ([]byte, error) {
	table := permissionsTable{
		Purposes: map[string]string{
			"plan": "observe and to plan", "orphans": "find what a lost lease left behind",
			"apply": "apply, to verify and to undo",
		},
		Gateway: gatewayPermissions(),
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
