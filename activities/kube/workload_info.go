package kube

import (
	"fmt"
	"time"
)

// BoundedList is a bounded list that says how many there are in all.
type BoundedList[T any] struct {
	Items []T `json:"items,omitempty"`
	Total int `json:"total"`
}

// add keeps the item if there is room, and counts it.
func (l *BoundedList[T]) add(item T, most int) {
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
	// OwnerChain is the owners from the pod's own upwards, without the pod.
	OwnerChain []ObjectRef `json:"owner_chain,omitempty"`
	// Rollouts are the owner's revisions, newest first.
	Rollouts BoundedList[Rollout] `json:"rollouts"`
	// RecentChanges are what changed recently, newest first: rollouts and rights.
	RecentChanges BoundedList[Change] `json:"recent_changes"`
	// SameDigestPods are other pods of the cluster that run one of this pod's images, by digest.
	SameDigestPods BoundedList[PodSummary] `json:"same_digest_pods"`
	// SameNodePods are the other pods of this pod's node.
	SameNodePods BoundedList[PodSummary] `json:"same_node_pods"`
	// ServiceAccount is the service account, and what it may do.
	ServiceAccount ServiceAccountInfo `json:"service_account"`
	Node           NodeInfo           `json:"node"`
	// Missing are parts that could not be read because the right to is lacking.
	Missing []MissingPart `json:"missing,omitempty"`
}

// MissingPart says what is not in a WorkloadInfo, and why.
type MissingPart struct {
	Part   string `json:"part"`
	Reason string `json:"reason"`
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
	Labels    map[string]string `json:"labels,omitempty"`
	CreatedAt time.Time         `json:"created,omitzero"`
	// DesiredReplicas and Ready count replicas; nil where the kind has none.
	DesiredReplicas *int32 `json:"desired,omitempty"`
	ReadyReplicas   *int32 `json:"ready,omitempty"`
}

// PodInfo is the pod itself.
type PodInfo struct {
	PodRef
	Labels      map[string]string `json:"labels,omitempty"`
	CreatedAt   time.Time         `json:"created,omitzero"`
	Phase       string            `json:"phase"`
	IP          string            `json:"ip,omitempty"`
	HostNetwork bool              `json:"host_network,omitempty"`
	HostPID     bool              `json:"host_pid,omitempty"`
	Containers  []ContainerInfo   `json:"containers,omitempty"`
}

// ContainerInfo is one container of the pod, of any sort.
type ContainerInfo struct {
	Name        string    `json:"name"`
	ID          string    `json:"id,omitempty"` // without the runtime's prefix
	Image       string    `json:"image"`
	ImageDigest string    `json:"digest,omitempty"` // "sha256:…" as it runs
	Privileged  bool      `json:"privileged,omitempty"`
	Ready       bool      `json:"ready"`
	Restarts    int32     `json:"restarts"`
	StartedAt   time.Time `json:"started,omitzero"`
}

// PodSummary is a pod in a list.
type PodSummary struct {
	PodRef
	Node  string    `json:"node,omitempty"`
	Owner ObjectRef `json:"owner,omitzero"` // the next owner, not the top
}

// NodeInfo is the node that the pod runs on.
type NodeInfo struct {
	Name             string    `json:"name,omitempty"`
	UID              string    `json:"uid,omitempty"`
	KernelVersion    string    `json:"kernel,omitempty"`
	ContainerRuntime string    `json:"runtime,omitempty"`
	Unschedulable    bool      `json:"unschedulable,omitempty"`
	CreatedAt        time.Time `json:"created,omitzero"`
}

// Rollout is one revision of a workload.
type Rollout struct {
	Revision     int64     `json:"revision"`
	Name         string    `json:"name"` // the ReplicaSet or ControllerRevision
	CreatedAt    time.Time `json:"created"`
	FieldManager string    `json:"field_manager,omitempty"` // field manager that wrote it
	IsCurrent    bool      `json:"current"`
	Images       []string  `json:"images,omitempty"`        // as asked for
	ImageDigests []string  `json:"image_digests,omitempty"` // as run by pods of this revision that still exist
}

// Change is something that changed recently.
type Change struct {
	ChangedAt   time.Time `json:"changed_at"`
	Kind        string    `json:"kind"`        // "rollout", "rights"
	Description string    `json:"description"` // a sentence
	ChangedBy   string    `json:"changed_by,omitempty"`
}

// ServiceAccountInfo is a service account and what it may do.
type ServiceAccountInfo struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// TokenMounted: a token of the account lies in the pod.
	TokenMounted bool `json:"token_mounted"`
	// RiskyPermissions are sentences about rights that let an attacker go further; empty is good.
	RiskyPermissions []string                 `json:"risky_permissions,omitempty"`
	GrantedRules     BoundedList[GrantedRule] `json:"granted_rules"`
	CloudRoles       []CloudRoleAnnotation    `json:"cloud_roles,omitempty"`
}

// CloudRoleAnnotation is a cloud role that the account's annotations name.
type CloudRoleAnnotation struct {
	Annotation string `json:"annotation"`
	Value      string `json:"value"`
}

// GrantedRule is one rule that applies to the account, and by which way.
type GrantedRule struct {
	// Namespace is where it applies; "" is everywhere.
	Namespace       string   `json:"namespace,omitempty"`
	Binding         string   `json:"binding"` // "RoleBinding ns/name"
	Role            string   `json:"role"`
	Groups          []string `json:"groups,omitempty"`
	Resources       []string `json:"resources,omitempty"`
	ResourceNames   []string `json:"names,omitempty"`
	NonResourceURLs []string `json:"urls,omitempty"`
	Verbs           []string `json:"verbs"`
}

func (g GrantedRule) describeScope() string {
	if g.Namespace == "" {
		return "in every namespace"
	}
	return fmt.Sprintf("in namespace %s", g.Namespace)
}
