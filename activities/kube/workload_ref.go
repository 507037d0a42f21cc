package kube

import (
	"context"
	"fmt"
	"strconv"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// workload is what the three kinds with replicas have in common.
type workload struct {
	meta     metav1.Object
	template *corev1.PodTemplateSpec
	replicas int32 // asked for
	observed int32
	ready    int32
	patch    func(context.Context, []byte, metav1.PatchOptions) error
	scales   scaler
}

type scaler interface {
	GetScale(ctx context.Context, name string, o metav1.GetOptions) (*autoscalingv1.Scale, error)
	UpdateScale(ctx context.Context, name string, s *autoscalingv1.Scale, o metav1.UpdateOptions) (*autoscalingv1.Scale, error)
}

// open reads the workload. Without a UID in the reference any UID will do, which only reading callers may use.
func (r WorkloadRef) open(ctx context.Context, client kubernetes.Interface) (*workload, *Refusal, error) {
	var w *workload
	var err error
	switch r.Kind {
	case "Deployment":
		api := client.AppsV1().Deployments(r.Namespace)
		d, getErr := api.Get(ctx, r.Name, metav1.GetOptions{})
		err = getErr
		w = &workload{
			meta: d, template: &d.Spec.Template, replicas: count(d.Spec.Replicas), observed: d.Status.Replicas, ready: d.Status.ReadyReplicas, scales: api,
			patch: func(ctx context.Context, body []byte, o metav1.PatchOptions) error {
				_, err := api.Patch(ctx, r.Name, mergePatch, body, o)
				return err
			},
		}
	case "StatefulSet":
		api := client.AppsV1().StatefulSets(r.Namespace)
		s, getErr := api.Get(ctx, r.Name, metav1.GetOptions{})
		err = getErr
		w = &workload{
			meta: s, template: &s.Spec.Template, replicas: count(s.Spec.Replicas), observed: s.Status.Replicas, ready: s.Status.ReadyReplicas, scales: api,
			patch: func(ctx context.Context, body []byte, o metav1.PatchOptions) error {
				_, err := api.Patch(ctx, r.Name, mergePatch, body, o)
				return err
			},
		}
	case "ReplicaSet":
		api := client.AppsV1().ReplicaSets(r.Namespace)
		s, getErr := api.Get(ctx, r.Name, metav1.GetOptions{})
		err = getErr
		w = &workload{
			meta: s, template: &s.Spec.Template, replicas: count(s.Spec.Replicas), observed: s.Status.Replicas, ready: s.Status.ReadyReplicas, scales: api,
			patch: func(ctx context.Context, body []byte, o metav1.PatchOptions) error {
				_, err := api.Patch(ctx, r.Name, mergePatch, body, o)
				return err
			},
		}
	default:
		return nil, refuse(ReasonUnsupported, "a %s has no replicas to set; want Deployment, StatefulSet or ReplicaSet", r.Kind), nil
	}
	if apierrors.IsNotFound(err) {
		return nil, refuse(ReasonGone, "%s is gone", r), nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", r, err)
	}
	if r.UID != "" && string(w.meta.GetUID()) != r.UID {
		return nil, refuse(ReasonGone, "%s with UID %s is gone; the one of that name now has UID %s", r, r.UID, w.meta.GetUID()), nil
	}
	return w, nil, nil
}

// count reads a number of replicas, which is 1 where it is not given.
func count(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func (r ScaleRequest) replicasDiffer(field string, want, have int32, by string, when time.Time) Difference {
	return Difference{
		Object: r.Target.String(), Field: field, Want: strconv.Itoa(int(want)), Have: strconv.Itoa(int(have)), By: by, When: when,
	}
}
