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

// danger is a right that lets an attacker go further than the pod. The first that fits a rule is told.
type danger struct {
	groups, resources, verbs []string
	words                    string
}

// dangers are in falling order of harm; "*" in a rule matches everything, in this table only itself.
func dangers() []danger {
	return []danger{
		{[]string{"*"}, []string{"*"}, []string{"*"}, "may do everything"},
		{[]string{"rbac.authorization.k8s.io"}, nil, []string{"escalate", "bind"}, "may give itself any right"},
		{nil, []string{"users", "groups", "serviceaccounts"}, []string{"impersonate"}, "may act as somebody else"},
		{[]string{""}, []string{"serviceaccounts/token"}, []string{"create"}, "may make tokens of other accounts"},
		{[]string{"rbac.authorization.k8s.io"}, nil, []string{"create", "update", "patch"}, "may change roles and bindings"},
		{[]string{""}, []string{"secrets"}, []string{"get", "list", "watch"}, "may read secrets"},
		{[]string{""}, []string{"pods/exec", "pods/attach", "pods/ephemeralcontainers"}, []string{"create", "get", "update", "patch"}, "may run commands in other pods"},
		{[]string{""}, []string{"nodes/proxy"}, []string{"get", "create"}, "may talk to the kubelet as the API server"},
		{[]string{""}, []string{"pods"}, []string{"create"}, "may create pods, and so use any account and secret of the namespace"},
		{[]string{"apps", "batch"}, nil, []string{"create", "update", "patch"}, "may change workloads, and so run code in them"},
		{[]string{"admissionregistration.k8s.io"}, nil, []string{"create", "update", "patch"}, "may change admission, and so what everybody creates"},
		{[]string{""}, []string{"nodes"}, []string{"update", "patch", "delete"}, "may change nodes"},
	}
}

// fits tells whether a rule grants at least one verb on one resource of the danger.
func (d danger) fits(r rbacv1.PolicyRule) bool {
	return meets(r.APIGroups, d.groups) && meets(r.Resources, d.resources) && meets(r.Verbs, d.verbs)
}

func meets(granted, dangerous []string) bool {
	if len(granted) == 0 {
		return false // a rule about URLs
	}
	if dangerous == nil || slices.Contains(granted, "*") {
		return true
	}
	return slices.ContainsFunc(dangerous, func(s string) bool { return slices.Contains(granted, s) })
}

// account gathers what a service account may do through every binding that names it or a group that it is in, and
// which of these rights changed since.
func (q *question) account(ctx context.Context, client kubernetes.Interface, namespace, name string, since time.Time) (
	grants []Grant, dangerous []string, changes []Change, err error,
) {
	found := &rights{namespace: namespace, name: name, since: since, roles: map[string]*role{}}
	cluster, err := client.RbacV1().ClusterRoleBindings().List(ctx, cached())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("list cluster role bindings: %w", err)
	}
	for i := range cluster.Items {
		b := &cluster.Items[i]
		if err := found.binding(ctx, client, "ClusterRoleBinding "+b.Name, "", b, b.RoleRef, b.Subjects); err != nil {
			return nil, nil, nil, err
		}
	}
	bindings, err := client.RbacV1().RoleBindings("").List(ctx, cached())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("list role bindings: %w", err)
	}
	for i := range bindings.Items {
		b := &bindings.Items[i]
		if err := found.binding(ctx, client, "RoleBinding "+b.Namespace+"/"+b.Name, b.Namespace, b, b.RoleRef, b.Subjects); err != nil {
			return nil, nil, nil, err
		}
	}
	return found.grants, found.dangerous, found.changes, nil
}

// rights collects over bindings.
type rights struct {
	namespace, name string
	since           time.Time
	roles           map[string]*role // read once each
	grants          []Grant
	dangerous       []string
	changes         []Change
}

type role struct {
	rules []rbacv1.PolicyRule
}

func (r *rights) binding(ctx context.Context, client kubernetes.Interface, label, namespace string, o metav1.Object,
	ref rbacv1.RoleRef, subjects []rbacv1.Subject,
) error {
	everybody, ok := r.subject(namespace, subjects)
	if !ok {
		return nil
	}
	name := ref.Kind + " " + ref.Name
	if ref.Kind == "Role" {
		name = "Role " + namespace + "/" + ref.Name
	}
	role, err := r.role(ctx, client, name, namespace, ref)
	if err != nil {
		return err
	}
	// What every account may do since the cluster exists is no news; a fresh binding of it is.
	r.changed(label, o)
	for _, rule := range role.rules {
		g := Grant{
			Namespace: namespace, Binding: label, Role: name, Groups: rule.APIGroups, Resources: rule.Resources,
			Names: rule.ResourceNames, URLs: rule.NonResourceURLs, Verbs: rule.Verbs,
		}
		if !everybody {
			r.grants = append(r.grants, g)
		}
		for _, d := range dangers() {
			if d.fits(rule) {
				said := fmt.Sprintf("%s %s (%s by %s)", d.words, g.where(), name, label)
				if len(rule.ResourceNames) > 0 {
					said += fmt.Sprintf(", of %d names only", len(rule.ResourceNames))
				}
				if !slices.Contains(r.dangerous, said) {
					r.dangerous = append(r.dangerous, said)
				}
				break
			}
		}
	}
	return nil
}

// subject tells whether the account is meant, and whether only because everybody is.
func (r *rights) subject(bindingNamespace string, subjects []rbacv1.Subject) (everybody, ok bool) {
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

func (r *rights) role(ctx context.Context, client kubernetes.Interface, name, namespace string, ref rbacv1.RoleRef) (*role, error) {
	if known, ok := r.roles[name]; ok {
		return known, nil
	}
	got := &role{}
	var o metav1.Object
	var err error
	if ref.Kind == "Role" {
		one, getErr := client.RbacV1().Roles(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		got.rules, o, err = one.Rules, one, getErr
	} else {
		one, getErr := client.RbacV1().ClusterRoles().Get(ctx, ref.Name, metav1.GetOptions{})
		got.rules, o, err = one.Rules, one, getErr
	}
	if apierrors.IsNotFound(err) {
		r.roles[name] = got // a binding to nothing grants nothing
		return got, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	r.roles[name] = got
	r.changed(name, o)
	return got, nil
}

// changed notes that an object of the account's rights was made or written since.
func (r *rights) changed(label string, o metav1.Object) {
	created := o.GetCreationTimestamp().Time
	by, when := lastWriter(o, "")
	switch {
	case by == "kube-apiserver": // the rights that come with every cluster, put up when it starts
	case created.After(r.since):
		r.changes = append(r.changes, Change{When: created, Kind: "rights", What: label + " was created", By: by})
	case when.After(r.since):
		r.changes = append(r.changes, Change{When: when, Kind: "rights", What: label + " was changed", By: by})
	}
}

// cached lets the API server answer from its memory: a big list that is a moment old does here.
func cached() metav1.ListOptions { return metav1.ListOptions{ResourceVersion: "0"} }
