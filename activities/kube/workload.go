package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// workloadAction is `enrich: workload`.
type workloadAction struct{ client kubernetes.Interface }

var _ activities.Observer = (*workloadAction)(nil)

func (*workloadAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name:             "workload",
		Verb:             playbooks.VerbEnrich,
		Class:            playbooks.ClassObserve,
		Targets:          []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer},
		Doc:              "Look up the owner, recent changes, other pods with the same image, and the permissions of the service account.",
		Outputs:          activities.WorkloadContext{},
		PlanPermissions:  workloadPermissions(),
		ApplyPermissions: workloadPermissions(),
	}
}

// workloadPermissions returns what GetWorkloadInfo reads. Without a permission, the result lists that part as missing;
// only the pod itself is required.
func workloadPermissions() []playbooks.KubernetesPermission {
	const rbac = "rbac.authorization.k8s.io"
	return []playbooks.KubernetesPermission{
		permission("", []string{"pods"}, "get", "list"),
		permission("", []string{"nodes"}, "get"),
		permission("", []string{"serviceaccounts"}, "get"),
		permission("apps", []string{"deployments", "statefulsets", "daemonsets"}, "get"),
		permission("apps", []string{"replicasets"}, "get", "list"),
		permission("apps", []string{"controllerrevisions"}, "list"),
		permission("batch", []string{"jobs", "cronjobs"}, "get"),
		permission(rbac, []string{"roles", "clusterroles"}, "get"),
		permission(rbac, []string{"rolebindings", "clusterrolebindings"}, "list"),
	}
}

func (a *workloadAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	if r.Target.Kind != playbooks.TargetPod {
		// For a container on a host, the detection contains everything that is known.
		w := r.IncidentRef.Workload
		return activities.Observation{Outputs: activities.WorkloadContext{
			Owner: activities.Owner{Kind: w.Kind, Name: w.Name}, Image: w.Image, ImageDigest: w.ImageDigest,
			Missing: []string{"no cluster is connected, so owner, rollouts and permissions are unknown"},
		}}, nil
	}
	pod, err := requirePod(a.client, r)
	if err != nil {
		return activities.Observation{}, err
	}
	info, err := GetWorkloadInfo(ctx, a.client, pod, WorkloadOptions{MaxListItems: 10})
	if err != nil {
		return activities.Observation{}, err
	}
	return activities.Observation{Outputs: newWorkloadContext(info, r.Target.ContainerID)}, nil
}

func newWorkloadContext(info *WorkloadInfo, container string) activities.WorkloadContext {
	out := activities.WorkloadContext{
		Owner:              activities.Owner{Kind: info.Owner.Kind, Name: info.Owner.Name, UID: info.Owner.UID},
		SameDigestPodCount: info.SameDigestPods.Total, SameNodePodCount: info.SameNodePods.Total,
		DangerousPermissions: info.ServiceAccount.RiskyPermissions, Labels: info.Pod.Labels,
	}
	if info.ServiceAccount.Name != "" {
		out.ServiceAccount = info.ServiceAccount.Namespace + "/" + info.ServiceAccount.Name
	}
	if info.Owner.DesiredReplicas != nil {
		out.Replicas = int(*info.Owner.DesiredReplicas)
	}
	for _, p := range info.SameDigestPods.Items {
		out.SameDigestPodNames = append(out.SameDigestPodNames, fmt.Sprintf("%s/%s on %s", p.Namespace, p.Name, p.Node))
	}
	for i, c := range info.Pod.Containers {
		if c.ID == container || i == 0 {
			out.Image, out.ImageDigest = c.Image, c.ImageDigest
		}
	}
	for _, c := range info.RecentChanges.Items {
		out.Changes = append(out.Changes, playbooks.RecentChange{ChangedAt: c.ChangedAt, Description: c.Description})
	}
	for _, m := range info.Missing {
		out.Missing = append(out.Missing, m.Part+": "+m.Reason)
	}
	return out
}

// WorkloadOptions limits what GetWorkloadInfo collects. The zero value is valid.
type WorkloadOptions struct {
	// MaxListItems is the maximum length of each list; 0 means 50.
	MaxListItems int
	// RecentWindow is how far back a change is recent; 0 means seven days.
	RecentWindow time.Duration
	// Now is the end of that window; the zero value means the current time.
	Now time.Time
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
	error,
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
	pod, err := getPod(ctx, client, ref)
	if err != nil {
		return nil, err
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
			return nil, fmt.Errorf("describe the workload of pod %s: %s: %w", ref, part.name, err)
		}
	}
	slices.SortStableFunc(q.result.RecentChanges.Items, func(a, b Change) int { return b.ChangedAt.Compare(a.ChangedAt) })
	q.result.RecentChanges.Items = q.result.RecentChanges.Items[:min(len(q.result.RecentChanges.Items), o.MaxListItems)]
	return q.result, nil
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
