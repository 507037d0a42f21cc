package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"stanch/sensors"
)

// podCache keeps pods that were looked up, so that a hundred alerts about one pod ask the API server once.
type podCache struct {
	mu sync.Mutex
	by map[string]cachedPod
}

type cachedPod struct {
	pod *corev1.Pod
	at  time.Time
}

const (
	podsKept    = 5000
	podsKeptFor = 30 * time.Second
)

// complete finds the identity of the pod that a report names: a name is reused, a UID is not.
func (f *Foreign) complete(ctx context.Context, d *sensors.Detection) error {
	pod := &d.Event.Container.Pod
	if pod.Name == "" {
		return nil
	}
	if f.Intake.Kube == nil {
		return errors.New("it names a pod, and no cluster is connected")
	}
	got, err := f.pod(ctx, d.Event.Container)
	if err != nil {
		return err
	}
	if pod.UID != "" && pod.UID != string(got.UID) {
		return fmt.Errorf("pod %s/%s has the UID %s now, not %s", clip(pod.Namespace), clip(pod.Name), got.UID, clip(pod.UID))
	}
	pod.UID, pod.IP, pod.HostNetwork, pod.ServiceAccount, pod.Labels = string(got.UID), got.Status.PodIP, got.Spec.HostNetwork, got.Spec.ServiceAccountName, sensors.BoundLabels(got.Labels)
	d.Node, d.Event.Node = got.Spec.NodeName, got.Spec.NodeName
	c := &d.Event.Container
	if s := containerOf(got, c.ID, c.Name); s != nil {
		_, c.ID, _ = strings.Cut(s.ContainerID, "://")
		c.Name, c.Image = s.Name, s.Image
		if _, digest, ok := strings.Cut(s.ImageID, "@"); ok {
			c.ImageDigest = digest
		}
	}
	// What grouped the incident of the node's own sensor groups this too, whatever the report calls the workload.
	if hint := sensors.WorkloadHint(got.Name, got.Labels); hint.Kind != "Pod" || c.Workload.Name == "" {
		c.Workload = hint
	}
	return nil
}

// containerOf is the container of a pod with an id, of which reports may give the beginning only; without an id it is
// the one of that name, and without a name the first.
func containerOf(pod *corev1.Pod, id, name string) *corev1.ContainerStatus {
	statuses := make([]corev1.ContainerStatus, 0, len(pod.Status.ContainerStatuses)+len(pod.Status.EphemeralContainerStatuses)+len(pod.Status.InitContainerStatuses))
	statuses = append(append(append(statuses, pod.Status.ContainerStatuses...), pod.Status.EphemeralContainerStatuses...), pod.Status.InitContainerStatuses...)
	for i := range statuses {
		if id == "" && name != "" && statuses[i].Name != name {
			continue
		}
		if _, known, _ := strings.Cut(statuses[i].ContainerID, "://"); known != "" && strings.HasPrefix(known, id) {
			return &statuses[i]
		}
	}
	return nil
}

// pod looks a pod up. What was looked up a moment ago counts only if the report shows that it means the same pod, by its
// UID or by one of its containers: by its name alone it may mean the next one.
func (f *Foreign) pod(ctx context.Context, c sensors.Container) (*corev1.Pod, error) {
	// A name that is none would be an error of the client's, and look as if the API server were away.
	if len(validation.IsDNS1123Label(c.Pod.Namespace)) > 0 || len(validation.IsDNS1123Subdomain(c.Pod.Name)) > 0 {
		return nil, fmt.Errorf("%q is no name of a pod", clip(c.Pod.Namespace+"/"+c.Pod.Name))
	}
	key := c.Pod.Namespace + "/" + c.Pod.Name
	f.pods.mu.Lock()
	kept, ok := f.pods.by[key]
	f.pods.mu.Unlock()
	if ok && time.Since(kept.at) < podsKeptFor && (c.Pod.UID == string(kept.pod.UID) || c.Pod.UID == "" && c.ID != "" && containerOf(kept.pod, c.ID, "") != nil) {
		return kept.pod, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	got, err := f.Intake.Kube.CoreV1().Pods(c.Pod.Namespace).Get(ctx, c.Pod.Name, metav1.GetOptions{})
	switch {
	case isNotFound(err):
		return nil, fmt.Errorf("there is no pod %s/%s any more", clip(c.Pod.Namespace), clip(c.Pod.Name))
	case apierrors.IsBadRequest(err), apierrors.IsInvalid(err), apierrors.IsMethodNotSupported(err):
		return nil, fmt.Errorf("pod %s/%s: %w", clip(c.Pod.Namespace), clip(c.Pod.Name), err)
	case err != nil:
		return nil, &TemporaryError{fmt.Errorf("the API server does not say what pod %s/%s is: %w", clip(c.Pod.Namespace), clip(c.Pod.Name), err)}
	}
	f.pods.mu.Lock()
	defer f.pods.mu.Unlock()
	if f.pods.by == nil || len(f.pods.by) >= podsKept {
		f.pods.by = map[string]cachedPod{}
	}
	f.pods.by[key] = cachedPod{pod: slim(got), at: time.Now()}
	return got, nil
}

// slim is what complete reads of a pod: thousands of whole pods would be much memory.
func slim(p *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels},
		Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, ServiceAccountName: p.Spec.ServiceAccountName},
		Status: corev1.PodStatus{
			PodIP: p.Status.PodIP, ContainerStatuses: p.Status.ContainerStatuses, InitContainerStatuses: p.Status.InitContainerStatuses, EphemeralContainerStatuses: p.Status.EphemeralContainerStatuses,
		},
	}
}
