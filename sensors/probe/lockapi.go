package probe

import (
	"errors"
	"net/netip"
	"time"
)

// DefaultEgressLockDir is the default pin directory of the lock. In a pod it must be on a BPF file system of the node.
// Otherwise the locks end with the sensor's pod.
const DefaultEgressLockDir = "/sys/fs/bpf/stanch"

var (
	// ErrHostNetwork means that a process is in the node's network namespace, and has no veth that could be locked.
	ErrHostNetwork = errors.New("process is in the host's network namespace")
	// ErrLockedByOtherLease means that another lease has locked the cgroup or veth.
	ErrLockedByOtherLease = errors.New("already locked by another lease")
	// ErrNotSupported means that this kernel or machine does not support the operation.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// EgressLockRequest says what to lock and until when.
type EgressLockRequest struct {
	// LeaseID is the ID of the lease that the lock belongs to, 1 to 159 bytes. Required.
	LeaseID string
	// TargetID identifies the target, at most 271 bytes. It is stored with the lock and returned in EgressLockState.
	TargetID string
	// Cgroups are the IDs of the cgroups to lock: the pod's cgroup, or the container's cgroup outside of a pod. All
	// cgroups below them are locked too, including later ones. 1 to 64.
	Cgroups []uint64
	// Veths are the host-side veths of the pod (see FindVeths), at most 64. If it is empty, only the cgroup program
	// enforces the lock: raw packet sockets can still send, and EgressLockState.VethLocked is false.
	Veths []Veth
	// HostNetwork reports whether the cgroups share the node's network. Loopback then belongs to the node and is
	// blocked too.
	HostNetwork bool
	// ExpiresAt is the end of the lock. The kernel enforces it with its boot-time clock. Required, in the future.
	ExpiresAt time.Time
	// AllowList are the destinations that stay reachable, at most 4096. If it is empty, none does.
	AllowList []AllowedDestination
	// NodeAddrs are the addresses from which the kubelet probes the pod. Replies to TCP connections that the kubelet
	// (see SetProbers) opens from these addresses are allowed. Nil means every current address of this node.
	NodeAddrs []netip.Addr
	// AnswerRootSockets treats every socket of root in the host's network namespace as the kubelet's. It is for pods
	// on a node whose kubelet was not found: without replies the pod's probes fail, and the kubelet restarts the
	// container, which destroys evidence.
	AnswerRootSockets bool
}

// AllowedDestination is a destination that a lock allows.
type AllowedDestination struct {
	Prefix netip.Prefix
	// Port 0 means every port. Protocol is "tcp", "udp", or "" for both.
	Port     uint16
	Protocol string
}

// Veth is the host-side end of a pod's network interface.
type Veth struct {
	Index int    // interface index in the host's network namespace
	Name  string // for display only
	// Addrs and MAC are the addresses of the pod's end. ARP from the pod may contain no other address.
	Addrs []netip.Addr
	MAC   [6]byte
	// OnLinkPrefixes are the networks on the pod's link. Hosts in them are reached without routing through the node.
	OnLinkPrefixes []netip.Prefix
	// Gateways are the next hops of the pod's routes. Replies to the node may have to use them.
	Gateways []netip.Addr
}

// EgressLockState is the current state of a lock. The zero value means that there is no lock.
type EgressLockState struct {
	Active    bool      `json:"active"`
	LeaseID   string    `json:"lease,omitempty"`
	TargetID  string    `json:"target,omitempty"`
	ExpiresAt time.Time `json:"until,omitzero"`
	Cgroups   []uint64  `json:"cgroups,omitempty"`
	// VethLocked reports whether a host-side veth is locked too, so that raw packet sockets are blocked.
	VethLocked  bool  `json:"veth_locked"`
	VethIndexes []int `json:"veth_indexes,omitempty"` // interface indexes
	// VethError says why a requested veth is not locked. Only Apply sets it.
	VethError string `json:"veth_error,omitempty"`
	// DeniedPackets is the number of dropped packets. DeniedByProtocol counts them by protocol.
	DeniedPackets    uint64            `json:"denied_packets"`
	DeniedByProtocol map[string]uint64 `json:"denied_by_protocol,omitempty"` // "tcp", "udp", "icmp", "arp", "other"
	// AnsweredPackets is the number of packets that were allowed as replies to the node's connections.
	AnsweredPackets uint64 `json:"answered_packets"`
}
