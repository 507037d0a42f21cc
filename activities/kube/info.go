package kube

import (
	"fmt"
	"time"
)

// List is a bounded list that says how many there are in all.
type List[T any] struct {
	Items []T `json:"items,omitempty"`
	Total int `json:"total"`
}

// add keeps the item if there is room, and counts it.
func (l *List[T]) add(item T, most int) {
	if len(l.Items) < most {
		l.Items = append(l.Items, item)
	}
	l.Total++
}

// WorkloadInfo is what a responder wants to know about a pod before deciding: whose it is, what changed, where else
// the same runs, and what it may do.
type WorkloadInfo struct {
	Pod PodInfo `json:"pod"`
	// Owner is the top of the pod's owner chain, the pod itself if nobody owns it.
	Owner OwnerInfo `json:"owner"`
	// Chain is the owners from the pod's own upwards, without the pod.
	Chain []ObjectRef `json:"chain,omitempty"`
	// Rollouts are the owner's revisions, newest first.
	Rollouts List[Rollout] `json:"rollouts"`
	// Changes are what changed recently, newest first: rollouts and rights.
	Changes List[Change] `json:"changes"`
	// SameDigest are other pods of the cluster that run one of this pod's images, by digest.
	SameDigest List[PodSummary] `json:"same_digest"`
	// SameNode are the other pods of this pod's node.
	SameNode List[PodSummary] `json:"same_node"`
	// Account is the service account, and what it may do.
	Account AccountInfo `json:"account"`
	Node    NodeInfo    `json:"node"`
	// Missing are parts that could not be read because the right to is lacking.
	Missing []MissingPart `json:"missing,omitempty"`
}

// MissingPart says what is not in a WorkloadInfo, and why.
type MissingPart struct {
	Part   string `json:"part"`
	Detail string `json:"detail"`
}

// ObjectRef names an object of the pod's namespace.
type ObjectRef struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// OwnerInfo is the workload that a pod belongs to.
type OwnerInfo struct {
	ObjectRef
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created,omitzero"`
	// Desired and Ready count replicas; nil where the kind has none.
	Desired *int32 `json:"desired,omitempty"`
	Ready   *int32 `json:"ready,omitempty"`
}

// PodInfo is the pod itself.
type PodInfo struct {
	PodRef
	Labels      map[string]string `json:"labels,omitempty"`
	Created     time.Time         `json:"created,omitzero"`
	Phase       string            `json:"phase"`
	IP          string            `json:"ip,omitempty"`
	HostNetwork bool              `json:"host_network,omitempty"`
	HostPID     bool              `json:"host_pid,omitempty"`
	Containers  []ContainerInfo   `json:"containers,omitempty"`
}

// ContainerInfo is one container of the pod, of any sort.
type ContainerInfo struct {
	Name       string    `json:"name"`
	ID         string    `json:"id,omitempty"` // without the runtime's prefix
	Image      string    `json:"image"`
	Digest     string    `json:"digest,omitempty"` // "sha256:…" as it runs
	Privileged bool      `json:"privileged,omitempty"`
	Ready      bool      `json:"ready"`
	Restarts   int32     `json:"restarts"`
	Started    time.Time `json:"started,omitzero"`
}

// PodSummary is a pod in a list.
type PodSummary struct {
	PodRef
	Node  string    `json:"node,omitempty"`
	Owner ObjectRef `json:"owner,omitzero"` // the next owner, not the top
}

// NodeInfo is the node that the pod runs on.
type NodeInfo struct {
	Name          string    `json:"name,omitempty"`
	UID           string    `json:"uid,omitempty"`
	Kernel        string    `json:"kernel,omitempty"`
	Runtime       string    `json:"runtime,omitempty"`
	Unschedulable bool      `json:"unschedulable,omitempty"`
	Created       time.Time `json:"created,omitzero"`
}

// Rollout is one revision of a workload.
type Rollout struct {
	Revision int64     `json:"revision"`
	Name     string    `json:"name"` // the ReplicaSet or ControllerRevision
	Created  time.Time `json:"created"`
	By       string    `json:"by,omitempty"` // field manager that wrote it
	Current  bool      `json:"current"`
	Images   []string  `json:"images,omitempty"`  // as asked for
	Digests  []string  `json:"digests,omitempty"` // as run by pods of this revision that still exist
}

// Change is something that changed recently.
type Change struct {
	When time.Time `json:"when"`
	Kind string    `json:"kind"` // "rollout", "rights"
	What string    `json:"what"` // a sentence
	By   string    `json:"by,omitempty"`
}

// AccountInfo is a service account and what it may do.
type AccountInfo struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// TokenMounted: a token of the account lies in the pod.
	TokenMounted bool `json:"token_mounted"`
	// Dangerous are sentences about rights that let an attacker go further; empty is good.
	Dangerous []string      `json:"dangerous,omitempty"`
	Grants    List[Grant]   `json:"grants"`
	Cloud     []CloudBridge `json:"cloud,omitempty"`
}

// CloudBridge is a cloud role that the account's annotations name.
type CloudBridge struct {
	Annotation string `json:"annotation"`
	Value      string `json:"value"`
}

// Grant is one rule that applies to the account, and by which way.
type Grant struct {
	// Namespace is where it applies; "" is everywhere.
	Namespace string   `json:"namespace,omitempty"`
	Binding   string   `json:"binding"` // "RoleBinding ns/name"
	Role      string   `json:"role"`
	Groups    []string `json:"groups,omitempty"`
	Resources []string `json:"resources,omitempty"`
	Names     []string `json:"names,omitempty"`
	URLs      []string `json:"urls,omitempty"`
	Verbs     []string `json:"verbs"`
}

func (g Grant) where() string {
	if g.Namespace == "" {
		return "in every namespace"
	}
	return fmt.Sprintf("in namespace %s", g.Namespace)
}
