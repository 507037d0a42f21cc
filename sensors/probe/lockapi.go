package probe

import (
	"errors"
	"net/netip"
	"time"
)

// DefaultEgressLockDir is where the lock is pinned. In a pod it must be a host path mounted with
// mountPropagation Bidirectional, or the lock dies with the sensor's pod.
const DefaultEgressLockDir = "/sys/fs/bpf/stanch"

var (
	// ErrHostNetwork says that a process shares the node's network: it has no wire of its own that could be held.
	ErrHostNetwork = errors.New("process is in the host's network namespace")
	// ErrLockedByOtherLease says that a cgroup is held for another lease.
	ErrLockedByOtherLease = errors.New("already held for another lease")
	// ErrNotSupported says that this kernel cannot do it. Test with errors.Is.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// EgressLockRequest says what to hold and until when.
type EgressLockRequest struct {
	// LeaseID is the id of the lease that this lock belongs to. Required.
	LeaseID string
	// TargetID names what is held, at most 271 bytes. It is kept with the lock for whoever asks later.
	TargetID string
	// Cgroups are the ids to hold: the pod's own cgroup, or a container's where there is no pod. Everything below
	// them is held too, also what is made later. At least one.
	Cgroups []uint64
	// Veths are the host-side veths of the pod (FindVeths). Empty: only the cgroup program holds, raw packet sockets
	// pass, and EgressLockState.VethLocked is false.
	Veths []Veth
	// HostNetwork says that the cgroups share the node's network. Loopback is then the node's and is denied too.
	HostNetwork bool
	// ExpiresAt is the end, enforced by the kernel's boot-time clock. Required, in the future.
	ExpiresAt time.Time
	// AllowList are destinations that stay reachable. Empty: none.
	AllowList []AllowedDestination
	// NodeAddrs are the addresses from which the kubelet's probes reach the pod. TCP connections that the kubelet (see
	// SetProbers) opens from them are answered. Nil: every address of this node, found now.
	NodeAddrs []netip.Addr
	// AnswerRootSockets answers every socket of root in the host's network namespace as if it were the kubelet's. It is for pods
	// on a node whose kubelet was not found: without answers its probes fail, and it restarts the container and
	// destroys the evidence.
	AnswerRootSockets bool
}

// AllowedDestination is a destination that a lock leaves open.
type AllowedDestination struct {
	Prefix netip.Prefix
	// Port 0 means every port; Protocol is "tcp", "udp" or "" for both.
	Port     uint16
	Protocol string
}

// Veth is the host-side end of a pod's interface.
type Veth struct {
	Index int    // interface index in the host's network namespace
	Name  string // for people
	// Addrs and MAC are those of the pod's end: ARP from the pod may name nothing else.
	Addrs []netip.Addr
	MAC   [6]byte
	// OnLinkPrefixes are the networks on the pod's own link: whoever is there is reached without the node.
	OnLinkPrefixes []netip.Prefix
	// Gateways are the next hops of the pod's routes: replies to the node may have to go through them.
	Gateways []netip.Addr
}

// EgressLockState is what a lock does at this moment.
type EgressLockState struct {
	Active    bool      `json:"active"`
	LeaseID   string    `json:"lease,omitempty"`
	TargetID  string    `json:"target,omitempty"`
	ExpiresAt time.Time `json:"until,omitzero"`
	Cgroups   []uint64  `json:"cgroups,omitempty"`
	// VethLocked says that the host-side veths are held as well, so that raw packet sockets do not pass.
	VethLocked  bool  `json:"veth_locked"`
	VethIndexes []int `json:"veth_indexes,omitempty"` // interface indexes
	// VethError says why a wire that was asked for is not held (from Apply only).
	VethError string `json:"veth_error,omitempty"`
	// DeniedPackets counts packets that were dropped, in all and by what they were.
	DeniedPackets    uint64            `json:"denied_packets"`
	DeniedByProtocol map[string]uint64 `json:"denied_by_protocol,omitempty"` // "tcp", "udp", "icmp", "arp", "other"
	// AnsweredPackets counts packets let through as replies to the node's own connections.
	AnsweredPackets uint64 `json:"answered_packets"`
}
