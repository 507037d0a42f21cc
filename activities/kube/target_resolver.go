package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// TargetResolver returns facts about targets from the API server: container, pod and owner chain. It is safe for
// concurrent use.
type TargetResolver struct {
	Client kubernetes.Interface // nil without a cluster
	// Now returns the current time; nil means time.Now.
	Now func() time.Time

	mu          sync.Mutex
	cachedFacts *simplelru.LRU[string, cachedTargetFacts]
}

type cachedTargetFacts struct {
	facts      activities.TargetFacts
	resolvedAt time.Time
}

var _ activities.TargetResolver = (*TargetResolver)(nil)

const (
	resolveTimeout = 2 * time.Second
	// staleFactsMaxAge is how long cached facts are used while the API server is unavailable, so that an outage does
	// not disable the response at once. A pod's UID, namespace, node and network never change.
	staleFactsMaxAge = 5 * time.Minute
	maxCachedFacts   = 5000
)

// ResolvePermissions returns what a TargetResolver reads. It reads other custom owners if the worker has the
// permission; otherwise the chain is incomplete there.
func ResolvePermissions() []playbooks.KubernetesPermission {
	return []playbooks.KubernetesPermission{
		permission("", []string{"pods"}, "get", "list"),
		permission("", []string{"nodes"}, "get"),
		permission("", []string{"replicationcontrollers"}, "get"),
		permission("apps", []string{"deployments", "statefulsets", "daemonsets", "replicasets"}, "get"),
		permission("batch", []string{"jobs", "cronjobs"}, "get"),
		permission("argoproj.io", []string{"rollouts"}, "get"),
	}
}

func (r *TargetResolver) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// ResolveTarget returns the facts about a pod, a container or a workload.
func (r *TargetResolver) ResolveTarget(ctx context.Context, t playbooks.Target) activities.TargetFacts {
	if r.Client == nil {
		if t.Kind == playbooks.TargetContainer {
			return activities.TargetFacts{OutsideCluster: true, Node: t.Node}
		}
		return activities.TargetFacts{UnresolvedReason: "no cluster is connected"}
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	facts, err := r.lookUpTarget(ctx, t)
	key := strings.Join([]string{t.ID(), t.Namespace, t.Name, t.Node}, "\x00")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cachedFacts == nil {
		r.cachedFacts, _ = simplelru.NewLRU[string, cachedTargetFacts](maxCachedFacts, nil) // fails only without a size
	}
	switch {
	case err == nil:
		r.cachedFacts.Add(key, cachedTargetFacts{facts, r.now()})
		return facts
	case IsUnavailable(err):
		if last, ok := r.cachedFacts.Get(key); ok && r.now().Sub(last.resolvedAt) < staleFactsMaxAge {
			return last.facts
		}
	default:
		r.cachedFacts.Remove(key)
	}
	return activities.TargetFacts{UnresolvedReason: err.Error()}
}

func (r *TargetResolver) lookUpTarget(ctx context.Context, t playbooks.Target) (activities.TargetFacts, error) {
	switch t.Kind {
	case playbooks.TargetPod:
		pod, err := getPod(ctx, r.Client, PodRefForTarget(t))
		if err != nil {
			return activities.TargetFacts{}, err
		}
		return PodTargetFacts(ctx, r.Client, pod), nil
	case playbooks.TargetContainer:
		pod, known, err := FindPodByContainerID(ctx, r.Client, t.Node, t.UID)
		switch {
		case err != nil:
			return activities.TargetFacts{}, err
		case pod != nil:
			return PodTargetFacts(ctx, r.Client, pod), nil
		case !known:
			return activities.TargetFacts{OutsideCluster: true, Node: t.Node}, nil
		}
		return activities.TargetFacts{}, fmt.Errorf("no pod on node %s has the container %s", t.Node, t.Name)
	case playbooks.TargetWorkload:
		w, err := workloadRefForTarget(t).getWorkload(ctx, r.Client)
		if err != nil {
			return activities.TargetFacts{}, err
		}
		owners := ResolveOwners(ctx, r.Client, t.Namespace, w.meta)
		self := playbooks.WorkloadIdentity{Namespace: t.Namespace, Kind: t.WorkloadKind, Name: t.Name, UID: t.UID}
		return activities.TargetFacts{
			Namespace: t.Namespace, Owners: append([]playbooks.WorkloadIdentity{self}, owners.Workloads...),
			IncompleteReason: owners.IncompleteReason, Replicas: int(w.replicas),
		}, nil
	default:
		return activities.TargetFacts{}, fmt.Errorf("%s is not an object in the cluster", t)
	}
}

// PodTargetFacts returns the facts about a pod, with its owner chain. A pod without an owner is its own workload.
func PodTargetFacts(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) activities.TargetFacts {
	owners := ResolveOwners(ctx, client, pod.Namespace, pod)
	facts := activities.TargetFacts{
		Namespace: pod.Namespace, Pod: pod.Name, Node: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork,
		Owners: owners.Workloads, IncompleteReason: owners.IncompleteReason, Replicas: owners.Replicas,
	}
	if len(facts.Owners) == 0 {
		facts.Owners = []playbooks.WorkloadIdentity{{
			Namespace: pod.Namespace, Kind: "Pod", Name: pod.Name,
			UID: string(pod.UID),
		}}
	}
	return facts
}

// minContainerIDPrefix is the minimum length of a container id prefix, which is the length that Docker and Falco show.
const minContainerIDPrefix = 12

// FindPodByContainerID returns the pod on a node with a container, whose id may be a prefix. It returns nil if there is
// none; known reports whether the cluster has the node. It is an error if two pods match.
func FindPodByContainerID(ctx context.Context, client kubernetes.Interface, node, id string) (pod *corev1.Pod,
	known bool, err error,
) {
	if node == "" {
		return nil, true, fmt.Errorf("the node of container %s is unknown", id)
	}
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{
		FieldSelector:   "spec.nodeName=" + node,
		ResourceVersion: "0",
	})
	if err != nil {
		return nil, true, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	for i := range list.Items {
		p := &list.Items[i]
		if p.Spec.NodeName != node {
			continue
		}
		known = true
		if len(id) < minContainerIDPrefix || FindContainerStatus(p, id, "") == nil {
			continue
		}
		if pod != nil {
			return nil, true, fmt.Errorf("ambiguous container id %s: containers of %s/%s and %s/%s begin with it", id,
				pod.Namespace, pod.Name, p.Namespace, p.Name)
		}
		pod = p
	}
	if pod != nil || known {
		return pod, true, nil
	}
	if _, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return nil, false, nil
	} else if err != nil {
		return nil, true, fmt.Errorf("read node %s: %w", node, err)
	}
	return nil, true, nil
}

// FindContainerStatus returns the container of a pod by id, which may be a prefix; without an id by name, and without a
// name the first. It returns nil if there is none.
func FindContainerStatus(pod *corev1.Pod, id, name string) *corev1.ContainerStatus {
	statuses := slices.Concat(pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses,
		pod.Status.InitContainerStatuses)
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

// HasUID reports whether uid identifies the pod: its own UID or, for a static pod, the hash of its manifest, which is
// the UID that the kubelet and the container runtime use.
func HasUID(pod *corev1.Pod, uid string) bool {
	if uid == string(pod.UID) {
		return true
	}
	if uid == "" {
		return false
	}
	// The kubelet writes the manifest's hash into both annotations of a static pod's mirror.
	mirror, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok && (mirror == uid || pod.Annotations["kubernetes.io/config.hash"] == uid)
}
