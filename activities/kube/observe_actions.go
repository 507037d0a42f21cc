package kube

import (
	"context"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// Actions returns the actions of this package for one cluster. With a nil client, they refuse.
func Actions(client kubernetes.Interface) []activities.Action {
	return []activities.Action{
		&workloadAction{client}, &logsAction{client}, &manifestAction{client}, &scaleAction{client},
		&restartAction{client}, &cordonAction{client}, &imageAction{client},
	}
}

// PermissionsFromRBAC converts RBAC rules to the form of action specs.
func PermissionsFromRBAC(rules []rbacv1.PolicyRule) []playbooks.KubernetesPermission {
	var out []playbooks.KubernetesPermission
	for _, r := range rules {
		out = append(out, playbooks.KubernetesPermission{Groups: r.APIGroups, Resources: r.Resources, Verbs: r.Verbs})
	}
	return out
}

// toActivityRefusal converts a refusal of this package to an *activities.Refusal; nil stays nil.
func toActivityRefusal(r *Refusal) error {
	if r == nil {
		return nil
	}
	return activities.Refusef("%s", r.Detail)
}

// requirePod returns the pod of a request, or a refusal if there is no cluster.
func requirePod(client kubernetes.Interface, r activities.Request) (PodRef, error) {
	if client == nil {
		return PodRef{}, activities.Refusef("no cluster is connected")
	}
	if r.Target.Kind != playbooks.TargetPod {
		return PodRef{}, activities.Refusef("%s is not a pod", r.Target)
	}
	return PodRefForTarget(r.Target), nil
}

// PodRefForTarget returns the PodRef of a target.
func PodRefForTarget(t playbooks.Target) PodRef {
	return PodRef{Namespace: t.Namespace, Name: t.Name, UID: t.UID}
}

// LeaseForRequest returns the lease that is stamped on a contained object.
func LeaseForRequest(r activities.Request) Lease {
	return Lease{ID: r.LeaseID, IncidentID: r.IncidentRef.ID, ExpiresAt: r.ExpiresAt}
}

// logsParams are the parameters of pod.logs.
type logsParams struct {
	TailLines        int64  `json:"tail,omitempty" jsonschema:"minimum=1,maximum=100000" doc:"lines from the end; default all"`
	PreviousInstance bool   `json:"previous,omitempty" doc:"also capture the logs from before the container's last restart"`
	Container        string `json:"container,omitempty" doc:"one container; default the detection's container"`
}

type logsAction struct{ client kubernetes.Interface }

var _ activities.Observer = (*logsAction)(nil)

func (*logsAction) Spec() playbooks.ActionSpec {
	p := LogsPermissions()
	return playbooks.ActionSpec{
		Name: "pod.logs", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetPod},
		Doc:     "Capture the container's logs.", Params: logsParams{}, PlanPermissions: PermissionsFromRBAC(p.PlanRules),
		ApplyPermissions: PermissionsFromRBAC(p.ApplyRules),
	}
}

func (a *logsAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return activities.Observation{}, err
	}
	params, err := activities.DecodeParams[logsParams](r)
	if err != nil {
		return activities.Observation{}, err
	}
	if params.Container == "" {
		params.Container = r.Target.ContainerName
	}
	var out activities.Observation
	for _, previous := range []bool{false, true} {
		if previous && !params.PreviousInstance {
			break
		}
		logs, refused, err := PodLogs(ctx, a.client, LogsRequest{
			Pod: pod, Container: params.Container,
			TailLines: params.TailLines, PreviousInstance: previous,
		})
		if err != nil {
			return out, err
		}
		if refused != nil {
			return out, toActivityRefusal(refused)
		}
		name := "logs-" + logs.Container
		if previous {
			name += "-previous"
		}
		if logs.AbsentReason != "" {
			out.MissingNote = logs.AbsentReason
			continue
		}
		out.Artifacts = append(out.Artifacts, activities.Artifact{
			Name: name + ".txt", Data: logs.Content,
			CapturedFrom: "API server",
		})
	}
	return out, nil
}

type manifestAction struct{ client kubernetes.Interface }

var _ activities.Observer = (*manifestAction)(nil)

func (*manifestAction) Spec() playbooks.ActionSpec {
	p := ManifestPermissions()
	return playbooks.ActionSpec{
		Name: "pod.manifest", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve,
		Targets:         []playbooks.TargetKind{playbooks.TargetPod},
		Doc:             "Capture the pod's manifest from the API server, without secret values.",
		PlanPermissions: PermissionsFromRBAC(p.PlanRules), ApplyPermissions: PermissionsFromRBAC(p.ApplyRules),
	}
}

func (a *manifestAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return activities.Observation{}, err
	}
	manifest, refused, err := PodManifest(ctx, a.client, pod)
	if err != nil || refused != nil {
		return activities.Observation{}, firstError(err, toActivityRefusal(refused))
	}
	out := activities.Observation{Artifacts: []activities.Artifact{{
		Name: "manifest.yaml", Data: manifest.YAML,
		CapturedFrom: "API server",
	}}}
	if n := len(manifest.RedactedFields); n > 0 {
		out.MissingNote = fmt.Sprintf("%d values that look like secrets were redacted", n)
	}
	return out, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

type workloadAction struct{ client kubernetes.Interface }

var _ activities.Observer = (*workloadAction)(nil)

func (*workloadAction) Spec() playbooks.ActionSpec {
	p := WorkloadPermissions()
	return playbooks.ActionSpec{
		Name:             "workload",
		Verb:             playbooks.VerbEnrich,
		Class:            playbooks.ClassObserve,
		Targets:          []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer},
		Doc:              "Look up the owner, recent changes, other pods with the same image, and the permissions of the service account.",
		Outputs:          activities.WorkloadContext{},
		PlanPermissions:  PermissionsFromRBAC(p.PlanRules),
		ApplyPermissions: PermissionsFromRBAC(p.ApplyRules),
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
	info, refused, err := GetWorkloadInfo(ctx, a.client, pod, WorkloadOptions{MaxListItems: 10})
	if err != nil || refused != nil {
		return activities.Observation{}, firstError(err, toActivityRefusal(refused))
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
