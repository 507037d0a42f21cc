package gateway

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	"stanch/sensors"
)

// podCache keeps pods that were looked up with their owners, so that a hundred alerts about one pod ask the API server
// once. A pod is kept under its whole identity: what was confirmed of one name says nothing of another.
type podCache struct {
	mu sync.Mutex
	by map[string]cachedPod
	// containers are the pods of containers that were looked for by node and id; nil is a container without a pod.
	containers map[string]cachedPod
}

type cachedPod struct {
	pod   *corev1.Pod
	facts activities.TargetFacts
	at    time.Time
}

const (
	podsKept    = 5000
	podsKeptFor = 30 * time.Second
	// podsGrace is how long a pod that was looked up counts while the API server is away: its UID, node and namespace
	// never change.
	podsGrace = 5 * time.Minute
	// nodeWait and sourceWait are how long the API server may take for a node's detection and for that of another sensor,
	// which can send it again.
	nodeWait   = 1500 * time.Millisecond
	sourceWait = 5 * time.Second
)

// containerID is what a runtime calls a container. It is a part of workflow ids, so nothing that divides them may be in it.
var containerID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.:-]{0,127}$`)

var podUID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.-]{0,127}$`)

// checkNames refuses names that are none. They are parts of paths at the API server and of workflow ids, and a name that
// the client library refuses would look as if the API server were away.
func checkNames(d sensors.Detection) error {
	c := d.Event.Container
	switch pod := c.Pod; {
	case pod.Name != "" && len(validation.IsDNS1123Subdomain(pod.Name)) > 0:
		return fmt.Errorf("invalid pod name %q", clip(pod.Name))
	case pod.Namespace != "" && len(validation.IsDNS1123Label(pod.Namespace)) > 0:
		return fmt.Errorf("invalid namespace %q", clip(pod.Namespace))
	case pod.UID != "" && !podUID.MatchString(pod.UID):
		return fmt.Errorf("invalid pod UID %q", clip(pod.UID))
	case (pod.UID != "" || pod.Name != "") && (pod.Name == "" || pod.Namespace == ""):
		return fmt.Errorf("incomplete pod identity: name %q, namespace %q, UID %q", clip(pod.Name), clip(pod.Namespace), clip(pod.UID))
	case c.ID != "" && !containerID.MatchString(c.ID):
		return fmt.Errorf("invalid container id %q", clip(c.ID))
	}
	// Machines outside of a cluster may have capital letters and underscores in their names.
	if node := strings.ReplaceAll(strings.ToLower(d.Node), "_", "-"); node != "" && len(validation.IsDNS1123Subdomain(node)) > 0 {
		return fmt.Errorf("invalid node name %q", clip(d.Node))
	}
	return nil
}

// label drops the identity of a pod that nobody can look up from an alert that names its container: there it is a label
// for people, and no reason to refuse the alert.
func (i *Intake) label(d *sensors.Detection) {
	c := &d.Event.Container
	pod := c.Pod
	if c.ID == "" || pod.Name == "" && pod.UID == "" && pod.Namespace == "" {
		return
	}
	valid := len(validation.IsDNS1123Label(pod.Namespace)) == 0 && len(validation.IsDNS1123Subdomain(pod.Name)) == 0
	if i.Kube != nil && valid {
		return
	}
	d.Reasons = append(d.Reasons, "The alert names the pod "+clip(pod.Namespace+"/"+pod.Name)+", which nothing here can look up.")
	c.Pod, c.Workload = sensors.Pod{}, sensors.Workload{}
	if c.Name == "" && len(validation.IsDNS1123Subdomain(pod.Name)) == 0 {
		c.Name = pod.Name
	}
}

// identify replaces what a detection says of its pod by what the API server says: a name is reused, a UID is not, and
// only the chain of owners tells whose pod it is. from is the node that sent it, "" for another source. It returns a
// *TemporaryError where the API server cannot say it now and the sender can come again.
func (i *Intake) identify(ctx context.Context, d *sensors.Detection, from string) error {
	c := &d.Event.Container
	if i.Kube == nil {
		if c.Pod.Name != "" && from == "" {
			return i.withoutPod(d, from, errors.New("it names a pod, and no cluster is connected"))
		}
		return nil
	}
	wait := sourceWait
	if from != "" {
		wait = nodeWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var found cachedPod
	var err error
	switch {
	case c.Pod.Name != "":
		found, err = i.pod(ctx, *c)
	case c.ID != "":
		found, err = i.podOfContainer(ctx, d.Node, c.ID)
	}
	switch {
	case err != nil && from != "" && kube.IsUnavailable(err):
		// A cluster that is away must not make Stanch blind: the node's word is taken. It makes an incident of its own, which
		// joins nobody else's, and nothing is contained on it without a person.
		i.Log.Warn("the API server does not say where a pod runs; the node's word is taken", "pod", c.Pod.Namespace+"/"+c.Pod.Name, "container", c.ID, "error", err)
		return nil
	case err != nil && c.Pod.Name == "" && !kube.IsUnavailable(err) && from == "":
		// An alert with nothing but a container's id is taken as it is where the pod cannot be found; guards ask a person.
		i.Log.Warn("find the pod of a container", "container", clip(c.ID), "node", clip(d.Node), "error", err)
		return nil
	case err != nil:
		return i.withoutPod(d, from, identityError(*c, err))
	case found.pod == nil:
		return nil
	case from != "" && found.pod.Spec.NodeName != from:
		return fmt.Errorf("pod %s/%s does not run on node %s", clip(found.pod.Namespace), clip(found.pod.Name), from)
	case c.Pod.UID != "" && !kube.HasUID(found.pod, c.Pod.UID):
		return i.withoutPod(d, from, fmt.Errorf("pod %s/%s has the UID %s now, not %s", clip(c.Pod.Namespace), clip(c.Pod.Name), found.pod.UID, clip(c.Pod.UID)))
	case c.Pod.UID == "" && from != "" && c.Pod.Name != "":
		return fmt.Errorf("the pod %s/%s has no UID", clip(c.Pod.Namespace), clip(c.Pod.Name))
	}
	confirm(d, found)
	return nil
}

// complete looks up the pod that a detection of a request or of a call is about.
func (i *Intake) complete(ctx context.Context, d *sensors.Detection) error {
	if err := checkNames(*d); err != nil {
		return err
	}
	return i.identify(ctx, d, "")
}

// withoutPod makes a detection that is about an account as well one about the account alone, with the reason why its pod
// cannot be contained; every other is refused for that reason. What may be known later is asked again.
func (i *Intake) withoutPod(d *sensors.Detection, from string, err error) error {
	if later := (*TemporaryError)(nil); from != "" || d.Event.Subject.Name == "" || errors.As(err, &later) {
		return err
	}
	pod := d.Event.Container.Pod
	d.Event.Container = sensors.Container{}
	d.Reasons = append(d.Reasons, "It was about the pod "+clip(pod.Namespace+"/"+pod.Name)+", which cannot be contained: "+clipReason(err.Error())+".")
	return nil
}

// identityError is what the sender is told: to come again, or that it is refused for good.
func identityError(c sensors.Container, err error) error {
	what := fmt.Errorf("look up pod %s/%s: %w", clip(c.Pod.Namespace), clip(c.Pod.Name), err)
	switch {
	case isNotFound(err):
		return fmt.Errorf("there is no pod %s/%s any more", clip(c.Pod.Namespace), clip(c.Pod.Name))
	case kube.IsDefinitiveError(err):
		return what
	}
	return &TemporaryError{what}
}

// confirm takes over what the API server says.
func confirm(d *sensors.Detection, found cachedPod) {
	got, c := found.pod, &d.Event.Container
	pod := &c.Pod
	pod.Namespace, pod.Name, pod.UID, pod.HostNetwork, pod.ServiceAccount, pod.Labels = got.Namespace, got.Name, string(got.UID), got.Spec.HostNetwork, got.Spec.ServiceAccountName, sensors.LimitLabels(got.Labels)
	if got.Status.PodIP != "" {
		pod.IP = got.Status.PodIP
	}
	d.Node, d.Event.Node = got.Spec.NodeName, got.Spec.NodeName
	if s := kube.FindContainerStatus(got, c.ID, c.Name); s != nil {
		_, c.ID, _ = strings.Cut(s.ContainerID, "://")
		c.Name, c.Image = s.Name, s.Image
		if _, digest, ok := strings.Cut(s.ImageID, "@"); ok {
			c.ImageDigest = digest
		}
	}
	owner := found.facts.Workload()
	c.Workload = sensors.Workload{Kind: owner.Kind, Name: owner.Name}
	d.TargetConfirmed = true
}

// pod looks a pod up. What was looked up a moment ago counts only if the report shows that it means the same pod, by its
// UID or by one of its containers: by its name alone it may mean the next one.
func (i *Intake) pod(ctx context.Context, c sensors.Container) (cachedPod, error) {
	key := c.Pod.Namespace + "/" + c.Pod.Name
	i.pods.mu.Lock()
	kept, ok := i.pods.by[key]
	i.pods.mu.Unlock()
	same := ok && (c.Pod.UID != "" && kube.HasUID(kept.pod, c.Pod.UID) || c.Pod.UID == "" && c.ID != "" && kube.FindContainerStatus(kept.pod, c.ID, "") != nil)
	if same && time.Since(kept.at) < podsKeptFor {
		return kept, nil
	}
	got, err := i.Kube.CoreV1().Pods(c.Pod.Namespace).Get(ctx, c.Pod.Name, metav1.GetOptions{})
	if err != nil {
		if same && kube.IsUnavailable(err) && time.Since(kept.at) < podsGrace {
			return kept, nil
		}
		return cachedPod{}, err //nolint:wrapcheck // the caller says what was looked up
	}
	return i.keep(ctx, got), nil
}

// keep resolves the owners of a pod and keeps both. A chain that could not be read to its end is not kept.
func (i *Intake) keep(ctx context.Context, got *corev1.Pod) cachedPod {
	found := cachedPod{pod: slim(got), facts: kube.PodTargetFacts(ctx, i.Kube, got), at: time.Now()}
	if found.facts.IncompleteReason != "" {
		i.Log.Debug("the owners of a pod are not all known", "pod", got.Namespace+"/"+got.Name, "reason", found.facts.IncompleteReason)
		if ctx.Err() != nil {
			return found
		}
	}
	i.pods.mu.Lock()
	defer i.pods.mu.Unlock()
	if i.pods.by == nil || len(i.pods.by) >= podsKept {
		i.pods.by = map[string]cachedPod{}
	}
	i.pods.by[got.Namespace+"/"+got.Name] = found
	return found
}

// podOfContainer finds the pod of a container by its node and the beginning of its id; no pod is a container of a machine.
func (i *Intake) podOfContainer(ctx context.Context, node, id string) (cachedPod, error) {
	key := node + "/" + id
	i.pods.mu.Lock()
	kept, ok := i.pods.containers[key]
	i.pods.mu.Unlock()
	if ok && time.Since(kept.at) < podsKeptFor {
		return kept, nil
	}
	if node == "" {
		return cachedPod{}, nil
	}
	got, _, err := kube.FindPodByContainerID(ctx, i.Kube, node, id)
	if err != nil {
		if ok && kube.IsUnavailable(err) && time.Since(kept.at) < podsGrace {
			return kept, nil
		}
		return cachedPod{}, err //nolint:wrapcheck // it says what was looked for
	}
	found := cachedPod{at: time.Now()}
	if got != nil {
		found = i.keep(ctx, got)
	}
	i.pods.mu.Lock()
	defer i.pods.mu.Unlock()
	if i.pods.containers == nil || len(i.pods.containers) >= podsKept {
		i.pods.containers = map[string]cachedPod{}
	}
	i.pods.containers[key] = found
	return found, nil
}

// ownerOf is the workload that owns a pod that was listed.
func (i *Intake) ownerOf(ctx context.Context, pod *corev1.Pod) playbooks.WorkloadIdentity {
	return kube.PodTargetFacts(ctx, i.Kube, pod).Workload()
}

// slim is what is read of a pod that is kept: thousands of whole pods would be much memory.
func slim(p *corev1.Pod) *corev1.Pod {
	var annotations map[string]string
	for _, key := range []string{corev1.MirrorPodAnnotationKey, "kubernetes.io/config.hash"} {
		if value, ok := p.Annotations[key]; ok {
			if annotations == nil {
				annotations = map[string]string{}
			}
			annotations[key] = value
		}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels, Annotations: annotations},
		Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, ServiceAccountName: p.Spec.ServiceAccountName},
		Status: corev1.PodStatus{
			PodIP: p.Status.PodIP, ContainerStatuses: p.Status.ContainerStatuses, InitContainerStatuses: p.Status.InitContainerStatuses, EphemeralContainerStatuses: p.Status.EphemeralContainerStatuses,
		},
	}
}
