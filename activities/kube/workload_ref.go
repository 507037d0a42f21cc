package kube

import (
	"context"
	"fmt"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// scalableWorkload contains the common fields of the three kinds with replicas.
type scalableWorkload struct {
	meta             metav1.Object
	template         *corev1.PodTemplateSpec
	replicas         int32 // desired
	observedReplicas int32
	readyReplicas    int32
	patch            func(context.Context, []byte, metav1.PatchOptions) error
	scaleClient      scaleGetterUpdater
}

type scaleGetterUpdater interface {
	GetScale(ctx context.Context, name string, o metav1.GetOptions) (*autoscalingv1.Scale, error)
	UpdateScale(ctx context.Context, name string, s *autoscalingv1.Scale, o metav1.UpdateOptions) (*autoscalingv1.Scale,
		error)
}

// workloadClient is the common interface of the typed clients of the three kinds.
type workloadClient[T metav1.Object] interface {
	scaleGetterUpdater
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Patch(ctx context.Context, name string, kind types.PatchType, body []byte, o metav1.PatchOptions,
		subresources ...string) (T, error)
}

// getWorkload returns one workload; view extracts the common fields.
func getWorkload[T metav1.Object](ctx context.Context, name string, api workloadClient[T],
	view func(T) scalableWorkload,
) (*scalableWorkload, error) {
	object, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	w := view(object)
	w.meta, w.scaleClient = object, api
	w.patch = func(ctx context.Context, body []byte, o metav1.PatchOptions) error {
		_, err := api.Patch(ctx, name, mergePatchType, body, o)
		return err //nolint:wrapcheck // the caller adds context
	}
	return &w, nil
}

// getWorkload reads the workload. A reference without a UID matches any UID, which only readers may use.
func (r WorkloadRef) getWorkload(ctx context.Context, client kubernetes.Interface) (*scalableWorkload, *Refusal,
	error,
) {
	var w *scalableWorkload
	var err error
	switch apps := client.AppsV1(); r.Kind {
	case "Deployment":
		w, err = getWorkload(ctx, r.Name, apps.Deployments(r.Namespace), func(d *appsv1.Deployment) scalableWorkload {
			return scalableWorkload{
				template: &d.Spec.Template, replicas: replicasOrDefault(d.Spec.Replicas),
				observedReplicas: d.Status.Replicas, readyReplicas: d.Status.ReadyReplicas,
			}
		})
	case "StatefulSet":
		w, err = getWorkload(ctx, r.Name, apps.StatefulSets(r.Namespace), func(s *appsv1.StatefulSet) scalableWorkload {
			return scalableWorkload{
				template: &s.Spec.Template, replicas: replicasOrDefault(s.Spec.Replicas),
				observedReplicas: s.Status.Replicas, readyReplicas: s.Status.ReadyReplicas,
			}
		})
	case "ReplicaSet":
		w, err = getWorkload(ctx, r.Name, apps.ReplicaSets(r.Namespace), func(s *appsv1.ReplicaSet) scalableWorkload {
			return scalableWorkload{
				template: &s.Spec.Template, replicas: replicasOrDefault(s.Spec.Replicas),
				observedReplicas: s.Status.Replicas, readyReplicas: s.Status.ReadyReplicas,
			}
		})
	default:
		return nil, newRefusal(ReasonUnsupported, "a %s has no replica count; use a Deployment, StatefulSet or ReplicaSet",
			r.Kind), nil
	}
	if apierrors.IsNotFound(err) {
		return nil, newRefusal(ReasonNotFound, "%s is gone", r), nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", r, err)
	}
	if r.UID != "" && string(w.meta.GetUID()) != r.UID {
		return nil, newRefusal(ReasonNotFound, "%s with UID %s is gone; a different object with the same name has UID %s", r,
				r.UID, w.meta.GetUID()),
			nil
	}
	return w, nil, nil
}

// replicasOrDefault returns the number of replicas; the Kubernetes default is 1.
func replicasOrDefault(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func (r ScaleRequest) replicasDifference(field string, want, have int32, by string, when time.Time) Difference {
	return Difference{
		Object: r.Target.String(), Field: field, Want: strconv.Itoa(int(want)), Have: strconv.Itoa(int(have)), ChangedBy: by,
		ChangedAt: when,
	}
}
