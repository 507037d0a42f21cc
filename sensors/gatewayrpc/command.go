// Package link is the connection between a node and the gateway: what is said on it, the node's end of it, and
// the spool that keeps detections until they are acknowledged.
//
// It refuses to open a port, to hold credentials other than the node's certificate, and to act on a command: it
// hands commands to a Handler, which proves each before it obeys.
package gatewayrpc

//go:generate protoc --go_out=gatewaypb --go_opt=paths=source_relative --go-grpc_out=gatewaypb --go-grpc_opt=paths=source_relative gateway.proto

import (
	"encoding/json"
	"time"

	"stanch/sensors/attestation"
)

// CommandKind names what the gateway asks of a node.
type CommandKind string

// The commands. Those that change something carry a lease token, which the node verifies itself.
const (
	CommandSnapshot    CommandKind = "snapshot"
	CommandLock        CommandKind = "lock"
	CommandUnlock      CommandKind = "unlock"
	CommandLockState   CommandKind = "lock-state"
	CommandFreeze      CommandKind = "freeze"
	CommandThaw        CommandKind = "thaw"
	CommandFreezeState CommandKind = "freeze-state"
)

// NodeTarget names a pod or a container on the node, by what is never reused. The node finds the cgroup itself.
type NodeTarget struct {
	PodUID      string `json:"pod_uid,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
}

// ID is the target as statements name it: "pod:<uid>" or "container:<id>".
func (t NodeTarget) ID() string {
	if t.PodUID != "" {
		return "pod:" + t.PodUID
	}
	return "container:" + t.ContainerID
}

// ContainmentCommand applies a lock or a freeze.
type ContainmentCommand struct {
	Target    NodeTarget `json:"target"`
	Action    string     `json:"action"` // the action of the token
	LeaseID   string     `json:"lease"`
	ExpiresAt time.Time  `json:"until"`
	// Params are the action's parameters. The token holds their hash: what a lock leaves open is read from nothing else.
	Params json.RawMessage      `json:"params,omitempty"`
	Token  attestation.Envelope `json:"token"`
	// Grant is needed to end a hold earlier than it was stamped.
	Grant *attestation.Envelope `json:"grant,omitempty"`
}

// ReleaseCommand ends a hold. Without a grant the node obeys only when the hold's own end has passed.
type ReleaseCommand struct {
	Target  NodeTarget            `json:"target"`
	LeaseID string                `json:"lease"`
	Grant   *attestation.Envelope `json:"grant,omitempty"`
}

// StateQuery asks for the state of a hold.
type StateQuery struct {
	Target NodeTarget `json:"target"`
}

// ContainmentState is what a node observes of a hold.
type ContainmentState struct {
	Active    bool      `json:"active"`
	LeaseID   string    `json:"lease,omitempty"`
	ExpiresAt time.Time `json:"until,omitzero"`
	// VethLocked: the packet path outside of the pod is held too, so raw frames do not pass.
	VethLocked    bool   `json:"veth_locked,omitempty"`
	DeniedPackets uint64 `json:"denied_packets,omitempty"` // packets refused so far
	// TargetGone: the pod or container no longer runs on this node.
	TargetGone bool `json:"target_gone,omitempty"`
	// UnverifiedReason says why the hold is in force and its whole effect is not observed. Empty: it is.
	UnverifiedReason string `json:"unverified_reason,omitempty"`
	Note             string `json:"note,omitempty"`
	// NetworkSharers are other containers in the target's network namespace, at most 8: a lock cuts them too.
	NetworkSharers []NetworkSharer `json:"network_sharers,omitempty"`
	// AppliedAt is the node's own time of the moment at which the hold took effect.
	AppliedAt time.Time `json:"applied_at,omitzero"`
}

// NetworkSharer is another container in a target's network namespace.
type NetworkSharer struct {
	ContainerID string `json:"container_id"`
	// StartedBeforeTarget: it was there when the target started.
	StartedBeforeTarget bool `json:"started_before_target,omitempty"`
}

// SnapshotCommand captures the processes of a target. Proof is an attested detection about the target.
type SnapshotCommand struct {
	Target      NodeTarget           `json:"target"`
	Attestation attestation.Envelope `json:"attestation"`
}
