package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// PodRef identifies one pod. UID is required, because names are reused and UIDs never.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// String returns NAMESPACE/NAME.
func (r PodRef) String() string { return r.Namespace + "/" + r.Name }

func newPodRef(pod *corev1.Pod) PodRef {
	return PodRef{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}
}

// PodRefForTarget returns the PodRef of a target.
func PodRefForTarget(t playbooks.Target) PodRef {
	return PodRef{Namespace: t.Namespace, Name: t.Name, UID: t.UID}
}

// getPod returns the pod, or a refusal that wraps activities.ErrTargetGone.
func getPod(ctx context.Context, client kubernetes.Interface, ref PodRef) (*corev1.Pod, error) {
	if ref.UID == "" {
		return nil, fmt.Errorf("read pod %s: the reference has no UID", ref)
	}
	pod, err := client.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, activities.RefuseGonef("pod %s is gone", ref)
	}
	if err != nil {
		return nil, fmt.Errorf("read pod %s: %w", ref, err)
	}
	if string(pod.UID) != ref.UID {
		return nil, activities.RefuseGonef("pod %s with UID %s is gone; a different object with the same name has UID %s",
			ref, ref.UID, pod.UID)
	}
	return pod, nil
}

// isStaticPod reports whether the kubelet owns the pod, and the API server only mirrors it.
func isStaticPod(pod *corev1.Pod) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	for _, o := range pod.OwnerReferences {
		mirror = mirror || o.Kind == "Node"
	}
	return mirror
}

// hasCompleted reports whether no container of the pod will run again.
func hasCompleted(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
