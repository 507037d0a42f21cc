package manifests

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"

	"stanch/activities/kube"
	"stanch/playbooks"
)

// ClusterRules returns exactly the cluster-wide rules that a worker needs in a phase: those of every action for
// observing, planning and finding orphans, and those for applying of the classes that the phase permits. The rules are
// merged and sorted.
func ClusterRules(catalog playbooks.Catalog, phase int) []rbacv1.PolicyRule {
	all := permissionSet{}
	for _, spec := range catalog {
		all.add(spec.PlanPermissions)
		all.add(spec.OrphanPermissions)
		if isAllowedInPhase(spec.Class, phase) {
			all.add(spec.ApplyPermissions)
		}
	}
	all.add(baseReadPermissions)
	all.add(kube.ResolvePermissions())
	return all.toPolicyRules()
}

// isAllowedInPhase reports whether a phase permits a class of actions.
func isAllowedInPhase(class playbooks.Class, phase int) bool {
	switch class {
	case playbooks.ClassObserve:
		return true
	case playbooks.ClassContain:
		return phase >= 2
	case playbooks.ClassDisrupt:
		return phase >= 3
	}
	return false
}

// baseReadPermissions are the read permissions of the gateway.
var baseReadPermissions = []playbooks.KubernetesPermission{
	// The gateway verifies where a pod runs before it accepts a node's detection.
	{Groups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}},
	// Missing nodes are reported.
	{Groups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list"}},
	// Namespaces that no longer enforce a pod security standard are reported, so those that do must be known.
	{Groups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list"}},
	// The gateway reviews people's tokens. A TokenReview is "created" and changes nothing.
	{Groups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
}

// permissionSet contains verbs by "GROUP/RESOURCE".
type permissionSet map[string]map[string]bool

func (r permissionSet) add(more []playbooks.KubernetesPermission) {
	for _, right := range more {
		for _, group := range right.Groups {
			for _, resource := range right.Resources {
				key := group + "|" + resource
				if r[key] == nil {
					r[key] = map[string]bool{}
				}
				for _, verb := range right.Verbs {
					r[key][verb] = true
				}
			}
		}
	}
}

// toPolicyRules merges resources of one group with the same verbs into one rule.
func (r permissionSet) toPolicyRules() []rbacv1.PolicyRule {
	same := map[string]*rbacv1.PolicyRule{}
	for _, key := range slices.Sorted(maps.Keys(r)) {
		group, resource, _ := strings.Cut(key, "|")
		verbs := slices.SortedFunc(maps.Keys(r[key]), compareVerbs)
		id := group + "|" + fmt.Sprint(verbs)
		if same[id] == nil {
			same[id] = &rbacv1.PolicyRule{APIGroups: []string{group}, Verbs: verbs}
		}
		same[id].Resources = append(same[id].Resources, resource)
	}
	var out []rbacv1.PolicyRule
	for _, id := range slices.Sorted(maps.Keys(same)) {
		out = append(out, *same[id])
	}
	return out
}

// verbOrder is the order of verbs for readers: reads first.
var verbOrder = []string{"get", "list", "watch", "create", "update", "patch", "delete"}

func compareVerbs(a, b string) int {
	x, y := slices.Index(verbOrder, a), slices.Index(verbOrder, b)
	if x < 0 || y < 0 || x == y {
		return strings.Compare(a, b)
	}
	return x - y
}
