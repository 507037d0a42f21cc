package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// riskyPermission is a permission that an attacker can use beyond the pod. Only the first match of a rule is reported.
type riskyPermission struct {
	groups, resources, verbs []string
	description              string
}

// riskyPermissions returns the table, most harmful first. "*" in a rule matches everything; in this table it matches
// only itself.
func riskyPermissions() []riskyPermission {
	return []riskyPermission{
		{[]string{"*"}, []string{"*"}, []string{"*"}, "do anything"},
		{[]string{"rbac.authorization.k8s.io"}, nil, []string{"escalate", "bind"}, "grant itself any permission"},
		{nil, []string{"users", "groups", "serviceaccounts"}, []string{"impersonate"}, "impersonate others"},
		{[]string{""}, []string{"serviceaccounts/token"}, []string{"create"}, "create tokens for other accounts"},
		{[]string{"rbac.authorization.k8s.io"}, nil, []string{"create", "update", "patch"}, "change roles and role bindings"},
		{[]string{""}, []string{"secrets"}, []string{"get", "list", "watch"}, "read secrets"},
		{[]string{""}, []string{"pods/exec", "pods/attach", "pods/ephemeralcontainers"}, []string{
			"create", "get", "update",
			"patch",
		}, "run commands in other pods"},
		{[]string{""}, []string{"nodes/proxy"}, []string{"get", "create"}, "access the kubelet as the API server"},
		{
			[]string{""},
			[]string{"pods"},
			[]string{"create"},
			"create pods, and thereby use any service account and secret in the namespace",
		},
		{
			[]string{"apps", "batch"},
			nil,
			[]string{"create", "update", "patch"},
			"change workloads, and thereby run code in them",
		},
		{
			[]string{"admissionregistration.k8s.io"},
			nil,
			[]string{"create", "update", "patch"},
			"change admission control, and thereby what others create",
		},
		{[]string{""}, []string{"nodes"}, []string{"update", "patch", "delete"}, "change nodes"},
	}
}

// matchesRule reports whether a rule grants at least one of the verbs on one of the resources.
func (d riskyPermission) matchesRule(r rbacv1.PolicyRule) bool {
	return intersects(r.APIGroups, d.groups) && intersects(r.Resources, d.resources) && intersects(r.Verbs, d.verbs)
}

func intersects(granted, dangerous []string) bool {
	if len(granted) == 0 {
		return false // a rule about URLs
	}
	if dangerous == nil || slices.Contains(granted, "*") {
		return true
	}
	return slices.ContainsFunc(dangerous, func(s string) bool { return slices.Contains(granted, s) })
}

// permissionCollector collects what a service account may do by every binding that names it or one of its groups, and
// which of these permissions changed recently.
type permissionCollector struct {
	client          kubernetes.Interface
	namespace, name string // of the account
	since           time.Time
	roles           map[string]*cachedRole // each role is read once
	grants          []GrantedRule
	risky           []string
	changes         []Change
}

type cachedRole struct {
	rules []rbacv1.PolicyRule
}

// binding is a RoleBinding or a ClusterRoleBinding; the namespace of the latter is "".
type binding struct {
	label    string
	object   metav1.Object
	role     rbacv1.RoleRef
	subjects []rbacv1.Subject
}

// collect reads all bindings and the roles of those that name the account.
func (r *permissionCollector) collect(ctx context.Context) error {
	cluster, err := r.client.RbacV1().ClusterRoleBindings().List(ctx, cachedListOptions())
	if err != nil {
		return fmt.Errorf("list cluster role bindings: %w", err)
	}
	for i := range cluster.Items {
		b := &cluster.Items[i]
		if err := r.addBinding(ctx, binding{"ClusterRoleBinding " + b.Name, b, b.RoleRef, b.Subjects}); err != nil {
			return err
		}
	}
	bindings, err := r.client.RbacV1().RoleBindings("").List(ctx, cachedListOptions())
	if err != nil {
		return fmt.Errorf("list role bindings: %w", err)
	}
	for i := range bindings.Items {
		b := &bindings.Items[i]
		label := "RoleBinding " + b.Namespace + "/" + b.Name
		if err := r.addBinding(ctx, binding{label, b, b.RoleRef, b.Subjects}); err != nil {
			return err
		}
	}
	return nil
}

func (r *permissionCollector) addBinding(ctx context.Context, b binding) error {
	namespace := b.object.GetNamespace()
	everybody, ok := r.matchesSubjects(namespace, b.subjects)
	if !ok {
		return nil
	}
	name := b.role.Kind + " " + b.role.Name
	if b.role.Kind == "Role" {
		name = "Role " + namespace + "/" + b.role.Name
	}
	role, err := r.resolveRole(ctx, name, namespace, b.role)
	if err != nil {
		return err
	}
	// Permissions of every account that exist since the cluster's creation are not recent; a new binding of them is.
	r.addChangeIfRecent(b.label, b.object)
	for _, rule := range role.rules {
		g := GrantedRule{
			Namespace: namespace, Binding: b.label, Role: name, Groups: rule.APIGroups, Resources: rule.Resources,
			ResourceNames: rule.ResourceNames, NonResourceURLs: rule.NonResourceURLs, Verbs: rule.Verbs,
		}
		if !everybody {
			r.grants = append(r.grants, g)
		}
		r.addIfRisky(rule, g)
	}
	return nil
}

// addIfRisky adds the most harmful permission of a rule.
func (r *permissionCollector) addIfRisky(rule rbacv1.PolicyRule, g GrantedRule) {
	for _, d := range riskyPermissions() {
		if !d.matchesRule(rule) {
			continue
		}
		text := fmt.Sprintf("%s %s (%s by %s)", d.description, g.describeScope(), g.Role, g.Binding)
		if len(rule.ResourceNames) > 0 {
			text += fmt.Sprintf(", limited to %d named objects", len(rule.ResourceNames))
		}
		if !slices.Contains(r.risky, text) {
			r.risky = append(r.risky, text)
		}
		return
	}
}

// matchesSubjects reports whether the subjects include the account, and whether only because they include everybody.
func (r *permissionCollector) matchesSubjects(bindingNamespace string, subjects []rbacv1.Subject) (everybody, ok bool) {
	for _, s := range subjects {
		namespace := s.Namespace
		if namespace == "" {
			namespace = bindingNamespace
		}
		switch {
		case s.Kind == rbacv1.ServiceAccountKind && s.Name == r.name && namespace == r.namespace,
			s.Kind == rbacv1.UserKind && s.Name == "system:serviceaccount:"+r.namespace+":"+r.name,
			s.Kind == rbacv1.GroupKind && s.Name == "system:serviceaccounts:"+r.namespace:
			return false, true
		case s.Kind == rbacv1.GroupKind && slices.Contains([]string{
			"system:serviceaccounts", "system:authenticated",
		}, s.Name):
			everybody, ok = true, true
		}
	}
	return everybody, ok
}

func (r *permissionCollector) resolveRole(ctx context.Context, name, namespace string,
	ref rbacv1.RoleRef,
) (*cachedRole, error) {
	if known, ok := r.roles[name]; ok {
		return known, nil
	}
	got := &cachedRole{}
	var o metav1.Object
	var err error
	if ref.Kind == "Role" {
		one, getErr := r.client.RbacV1().Roles(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		got.rules, o, err = one.Rules, one, getErr
	} else {
		one, getErr := r.client.RbacV1().ClusterRoles().Get(ctx, ref.Name, metav1.GetOptions{})
		got.rules, o, err = one.Rules, one, getErr
	}
	if apierrors.IsNotFound(err) {
		r.roles[name] = got // a binding to a missing role grants nothing
		return got, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	r.roles[name] = got
	r.addChangeIfRecent(name, o)
	return got, nil
}

// addChangeIfRecent adds a change if an object of the account's permissions was created or changed recently.
func (r *permissionCollector) addChangeIfRecent(label string, o metav1.Object) {
	created := o.GetCreationTimestamp().Time
	by, when := lastWriter(o, "")
	switch {
	case by == "kube-apiserver": // default permissions of every cluster, created at its start
	case created.After(r.since):
		r.changes = append(r.changes, Change{
			ChangedAt: created, Kind: "rights", Description: label + " was created",
			ChangedBy: by,
		})
	case when.After(r.since):
		r.changes = append(r.changes, Change{
			ChangedAt: when, Kind: "rights", Description: label + " was changed",
			ChangedBy: by,
		})
	}
}

// cachedListOptions lets the API server answer from its cache: slightly stale data is sufficient here.
func cachedListOptions() metav1.ListOptions { return metav1.ListOptions{ResourceVersion: "0"} }
