// Package gatewayrpc is the connection between a node and the gateway: the messages, the node's side of the
// connection, and the spool that keeps detections until the gateway acknowledges them.
//
// It refuses to open a port, to hold credentials other than the node's certificate, and to act on a command: it passes
// each command to a CommandHandler, which verifies the proof of the command before it executes it.
package gatewayrpc

//go:generate protoc --go_out=gatewaypb --go_opt=paths=source_relative --go-grpc_out=gatewaypb --go-grpc_opt=paths=source_relative gateway.proto

import (
	"encoding/json"
	"time"

	"stanch/sensors/attestation"
)

// CommandKind is the type of a command from the gateway to a node.
type CommandKind string

// The commands. A command that changes something contains a lease token or a grant, which the node verifies itself.
const (
	CommandSnapshot    CommandKind = "snapshot"
	CommandLock        CommandKind = "lock"
	CommandUnlock      CommandKind = "unlock"
	CommandLockState   CommandKind = "lock-state"
	CommandFreeze      CommandKind = "freeze"
	CommandThaw        CommandKind = "thaw"
	CommandFreezeState CommandKind = "freeze-state"
)

// NodeTarget identifies a pod or a container on the node by an ID that is never reused. One of the two IDs is set. The
// node finds the cgroup itself.
type NodeTarget struct {
	PodUID      string `json:"pod_uid,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
}

// ID returns the target's ID in the form that statements use: "pod:<uid>" or "container:<id>".
func (t NodeTarget) ID() string {
	if t.PodUID != "" {
		return "pod:" + t.PodUID
	}
	return "container:" + t.ContainerID
}

// ContainmentCommand applies an egress lock or a freeze.
type ContainmentCommand struct {
	Target    NodeTarget `json:"target"`
	Action    string     `json:"action"` // the action of the token
	LeaseID   string     `json:"lease"`
	ExpiresAt time.Time  `json:"until"`
	// Params are the parameters of the action, such as the allow list of a lock. The token contains their hash, so the
	// node trusts them.
	Params json.RawMessage      `json:"params,omitempty"`
	Token  attestation.Envelope `json:"token"`
	// Grant is required if ExpiresAt is earlier than the end in the token, or if the command weakens a lock that is in
	// force.
	Grant *attestation.Envelope `json:"grant,omitempty"`
}

// ReleaseCommand ends a lock or a freeze. Without a grant, the node refuses it until the containment has expired.
type ReleaseCommand struct {
	Target  NodeTarget            `json:"target"`
	LeaseID string                `json:"lease"`
	Grant   *attestation.Envelope `json:"grant,omitempty"`
}

// StateQuery asks for the state of the containment of a target.
type StateQuery struct {
	Target NodeTarget `json:"target"`
}

// ContainmentState is the state of a containment, as the node observes it.
type ContainmentState struct {
	Active    bool      `json:"active"`
	LeaseID   string    `json:"lease,omitempty"`
	ExpiresAt time.Time `json:"until,omitzero"`
	// VethLocked reports whether the pod's network interface is also locked on the host side, so that raw frames are
	// dropped.
	VethLocked    bool   `json:"veth_locked,omitempty"`
	DeniedPackets uint64 `json:"denied_packets,omitempty"` // packets dropped so far
	// TargetGone reports whether the pod or container no longer runs on this node.
	TargetGone bool `json:"target_gone,omitempty"`
	// UnverifiedReason says why the containment is active but its full effect cannot be observed. It is empty if the
	// effect is verified.
	UnverifiedReason string `json:"unverified_reason,omitempty"`
	Note             string `json:"note,omitempty"`
	// NetworkSharers are other containers in the target's network namespace, at most 8. A lock affects them too.
	NetworkSharers []NetworkSharer `json:"network_sharers,omitempty"`
	// AppliedAt is when the containment took effect, by the clock of the node.
	AppliedAt time.Time `json:"applied_at,omitzero"`
}

// NetworkSharer is another container in the network namespace of a target.
type NetworkSharer struct {
	ContainerID string `json:"container_id"`
	// StartedBeforeTarget reports whether the container was already in the namespace when the target started.
	StartedBeforeTarget bool `json:"started_before_target,omitempty"`
}

// SnapshotCommand captures the processes of a target. Attestation must be about a detection of the target.
type SnapshotCommand struct {
	Target      NodeTarget           `json:"target"`
	Attestation attestation.Envelope `json:"attestation"`
}
