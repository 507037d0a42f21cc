package kube

import (
	"fmt"
	"time"
)

// BoundedList is a list with a maximum length and the total number of items.
type BoundedList[T any] struct {
	Items []T `json:"items,omitempty"`
	Total int `json:"total"`
}

// add counts the item, and appends it if the list is shorter than most.
func (l *BoundedList[T]) add(item T, most int) {
	if len(l.Items) < most {
		l.Items = append(l.Items, item)
	}
	l.Total++
}

// WorkloadInfo is what a responder needs to know about a pod: its owner, recent changes, other pods with the same
// image, and its permissions.
type WorkloadInfo struct {
	Pod PodInfo `json:"pod"`
	// Owner is the topmost owner of the pod, or the pod itself if it has none.
	Owner OwnerInfo `json:"owner"`
	// OwnerChain contains the owners, nearest first, without the pod.
	OwnerChain []ObjectRef `json:"owner_chain,omitempty"`
	// Rollouts are the owner's revisions, newest first.
	Rollouts BoundedList[Rollout] `json:"rollouts"`
	// RecentChanges are recent rollouts and permission changes, newest first.
	RecentChanges BoundedList[Change] `json:"recent_changes"`
	// SameDigestPods are other pods of the cluster that run one of this pod's images, by digest.
	SameDigestPods BoundedList[PodSummary] `json:"same_digest_pods"`
	// SameNodePods are the other pods of this pod's node.
	SameNodePods BoundedList[PodSummary] `json:"same_node_pods"`
	// ServiceAccount is the service account with its permissions.
	ServiceAccount ServiceAccountInfo `json:"service_account"`
	Node           NodeInfo           `json:"node"`
	// Missing lists the parts that could not be read because of missing permissions.
	Missing []MissingPart `json:"missing,omitempty"`
}

// MissingPart is a part that is not in a WorkloadInfo, and the reason.
type MissingPart struct {
	Part   string `json:"part"`
	Reason string `json:"reason"`
}

// ObjectRef identifies an object of the pod's namespace.
type ObjectRef struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// OwnerInfo is the workload of a pod.
type OwnerInfo struct {
	ObjectRef
	Labels    map[string]string `json:"labels,omitempty"`
	CreatedAt time.Time         `json:"created,omitzero"`
	// DesiredReplicas and ReadyReplicas are nil for kinds without replicas.
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

// ContainerInfo is one container of the pod, also an init or ephemeral one.
type ContainerInfo struct {
	Name        string    `json:"name"`
	ID          string    `json:"id,omitempty"` // without the runtime's prefix
	Image       string    `json:"image"`
	ImageDigest string    `json:"digest,omitempty"` // digest of the running image, "sha256:…"
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

// NodeInfo is the node of the pod.
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
	Name         string    `json:"name"` // name of the ReplicaSet or ControllerRevision
	CreatedAt    time.Time `json:"created"`
	FieldManager string    `json:"field_manager,omitempty"` // field manager of the last write
	IsCurrent    bool      `json:"current"`
	Images       []string  `json:"images,omitempty"`        // as specified
	ImageDigests []string  `json:"image_digests,omitempty"` // of the existing pods of this revision
}

// Change is a recent change.
type Change struct {
	ChangedAt   time.Time `json:"changed_at"`
	Kind        string    `json:"kind"`        // "rollout", "rights"
	Description string    `json:"description"` // a sentence
	ChangedBy   string    `json:"changed_by,omitempty"`
}

// ServiceAccountInfo is a service account and its permissions.
type ServiceAccountInfo struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// TokenMounted means that a token of the account is mounted in the pod.
	TokenMounted bool `json:"token_mounted"`
	// RiskyPermissions are sentences about permissions that an attacker can use beyond the pod; empty if there are
	// none.
	RiskyPermissions []string                 `json:"risky_permissions,omitempty"`
	GrantedRules     BoundedList[GrantedRule] `json:"granted_rules"`
	CloudRoles       []CloudRoleAnnotation    `json:"cloud_roles,omitempty"`
}

// CloudRoleAnnotation is a cloud role in the account's annotations.
type CloudRoleAnnotation struct {
	Annotation string `json:"annotation"`
	Value      string `json:"value"`
}

// GrantedRule is one rule that applies to the account, with its binding.
type GrantedRule struct {
	// Namespace is where it applies; "" means everywhere.
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
