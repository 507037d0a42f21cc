package ingest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/truncate"
)

// podCache caches pods with their owners, so that a hundred alerts about one pod cause one call to the API server. The
// key is the complete identity: what was confirmed for one name does not apply to another.
type podCache struct {
	once   sync.Once
	byName *lru.Cache[string, cachedPod] // by namespace and name
	// byContainer contains the pods of containers by node and id; nil is a container without a pod.
	byContainer *lru.Cache[string, cachedPod]
}

// open makes the caches at the first use, because the zero value of an Ingester is ready to use.
func (c *podCache) open() *podCache {
	c.once.Do(func() {
		var errs [2]error
		c.byName, errs[0] = lru.New[string, cachedPod](maxCachedPods)
		c.byContainer, errs[1] = lru.New[string, cachedPod](maxCachedPods)
		if err := errors.Join(errs[:]...); err != nil {
			panic(fmt.Sprintf("make the cache of pods: %v", err)) // only a size below 1 is an error
		}
	})
	return c
}

type cachedPod struct {
	pod      *corev1.Pod
	facts    activities.TargetFacts
	cachedAt time.Time
}

const (
	maxCachedPods = 5000
	podCacheTTL   = 30 * time.Second
	// stalePodMaxAge is how long a cached pod is used while the API server is unavailable: its UID, node and namespace
	// never change.
	stalePodMaxAge = 5 * time.Minute
	// nodeLookupTimeout and sourceLookupTimeout limit the look-up for a node's detection, and for one of another
	// sensor, which can send it again.
	nodeLookupTimeout   = 1500 * time.Millisecond
	sourceLookupTimeout = 5 * time.Second
)

// containerIDPattern matches container ids of runtimes. Ids are part of workflow ids, so they must not contain
// separators.
var containerIDPattern = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.:-]{0,127}$`)

// IsContainerID reports whether s has the form of a container id.
func IsContainerID(s string) bool { return containerIDPattern.MatchString(s) }

var podUIDPattern = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_.-]{0,127}$`)

// checkNames refuses invalid names. They are part of paths at the API server and of workflow ids, and an error of the
// client library about a name would look like an outage of the API server.
func checkNames(d sensors.Detection) error {
	c := d.Event.Container
	switch pod := c.Pod; {
	case pod.Name != "" && len(validation.IsDNS1123Subdomain(pod.Name)) > 0:
		return fmt.Errorf("invalid pod name %q", truncate.Name(pod.Name))
	case pod.Namespace != "" && len(validation.IsDNS1123Label(pod.Namespace)) > 0:
		return fmt.Errorf("invalid namespace %q", truncate.Name(pod.Namespace))
	case pod.UID != "" && !podUIDPattern.MatchString(pod.UID):
		return fmt.Errorf("invalid pod UID %q", truncate.Name(pod.UID))
	case (pod.UID != "" || pod.Name != "") && (pod.Name == "" || pod.Namespace == ""):
		return fmt.Errorf("incomplete pod identity: name %q, namespace %q, UID %q", truncate.Name(pod.Name),
			truncate.Name(pod.Namespace), truncate.Name(pod.UID))
	case c.ID != "" && !containerIDPattern.MatchString(c.ID):
		return fmt.Errorf("invalid container id %q", truncate.Name(c.ID))
	}
	// Machines outside a cluster may have capital letters and underscores in their names.
	if node := strings.ReplaceAll(strings.ToLower(d.Node), "_", "-"); node != "" &&
		len(validation.IsDNS1123Subdomain(node)) > 0 {
		return fmt.Errorf("invalid node name %q", truncate.Name(d.Node))
	}
	return nil
}

// dropUnverifiablePod removes a pod's identity that cannot be looked up from an alert that names its container: there
// it is only a label for people, and no reason to refuse the alert.
func (i *Ingester) dropUnverifiablePod(d *sensors.Detection) {
	c := &d.Event.Container
	pod := c.Pod
	if c.ID == "" || pod.Name == "" && pod.UID == "" && pod.Namespace == "" {
		return
	}
	valid := len(validation.IsDNS1123Label(pod.Namespace)) == 0 && len(validation.IsDNS1123Subdomain(pod.Name)) == 0
	if i.Kube != nil && valid {
		return
	}
	d.Reasons = append(d.Reasons, "The alert names the pod "+truncate.Name(
		pod.Namespace+"/"+pod.Name)+", which cannot be looked up.")
	c.Pod, c.Workload = sensors.Pod{}, sensors.Workload{}
	if c.Name == "" && len(validation.IsDNS1123Subdomain(pod.Name)) == 0 {
		c.Name = pod.Name
	}
}

// verifyPodIdentity replaces a detection's data about its pod with the API server's: names are reused, UIDs are not,
// and only the owner chain identifies the workload. from is the node that sent it, "" for another source. It returns a
// *TemporaryError if the API server is unavailable and the sender can send it again.
func (i *Ingester) verifyPodIdentity(ctx context.Context, d *sensors.Detection, from string) error {
	c := &d.Event.Container
	if i.Kube == nil {
		if c.Pod.Name != "" && from == "" {
			return i.fallBackToAccount(d, from, errors.New("it has a pod, but no cluster is connected"))
		}
		return nil
	}
	wait := sourceLookupTimeout
	if from != "" {
		wait = nodeLookupTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var found cachedPod
	var err error
	switch {
	case c.Pod.Name != "":
		found, err = i.lookUpPod(ctx, *c)
	case c.ID != "":
		found, err = i.lookUpPodByContainer(ctx, d.Node, c.ID)
	}
	switch {
	case err != nil && from != "" && kube.IsUnavailable(err):
		// During an outage of the API server, a node's claim is accepted, so that Stanch still detects attacks. It gets
		// a separate incident, and nothing is contained for it without an approval.
		i.Log.Warn("look up a pod: the API server is unavailable; the node's data is used", "pod",
			c.Pod.Namespace+"/"+c.Pod.Name, "container", c.ID, "error", err)
		return nil
	case err != nil && c.Pod.Name == "" && !kube.IsUnavailable(err) && from == "":
		// An alert with only a container id is accepted unchanged if the pod cannot be found; guards then require an
		// approval.
		i.Log.Warn("find the pod of a container", "container", truncate.Name(c.ID), "node", truncate.Name(d.Node), "error",
			err)
		return nil
	case err != nil:
		return i.fallBackToAccount(d, from, identityLookupError(*c, err))
	case found.pod == nil:
		return nil
	case from != "" && found.pod.Spec.NodeName != from:
		return fmt.Errorf("pod %s/%s does not run on node %s", truncate.Name(found.pod.Namespace),
			truncate.Name(found.pod.Name), from)
	case c.Pod.UID != "" && !kube.HasUID(found.pod, c.Pod.UID):
		return i.fallBackToAccount(d, from, fmt.Errorf("pod %s/%s now has the UID %s, not %s", truncate.Name(c.Pod.Namespace),
			truncate.Name(c.Pod.Name), found.pod.UID, truncate.Name(c.Pod.UID)))
	case c.Pod.UID == "" && from != "" && c.Pod.Name != "":
		return fmt.Errorf("the pod %s/%s has no UID", truncate.Name(c.Pod.Namespace), truncate.Name(c.Pod.Name))
	}
	applyVerifiedPod(d, found)
	return nil
}

// CompletePod looks up the pod of a detection about a request or a call.
func (i *Ingester) CompletePod(ctx context.Context, d *sensors.Detection) error {
	if err := checkNames(*d); err != nil {
		return err
	}
	return i.verifyPodIdentity(ctx, d, "")
}

// fallBackToAccount changes a detection that is also about an account to the account alone, with the reason why its pod
// cannot be contained. Other detections are refused for that reason, or retried if it is temporary.
func (i *Ingester) fallBackToAccount(d *sensors.Detection, from string, err error) error {
	if later := (*TemporaryError)(nil); from != "" || d.Event.Subject.Name == "" || errors.As(err, &later) {
		return err
	}
	pod := d.Event.Container.Pod
	d.Event.Container = sensors.Container{}
	d.Reasons = append(d.Reasons, "It was about the pod "+truncate.Name(pod.Namespace+"/"+pod.Name)+
		", which cannot be contained: "+truncate.Reason(err.Error())+".")
	return nil
}

// identityLookupError returns the sender's error: to send it again, or a final refusal.
func identityLookupError(c sensors.Container, err error) error {
	what := fmt.Errorf("look up pod %s/%s: %w", truncate.Name(c.Pod.Namespace), truncate.Name(c.Pod.Name), err)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("pod %s/%s no longer exists", truncate.Name(c.Pod.Namespace), truncate.Name(c.Pod.Name))
	case kube.IsDefinitiveError(err):
		return what
	}
	return &TemporaryError{what}
}

// applyVerifiedPod copies the API server's data into the detection.
func applyVerifiedPod(d *sensors.Detection, found cachedPod) {
	got, c := found.pod, &d.Event.Container
	pod := &c.Pod
	pod.Namespace, pod.Name, pod.UID, pod.HostNetwork, pod.ServiceAccount, pod.Labels = got.Namespace, got.Name,
		string(got.UID), got.Spec.HostNetwork, got.Spec.ServiceAccountName, sensors.LimitLabels(got.Labels)
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

// lookUpPod looks up a pod. A cached pod counts only if the report identifies it by UID or by one of its containers:
// the name alone may mean its successor.
func (i *Ingester) lookUpPod(ctx context.Context, c sensors.Container) (cachedPod, error) {
	key := c.Pod.Namespace + "/" + c.Pod.Name
	kept, ok := i.podCache.open().byName.Get(key)
	same := ok && (c.Pod.UID != "" && kube.HasUID(kept.pod, c.Pod.UID) || c.Pod.UID == "" && c.ID != "" &&
		kube.FindContainerStatus(kept.pod, c.ID, "") != nil)
	if same && time.Since(kept.cachedAt) < podCacheTTL {
		return kept, nil
	}
	got, err := i.Kube.CoreV1().Pods(c.Pod.Namespace).Get(ctx, c.Pod.Name, metav1.GetOptions{})
	if err != nil {
		if same && kube.IsUnavailable(err) && time.Since(kept.cachedAt) < stalePodMaxAge {
			return kept, nil
		}
		return cachedPod{}, err //nolint:wrapcheck // the caller adds context
	}
	return i.cachePod(ctx, got), nil
}

// cachePod resolves the owners of a pod and caches both. An incomplete owner chain is not cached.
func (i *Ingester) cachePod(ctx context.Context, got *corev1.Pod) cachedPod {
	found := cachedPod{pod: trimPod(got), facts: kube.PodTargetFacts(ctx, i.Kube, got), cachedAt: time.Now()}
	if found.facts.IncompleteReason != "" {
		i.Log.Debug("not all owners of a pod are known", "pod", got.Namespace+"/"+got.Name, "reason",
			found.facts.IncompleteReason)
		if ctx.Err() != nil {
			return found
		}
	}
	i.podCache.open().byName.Add(got.Namespace+"/"+got.Name, found)
	return found
}

// lookUpPodByContainer finds the pod of a container by its node and the prefix of its id. Without a pod, it is a
// container on a host.
func (i *Ingester) lookUpPodByContainer(ctx context.Context, node, id string) (cachedPod, error) {
	key := node + "/" + id
	kept, ok := i.podCache.open().byContainer.Get(key)
	if ok && time.Since(kept.cachedAt) < podCacheTTL {
		return kept, nil
	}
	if node == "" {
		return cachedPod{}, nil
	}
	got, _, err := kube.FindPodByContainerID(ctx, i.Kube, node, id)
	if err != nil {
		if ok && kube.IsUnavailable(err) && time.Since(kept.cachedAt) < stalePodMaxAge {
			return kept, nil
		}
		return cachedPod{}, err //nolint:wrapcheck // the error names the look-up
	}
	found := cachedPod{cachedAt: time.Now()}
	if got != nil {
		found = i.cachePod(ctx, got)
	}
	i.podCache.byContainer.Add(key, found)
	return found, nil
}

// PodOwner returns the workload that owns a listed pod.
func (i *Ingester) PodOwner(ctx context.Context, pod *corev1.Pod) playbooks.WorkloadIdentity {
	return kube.PodTargetFacts(ctx, i.Kube, pod).Workload()
}

// trimPod keeps only the used fields of a cached pod, to save memory.
func trimPod(p *corev1.Pod) *corev1.Pod {
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
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels,
			Annotations: annotations,
		},
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
			ServiceAccountName: p.Spec.ServiceAccountName,
		},
		Status: corev1.PodStatus{
			PodIP: p.Status.PodIP, ContainerStatuses: p.Status.ContainerStatuses,
			InitContainerStatuses:      p.Status.InitContainerStatuses,
			EphemeralContainerStatuses: p.Status.EphemeralContainerStatuses,
		},
	}
}
