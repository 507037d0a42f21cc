// Package permissions knows which Kubernetes permissions a worker needs for its actions in a phase, and compares them
// with those that it has.
//
// It grants nothing and knows no manifests: the chart grants, from the same declarations.
package permissions

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"stanch/activities/kube"
	"stanch/playbooks"
)

// Reasoned is a permission with the reason for it.
type Reasoned struct {
	Reason string `json:"reason"`
	playbooks.KubernetesPermission
}

// Gateway returns the permissions that the gateway needs without any action: reads, and the review of tokens.
func Gateway() []Reasoned {
	all := []Reasoned{
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
		all = append(all, Reasoned{"Guards read a target's owners, and which workload it belongs to.", p})
	}
	return all
}

// IsAllowedInPhase reports whether a phase permits a class of actions.
func IsAllowedInPhase(class playbooks.Class, phase int) bool {
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

// Permission is one verb on one resource: cluster-wide, or on one object in a namespace.
type Permission struct {
	Verb     string
	Group    string // "" is the core group
	Resource string // "pods", or "pods/eviction" with a subresource
	// Namespace and Name restrict the permission to one object; "" means everywhere.
	Namespace, Name string
}

// String returns the permission for a person: "patch deployments.apps/scale".
func (p Permission) String() string {
	resource, subresource, hasSubresource := strings.Cut(p.Resource, "/")
	if p.Group != "" {
		resource += "." + p.Group
	}
	if hasSubresource {
		resource += "/" + subresource
	}
	if p.Name != "" {
		return p.Verb + " " + resource + " " + p.Namespace + "/" + p.Name
	}
	return p.Verb + " " + resource
}

func comparePermissions(a, b Permission) int {
	return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Verb, b.Verb),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Set contains permissions, each with what needs it: names of actions, or components such as "gateway".
type Set map[Permission][]string

func (s Set) add(neededBy string, declared ...playbooks.KubernetesPermission) {
	for _, d := range declared {
		for _, group := range d.Groups {
			for _, resource := range d.Resources {
				for _, verb := range d.Verbs {
					s.addOne(neededBy, Permission{Verb: verb, Group: group, Resource: resource})
				}
			}
		}
	}
}

func (s Set) addOne(neededBy string, p Permission) {
	if !slices.Contains(s[p], neededBy) {
		s[p] = append(s[p], neededBy)
	}
}

// Scope is what an installation may run.
type Scope struct {
	Catalog playbooks.Catalog
	Phase   int
	// InUse are the actions that the playbooks can run.
	InUse []string
	// Namespace is Stanch's own, whose ConfigMaps StateConfigMaps store shared state; "" outside a cluster.
	Namespace       string
	StateConfigMaps []string
}

// Required returns the permissions that an installation needs.
func (s Scope) Required() Set {
	out := Set{}
	for _, p := range Gateway() {
		out.add("gateway", p.KubernetesPermission)
	}
	if s.Namespace != "" {
		for _, name := range s.StateConfigMaps {
			for _, verb := range []string{"get", "patch"} {
				out.addOne("shared state", Permission{
					Verb: verb, Resource: "configmaps", Namespace: s.Namespace,
					Name: name,
				})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Catalog)) {
		spec := s.Catalog[name]
		out.add("orphan sweep", spec.OrphanPermissions...)
		if !slices.Contains(s.InUse, name) {
			continue
		}
		out.add(name, spec.PlanPermissions...)
		if IsAllowedInPhase(spec.Class, s.Phase) {
			out.add(name, spec.ApplyPermissions...)
		}
	}
	return out
}

// Unneeded returns the permissions that actions declare, and that this installation does not need: of actions that no
// playbook uses, and of classes that the phase does not permit.
func (s Scope) Unneeded() Set {
	out, required := Set{}, s.Required()
	for _, name := range slices.Sorted(maps.Keys(s.Catalog)) {
		spec := s.Catalog[name]
		out.add(name, spec.PlanPermissions...)
		out.add(name, spec.ApplyPermissions...)
	}
	maps.DeleteFunc(out, func(p Permission, _ []string) bool { return required[p] != nil })
	return out
}
