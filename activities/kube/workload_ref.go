package kube

import (
	"context"
	"fmt"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// WorkloadRef identifies one workload with replicas.
type WorkloadRef struct {
	Kind      string // "Deployment", "StatefulSet", "ReplicaSet"
	Namespace string
	Name      string
	UID       string
}

// String returns "KIND NAMESPACE/NAME".
func (r WorkloadRef) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// workloadRefForTarget returns the WorkloadRef of a target.
func workloadRefForTarget(t playbooks.Target) WorkloadRef {
	return WorkloadRef{Kind: t.WorkloadKind, Namespace: t.Namespace, Name: t.Name, UID: t.UID}
}

// scalableWorkload contains the common fields of the three kinds with replicas.
type scalableWorkload struct {
	kind             string
	meta             metav1.Object
	template         *corev1.PodTemplateSpec
	replicas         int32 // desired
	observedReplicas int32
	readyReplicas    int32
	patch            patchFunc
	scaleClient      scaleGetterUpdater
}

func (w *scalableWorkload) ref() WorkloadRef {
	return WorkloadRef{
		Kind: w.kind, Namespace: w.meta.GetNamespace(), Name: w.meta.GetName(), UID: string(w.meta.GetUID()),
	}
}

type scaleGetterUpdater interface {
	GetScale(ctx context.Context, name string, o metav1.GetOptions) (*autoscalingv1.Scale, error)
	UpdateScale(ctx context.Context, name string, s *autoscalingv1.Scale, o metav1.UpdateOptions) (*autoscalingv1.Scale,
		error)
}

func viewDeployment(d *appsv1.Deployment) scalableWorkload {
	return scalableWorkload{
		kind: "Deployment", meta: d, template: &d.Spec.Template, replicas: replicasOrDefault(d.Spec.Replicas),
		observedReplicas: d.Status.Replicas, readyReplicas: d.Status.ReadyReplicas,
	}
}

func viewStatefulSet(s *appsv1.StatefulSet) scalableWorkload {
	return scalableWorkload{
		kind: "StatefulSet", meta: s, template: &s.Spec.Template, replicas: replicasOrDefault(s.Spec.Replicas),
		observedReplicas: s.Status.Replicas, readyReplicas: s.Status.ReadyReplicas,
	}
}

func viewReplicaSet(s *appsv1.ReplicaSet) scalableWorkload {
	return scalableWorkload{
		kind: "ReplicaSet", meta: s, template: &s.Spec.Template, replicas: replicasOrDefault(s.Spec.Replicas),
		observedReplicas: s.Status.Replicas, readyReplicas: s.Status.ReadyReplicas,
	}
}

// replicasOrDefault returns the number of replicas; the Kubernetes default is 1.
func replicasOrDefault(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
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
	w.scaleClient = api
	w.patch = func(ctx context.Context, body []byte, o metav1.PatchOptions) error {
		_, err := api.Patch(ctx, name, types.MergePatchType, body, o)
		return err //nolint:wrapcheck // the caller adds context
	}
	return &w, nil
}

// getWorkload reads the workload, or returns a refusal that wraps activities.ErrTargetGone. A reference without a UID
// matches any UID, which only readers may use. Other kinds are refused.
func (r WorkloadRef) getWorkload(ctx context.Context, client kubernetes.Interface) (*scalableWorkload, error) {
	var w *scalableWorkload
	var err error
	switch apps := client.AppsV1(); r.Kind {
	case "Deployment":
		w, err = getWorkload(ctx, r.Name, apps.Deployments(r.Namespace), viewDeployment)
	case "StatefulSet":
		w, err = getWorkload(ctx, r.Name, apps.StatefulSets(r.Namespace), viewStatefulSet)
	case "ReplicaSet":
		w, err = getWorkload(ctx, r.Name, apps.ReplicaSets(r.Namespace), viewReplicaSet)
	default:
		return nil, activities.Refusef("a %s has no replica count; use a Deployment, StatefulSet or ReplicaSet", r.Kind)
	}
	if apierrors.IsNotFound(err) {
		return nil, activities.RefuseGonef("%s is gone", r)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r, err)
	}
	if r.UID != "" && string(w.meta.GetUID()) != r.UID {
		return nil, activities.RefuseGonef("%s with UID %s is gone; a different object with the same name has UID %s", r,
			r.UID, w.meta.GetUID())
	}
	return w, nil
}

// listScalableWorkloads returns the workloads of all namespaces with a label. They cannot be changed.
func listScalableWorkloads(ctx context.Context, client kubernetes.Interface, label string) ([]scalableWorkload, error) {
	labeled := metav1.ListOptions{LabelSelector: label}
	var out []scalableWorkload
	deployments, err := client.AppsV1().Deployments("").List(ctx, labeled)
	if err != nil {
		return out, fmt.Errorf("list deployments: %w", err)
	}
	for i := range deployments.Items {
		out = append(out, viewDeployment(&deployments.Items[i]))
	}
	statefulSets, err := client.AppsV1().StatefulSets("").List(ctx, labeled)
	if err != nil {
		return out, fmt.Errorf("list stateful sets: %w", err)
	}
	for i := range statefulSets.Items {
		out = append(out, viewStatefulSet(&statefulSets.Items[i]))
	}
	replicaSets, err := client.AppsV1().ReplicaSets("").List(ctx, labeled)
	if err != nil {
		return out, fmt.Errorf("list replica sets: %w", err)
	}
	for i := range replicaSets.Items {
		out = append(out, viewReplicaSet(&replicaSets.Items[i]))
	}
	return out, nil
}

// setReplicas sets the number by the scale subresource, for this UID and version only. It does nothing for a workload
// that is gone; verification reports that.
func (w *scalableWorkload) setReplicas(ctx context.Context, version, manager string, replicas int32) error {
	ref := w.ref()
	_, err := w.scaleClient.UpdateScale(ctx, ref.Name, &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ref.Namespace, Name: ref.Name, UID: types.UID(ref.UID), ResourceVersion: version,
		},
		Spec: autoscalingv1.ScaleSpec{Replicas: replicas},
	}, metav1.UpdateOptions{FieldManager: manager})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set %d replicas: %w", replicas, err)
	}
	return nil
}

// replicasDifference compares the desired number of replicas; nil if it is the wanted one.
func (w *scalableWorkload) replicasDifference(want int32, manager string) []Difference {
	if w.replicas == want {
		return nil
	}
	by, when := lastFieldWriter(w.meta, manager, "spec", "replicas")
	return []Difference{{
		Object: w.ref().String(), Field: "spec.replicas", Want: strconv.Itoa(int(want)),
		Have: strconv.Itoa(int(w.replicas)), ChangedBy: by, ChangedAt: when,
	}}
}
