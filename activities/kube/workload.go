package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// WorkloadOptions limits what GetWorkloadInfo collects. The zero value is valid.
type WorkloadOptions struct {
	// MaxListItems is the maximum length of each list; 0 means 50.
	MaxListItems int
	// RecentWindow is how far back a change is recent; 0 means seven days.
	RecentWindow time.Duration
	// Now is the end of that window; the zero value means the current time.
	Now time.Time
}

// WorkloadPermissions returns what GetWorkloadInfo reads. Without a permission, the result lists that part as missing;
// only the pod itself is required.
func WorkloadPermissions() Permissions {
	rules := []rbacv1.PolicyRule{
		newPolicyRule("", "pods", "get", "list"),
		newPolicyRule("", "nodes", "get"),
		newPolicyRule("", "serviceaccounts", "get"),
		{
			APIGroups: []string{"apps"}, Resources: []string{"deployments", "statefulsets", "daemonsets"},
			Verbs: []string{"get"},
		},
		{APIGroups: []string{"apps"}, Resources: []string{"replicasets"}, Verbs: []string{"get", "list"}},
		newPolicyRule("apps", "controllerrevisions", "list"),
		{APIGroups: []string{"batch"}, Resources: []string{"jobs", "cronjobs"}, Verbs: []string{"get"}},
		{APIGroups: []string{rbacv1.GroupName}, Resources: []string{"roles", "clusterroles"}, Verbs: []string{"get"}},
		{
			APIGroups: []string{rbacv1.GroupName}, Resources: []string{"rolebindings", "clusterrolebindings"},
			Verbs: []string{"list"},
		},
	}
	return Permissions{PlanRules: rules, ApplyRules: rules}
}

// workloadQuery is one call of GetWorkloadInfo.
type workloadQuery struct {
	WorkloadOptions
	result *WorkloadInfo
	pod    *corev1.Pod
}

// GetWorkloadInfo collects what a responder needs to know about the pod. Parts without permission are listed in
// Missing; any other failure is an error, so that the caller retries. A deleted owner is no failure: the owner chain
// ends there.
func GetWorkloadInfo(ctx context.Context, client kubernetes.Interface, ref PodRef, o WorkloadOptions) (*WorkloadInfo,
	*Refusal, error,
) {
	if o.MaxListItems == 0 {
		o.MaxListItems = 50
	}
	if o.RecentWindow == 0 {
		o.RecentWindow = 7 * 24 * time.Hour
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	pod, refusal, err := getPod(ctx, client, ref)
	if err != nil || refusal != nil {
		return nil, refusal, err
	}
	q := &workloadQuery{WorkloadOptions: o, pod: pod, result: &WorkloadInfo{Pod: newPodInfo(pod)}}
	q.result.Owner.ObjectRef = ObjectRef{Kind: "Pod", Name: pod.Name, UID: string(pod.UID)}
	q.result.Owner.Labels, q.result.Owner.CreatedAt = pod.Labels, pod.CreationTimestamp.Time
	q.result.Node.Name = pod.Spec.NodeName
	for _, part := range []struct {
		name string
		read func(context.Context, kubernetes.Interface) error
	}{
		{"owner", q.readOwners},
		{"rollouts", q.readRollouts}, // after owners
		{"other pods", q.readPods},
		{"service account", q.readAccount},
		{"rights", q.readPermissions},
		{"node", q.readNode},
	} {
		err := part.read(ctx, client)
		if apierrors.IsForbidden(err) {
			q.result.Missing = append(q.result.Missing, MissingPart{Part: part.name, Reason: deniedDetail(err)})
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("describe the workload of pod %s: %s: %w", ref, part.name, err)
		}
	}
	slices.SortStableFunc(q.result.RecentChanges.Items, func(a, b Change) int { return b.ChangedAt.Compare(a.ChangedAt) })
	q.result.RecentChanges.Items = q.result.RecentChanges.Items[:min(len(q.result.RecentChanges.Items), o.MaxListItems)]
	return q.result, nil, nil
}

// deniedDetail returns the API server's message, which names the resource and the verb.
func deniedDetail(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Message
	}
	return err.Error()
}

func (q *workloadQuery) recentSince() time.Time { return q.Now.Add(-q.RecentWindow) }

// addChange keeps every change; GetWorkloadInfo sorts and truncates them at the end.
func (q *workloadQuery) addChange(c Change) { q.result.RecentChanges.add(c, 10_000) }

func newPodInfo(pod *corev1.Pod) PodInfo {
	info := PodInfo{
		PodRef: PodRef{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}, Labels: pod.Labels,
		CreatedAt: pod.CreationTimestamp.Time, Phase: string(pod.Status.Phase), IP: pod.Status.PodIP,
		HostNetwork: pod.Spec.HostNetwork, HostPID: pod.Spec.HostPID,
	}
	privileged := map[string]bool{}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		privileged[c.Name] = c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses,
		pod.Status.EphemeralContainerStatuses) {
		c := ContainerInfo{
			Name: s.Name, Image: s.Image, ImageDigest: digestFromImageID(s.ImageID), Privileged: privileged[s.Name],
			Ready: s.Ready, Restarts: s.RestartCount,
		}
		_, c.ID, _ = strings.Cut(s.ContainerID, "://")
		if s.State.Running != nil {
			c.StartedAt = s.State.Running.StartedAt.Time
		}
		info.Containers = append(info.Containers, c)
	}
	return info
}

// digestFromImageID returns the digest in an image id, in any runtime's form.
func digestFromImageID(imageID string) string {
	if i := strings.LastIndex(imageID, "sha256:"); i >= 0 {
		return imageID[i:]
	}
	return ""
}

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
		w, gone, err := WorkloadRef{Kind: ref.Kind, Namespace: namespace, Name: ref.Name, UID: ref.UID}.getWorkload(ctx,
			client)
		if err != nil || gone != nil {
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
	grants, dangerous, changes, err := q.collectAccountPermissions(ctx, client, account.Namespace, account.Name,
		q.recentSince())
	if err != nil {
		return err
	}
	account.RiskyPermissions = dangerous
	for _, g := range grants {
		account.GrantedRules.add(g, q.MaxListItems)
	}
	for _, c := range changes {
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
