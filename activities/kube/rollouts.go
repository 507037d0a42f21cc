package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
)

// revisionAnnotation is the revision number of the Deployment controller.
const revisionAnnotation = "deployment.kubernetes.io/revision"

// readRollouts reads the owner's revisions with their images, and adds recent ones to the changes.
func (q *workloadQuery) readRollouts(ctx context.Context, client kubernetes.Interface) error {
	var all []Rollout
	var err error
	switch q.result.Owner.Kind {
	case "Deployment":
		all, err = q.listReplicaSets(ctx, client)
	case "StatefulSet", "DaemonSet":
		all, err = q.listControllerRevisions(ctx, client)
	}
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b Rollout) int { return int(b.Revision - a.Revision) })
	for i, r := range all {
		r.IsCurrent = i == 0
		q.result.Rollouts.add(r, q.MaxListItems)
		if !r.CreatedAt.After(q.recentSince()) {
			continue
		}
		what := fmt.Sprintf("revision %d of %s %s runs %v", r.Revision, q.result.Owner.Kind, q.result.Owner.Name, r.Images)
		if i+1 < len(all) && !slices.Equal(all[i+1].Images, r.Images) {
			what += fmt.Sprintf(", previously %v", all[i+1].Images)
		}
		q.addChange(Change{ChangedAt: r.CreatedAt, Kind: "rollout", Description: what, ChangedBy: r.FieldManager})
	}
	return nil
}

func (q *workloadQuery) listReplicaSets(ctx context.Context, client kubernetes.Interface) ([]Rollout, error) {
	sets, err := client.AppsV1().ReplicaSets(q.pod.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	digests, err := q.digestsByLabel(ctx, client, appsv1.DefaultDeploymentUniqueLabelKey)
	if err != nil {
		return nil, err
	}
	var all []Rollout
	for i := range sets.Items {
		s := &sets.Items[i]
		if o := metav1.GetControllerOf(s); o == nil || string(o.UID) != q.result.Owner.UID {
			continue
		}
		// A revision that cannot be parsed sorts last.
		revision, _ := strconv.ParseInt(s.Annotations[revisionAnnotation], 10, 64)
		by, _ := lastWriter(s, "")
		all = append(all, Rollout{
			Revision: revision, Name: s.Name, CreatedAt: s.CreationTimestamp.Time, FieldManager: by,
			Images:       containerImages(s.Spec.Template.Spec),
			ImageDigests: digests[s.Labels[appsv1.DefaultDeploymentUniqueLabelKey]],
		})
	}
	return all, nil
}

func (q *workloadQuery) listControllerRevisions(ctx context.Context, client kubernetes.Interface) ([]Rollout, error) {
	revisions, err := client.AppsV1().ControllerRevisions(q.pod.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	digests, err := q.digestsByLabel(ctx, client, appsv1.ControllerRevisionHashLabelKey)
	if err != nil {
		return nil, err
	}
	var all []Rollout
	for i := range revisions.Items {
		r := &revisions.Items[i]
		if o := metav1.GetControllerOf(r); o == nil || string(o.UID) != q.result.Owner.UID {
			continue
		}
		var patch struct {
			Spec struct {
				Template corev1.PodTemplateSpec `json:"template"`
			} `json:"spec"`
		}
		// The data is written by the controller. Without images, the revision and its time are still useful.
		_ = json.Unmarshal(r.Data.Raw, &patch)
		// The pods of a StatefulSet carry the revision's name, those of a DaemonSet its hash.
		seen := digests[r.Name]
		if seen == nil {
			seen = digests[r.Labels[appsv1.ControllerRevisionHashLabelKey]]
		}
		by, _ := lastWriter(r, "")
		all = append(all, Rollout{
			Revision: r.Revision, Name: r.Name, CreatedAt: r.CreationTimestamp.Time, FieldManager: by,
			Images: containerImages(patch.Spec.Template.Spec), ImageDigests: seen,
		})
	}
	return all, nil
}

// digestsByLabel returns the image digests of the workload's pods, by the value of the label that identifies revisions.
func (q *workloadQuery) digestsByLabel(ctx context.Context, client kubernetes.Interface,
	label string,
) (map[string][]string, error) {
	same := labels.Set{}
	for k, v := range q.pod.Labels {
		if k != label && k != IsolateLabel && k != "statefulset.kubernetes.io/pod-name" &&
			k != "apps.kubernetes.io/pod-index" && k != "pod-template-generation" {
			same[k] = v
		}
	}
	pods, err := client.CoreV1().Pods(q.pod.Namespace).List(ctx, metav1.ListOptions{LabelSelector: same.String()})
	if err != nil {
		return nil, err
	}
	digests := map[string][]string{}
	for i := range pods.Items {
		value := pods.Items[i].Labels[label]
		for _, s := range pods.Items[i].Status.ContainerStatuses {
			if d := digestFromImageID(s.ImageID); d != "" && !slices.Contains(digests[value], d) {
				digests[value] = append(digests[value], d)
			}
		}
	}
	return digests, nil
}

func containerImages(spec corev1.PodSpec) []string {
	var images []string
	for _, c := range spec.Containers {
		images = append(images, c.Image)
	}
	return images
}
