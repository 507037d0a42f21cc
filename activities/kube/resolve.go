package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// Resolver says what targets are: container, pod and the chain of owners, as the API server has them.
type Resolver struct {
	Client kubernetes.Interface // nil without a cluster
	// Now is the clock; nil means time.Now.
	Now func() time.Time

	mu     sync.Mutex
	recent map[string]resolved
}

type resolved struct {
	facts activities.TargetFacts
	at    time.Time
}

var _ activities.TargetResolver = (*Resolver)(nil)

const (
	resolveWait = 2 * time.Second
	// resolveGrace is how long an answer counts while the API server is away: a cluster in trouble must not switch the
	// response off at once. A pod's UID, namespace, node and network never change.
	resolveGrace = 5 * time.Minute
	resolvedKept = 5000
)

// ResolvePermissions are what a Resolver reads. Custom owners beyond these are read where the worker is given the right
// to get them; a chain that ends at one that may not be read is incomplete.
func ResolvePermissions() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule("", "pods", "get", "list"),
		rule("", "nodes", "get"),
		rule("", "replicationcontrollers", "get"),
		{APIGroups: []string{"apps"}, Resources: []string{"deployments", "statefulsets", "daemonsets", "replicasets"}, Verbs: []string{"get"}},
		{APIGroups: []string{"batch"}, Resources: []string{"jobs", "cronjobs"}, Verbs: []string{"get"}},
		rule("argoproj.io", "rollouts", "get"),
	}
}

func (r *Resolver) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// ResolveTarget looks up a pod, a container or a workload.
func (r *Resolver) ResolveTarget(ctx context.Context, t playbooks.Target) activities.TargetFacts {
	if r.Client == nil {
		if t.Kind == playbooks.TargetContainer {
			return activities.TargetFacts{OutsideCluster: true, Node: t.Node}
		}
		return activities.TargetFacts{Unresolved: "no cluster is connected"}
	}
	ctx, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	facts, err := r.read(ctx, t)
	key := strings.Join([]string{t.ID(), t.Namespace, t.Name, t.Node}, "\x00")
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		if r.recent == nil || len(r.recent) >= resolvedKept {
			r.recent = map[string]resolved{}
		}
		r.recent[key] = resolved{facts, r.now()}
		return facts
	case IsUnavailable(err):
		if last, ok := r.recent[key]; ok && r.now().Sub(last.at) < resolveGrace {
			return last.facts
		}
	default:
		delete(r.recent, key)
	}
	return activities.TargetFacts{Unresolved: err.Error()}
}

func (r *Resolver) read(ctx context.Context, t playbooks.Target) (activities.TargetFacts, error) {
	switch t.Kind {
	case playbooks.TargetPod:
		pod, refused, err := getPod(ctx, r.Client, PodOf(t))
		if err != nil {
			return activities.TargetFacts{}, err
		}
		if refused != nil {
			return activities.TargetFacts{}, fmt.Errorf("%s", refused.Detail)
		}
		return FactsOf(ctx, r.Client, pod), nil
	case playbooks.TargetContainer:
		pod, known, err := PodOfContainer(ctx, r.Client, t.Node, t.UID)
		switch {
		case err != nil:
			return activities.TargetFacts{}, err
		case pod != nil:
			return FactsOf(ctx, r.Client, pod), nil
		case !known:
			return activities.TargetFacts{OutsideCluster: true, Node: t.Node}, nil
		}
		return activities.TargetFacts{}, fmt.Errorf("no pod on node %s has the container %s", t.Node, t.Name)
	case playbooks.TargetWorkload:
		ref := WorkloadRef{Kind: t.WorkloadKind, Namespace: t.Namespace, Name: t.Name, UID: t.UID}
		w, refused, err := ref.open(ctx, r.Client)
		if err != nil {
			return activities.TargetFacts{}, err
		}
		if refused != nil {
			return activities.TargetFacts{}, fmt.Errorf("%s", refused.Detail)
		}
		owners := OwnersOf(ctx, r.Client, t.Namespace, w.meta)
		self := playbooks.WorkloadIdentity{Namespace: t.Namespace, Kind: t.WorkloadKind, Name: t.Name, UID: t.UID}
		return activities.TargetFacts{
			Namespace: t.Namespace, Owners: append([]playbooks.WorkloadIdentity{self}, owners.Chain...), Incomplete: owners.Incomplete, Replicas: int(w.replicas),
		}, nil
	default:
		return activities.TargetFacts{}, fmt.Errorf("%s is no object of the cluster", t)
	}
}

// FactsOf are the facts of a pod that was read, with its chain of owners. A pod without an owner is its own workload.
func FactsOf(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) activities.TargetFacts {
	owners := OwnersOf(ctx, client, pod.Namespace, pod)
	facts := activities.TargetFacts{
		Namespace: pod.Namespace, Pod: pod.Name, Node: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork,
		Owners: owners.Chain, Incomplete: owners.Incomplete, Replicas: owners.Replicas,
	}
	if len(facts.Owners) == 0 {
		facts.Owners = []playbooks.WorkloadIdentity{{Namespace: pod.Namespace, Kind: "Pod", Name: pod.Name, UID: string(pod.UID)}}
	}
	return facts
}

// minContainerID is the shortest beginning of a container's id that names it: as much as Docker and Falco show.
const minContainerID = 12

// PodOfContainer finds the pod on a node that has a container, of whose id the beginning is enough. It is nil if there is
// none; known tells whether the cluster has such a node. Two pods that fit are an error: neither is guessed.
func PodOfContainer(ctx context.Context, client kubernetes.Interface, node, id string) (pod *corev1.Pod, known bool, err error) {
	if node == "" {
		return nil, true, fmt.Errorf("the node of container %s is not known", id)
	}
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node, ResourceVersion: "0"})
	if err != nil {
		return nil, true, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	for i := range list.Items {
		p := &list.Items[i]
		if p.Spec.NodeName != node {
			continue
		}
		known = true
		if len(id) < minContainerID || ContainerOf(p, id, "") == nil {
			continue
		}
		if pod != nil {
			return nil, true, fmt.Errorf("containers of %s/%s and %s/%s both begin with %s", pod.Namespace, pod.Name, p.Namespace, p.Name, id)
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

// ContainerOf is the container of a pod with an id, of which reports may give the beginning only; without an id it is
// the one of that name, and without a name the first. Nil is none.
func ContainerOf(pod *corev1.Pod, id, name string) *corev1.ContainerStatus {
	statuses := slices.Concat(pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses, pod.Status.InitContainerStatuses)
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

// HasUID reports whether uid names the pod: by its own UID or, for a static pod, by the hash of its manifest, which is
// the UID that the kubelet and the container runtime know it by.
func HasUID(pod *corev1.Pod, uid string) bool {
	if uid == string(pod.UID) {
		return true
	}
	if uid == "" {
		return false
	}
	// The kubelet gives the mirror of a static pod in both annotations the hash of the manifest.
	mirror, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok && (mirror == uid || pod.Annotations["kubernetes.io/config.hash"] == uid)
}
