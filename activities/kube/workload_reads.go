package kube

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
)

// readOwners follows the chain of controllers.
func (q *workloadQuery) readOwners(ctx context.Context, client kubernetes.Interface) error {
	next, _ := controllerOwner(q.pod)
	for range maxOwners {
		if next == nil {
			return nil
		}
		ref := ObjectRef{Kind: next.Kind, Name: next.Name, UID: string(next.UID)}
		q.result.OwnerChain = append(q.result.OwnerChain, ref)
		q.result.Owner = OwnerInfo{ObjectRef: ref}
		o, desired, ready, err := getOwner(ctx, client, q.pod.Namespace, *next)
		if apierrors.IsNotFound(err) || o == nil && err == nil {
			return nil // deleted without its pods, or of a kind that cannot be read
		}
		if err != nil {
			return err
		}
		q.result.Owner.Labels, q.result.Owner.CreatedAt = o.GetLabels(), o.GetCreationTimestamp().Time
		q.result.Owner.DesiredReplicas, q.result.Owner.ReadyReplicas = desired, ready
		next, _ = controllerOwner(o)
	}
	return nil
}

// getOwner reads an owner; the object is nil if its kind cannot be read.
func getOwner(ctx context.Context, client kubernetes.Interface, namespace string, owner metav1.OwnerReference) (
	o metav1.Object, desired, ready *int32, err error,
) {
	ref := ObjectRef{Kind: owner.Kind, Name: owner.Name, UID: string(owner.UID)}
	if group, _, _ := strings.Cut(owner.APIVersion, "/"); group != "apps" && group != "batch" {
		custom, replicas, err := readOwner(ctx, client, namespace, owner)
		if err != nil {
			return nil, nil, nil, nil //nolint:nilerr // most installations may not read custom owners
		}
		return custom, replicas, nil, nil
	}
	switch ref.Kind {
	case "Deployment", "StatefulSet", "ReplicaSet":
		w, err := WorkloadRef{Kind: ref.Kind, Namespace: namespace, Name: ref.Name, UID: ref.UID}.getWorkload(ctx, client)
		if errors.Is(err, activities.ErrTargetGone) {
			return nil, nil, nil, nil
		}
		if err != nil {
			return nil, nil, nil, err
		}
		return w.meta, &w.replicas, &w.readyReplicas, nil
	case "DaemonSet":
		d, err := client.AppsV1().DaemonSets(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		return d, &d.Status.DesiredNumberScheduled, &d.Status.NumberReady, err
	case "Job":
		j, err := client.BatchV1().Jobs(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		return j, j.Spec.Parallelism, j.Status.Ready, err
	case "CronJob":
		c, err := client.BatchV1().CronJobs(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		return c, nil, nil, err
	}
	return nil, nil, nil, nil
}

// readPods reads every pod of the cluster once, and collects those with the same image or node.
func (q *workloadQuery) readPods(ctx context.Context, client kubernetes.Interface) error {
	ours := map[string]bool{}
	for _, c := range q.result.Pod.Containers {
		if c.ImageDigest != "" {
			ours[c.ImageDigest] = true
		}
	}
	all, err := client.CoreV1().Pods("").List(ctx, cachedListOptions())
	if err != nil {
		return err
	}
	for i := range all.Items {
		p := &all.Items[i]
		if p.UID == q.pod.UID {
			continue
		}
		summary := summarizePod(p)
		if runsAnyDigest(p, ours) {
			q.result.SameDigestPods.add(summary, q.MaxListItems)
		}
		if p.Spec.NodeName != "" && p.Spec.NodeName == q.pod.Spec.NodeName {
			q.result.SameNodePods.add(summary, q.MaxListItems)
		}
	}
	return nil
}

func summarizePod(p *corev1.Pod) PodSummary {
	s := PodSummary{PodRef: PodRef{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}, Node: p.Spec.NodeName}
	if o := metav1.GetControllerOf(p); o != nil {
		s.Owner = ObjectRef{Kind: o.Kind, Name: o.Name, UID: string(o.UID)}
	}
	return s
}

// runsAnyDigest reports whether a container of the pod that has not ended for good runs one of the digests.
func runsAnyDigest(p *corev1.Pod, digests map[string]bool) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return false
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if digests[digestFromImageID(s.ImageID)] {
			return true
		}
	}
	return false
}

func (q *workloadQuery) readAccount(ctx context.Context, client kubernetes.Interface) error {
	account := &q.result.ServiceAccount
	account.Namespace, account.Name = q.pod.Namespace, cmp.Or(q.pod.Spec.ServiceAccountName, "default")
	for _, v := range q.pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			account.TokenMounted = account.TokenMounted || s.ServiceAccountToken != nil
		}
	}
	sa, err := client.CoreV1().ServiceAccounts(account.Namespace).Get(ctx, account.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // deleted while the pod runs
	}
	if err != nil {
		return err
	}
	for _, key := range []string{
		"eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account",
		"azure.workload.identity/client-id",
	} {
		if value := sa.Annotations[key]; value != "" {
			account.CloudRoles = append(account.CloudRoles, CloudRoleAnnotation{Annotation: key, Value: value})
		}
	}
	return nil
}

func (q *workloadQuery) readPermissions(ctx context.Context, client kubernetes.Interface) error {
	account := &q.result.ServiceAccount
	found := &permissionCollector{
		client: client, namespace: account.Namespace, name: account.Name, since: q.recentSince(),
		roles: map[string]*cachedRole{},
	}
	if err := found.collect(ctx); err != nil {
		return err
	}
	account.RiskyPermissions = found.risky
	for _, g := range found.grants {
		account.GrantedRules.add(g, q.MaxListItems)
	}
	for _, c := range found.changes {
		q.addChange(c)
	}
	return nil
}

func (q *workloadQuery) readNode(ctx context.Context, client kubernetes.Interface) error {
	if q.pod.Spec.NodeName == "" {
		return nil
	}
	node, err := client.CoreV1().Nodes().Get(ctx, q.pod.Spec.NodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	q.result.Node = NodeInfo{
		Name: node.Name, UID: string(node.UID), KernelVersion: node.Status.NodeInfo.KernelVersion,
		CreatedAt:        node.CreationTimestamp.Time,
		ContainerRuntime: node.Status.NodeInfo.ContainerRuntimeVersion, Unschedulable: node.Spec.Unschedulable,
	}
	return nil
}
