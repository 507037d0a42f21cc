// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The egress lock: a locked pod can send nothing but replies on connections that this node's kubelet opened to it.
//
// lock_egress filters every socket below a locked cgroup, in any network namespace. Packets without such a socket
// (packet sockets, the kernel's own resets, ARP) are filtered at the pod's host-side veth: packets from the pod arrive
// there on tcx ingress. Packets from the node to the pod leave there on tcx egress, where the kubelet's connections are
// recorded. Every decision checks the expiry first: a lock expires without user space, even if every process of Stanch
// was killed.
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

#define TCX_NEXT (-1) // newer than the kernel headers of some distributions
#define TCX_DROP 2

#define FLAG_HOST_NETWORK 1 // the pod shares the node's loopback, which is denied too
#define FLAG_ALLOW_LIST 2   // the lock has allowed destinations: the pod may resolve its gateway
#define FLAG_NODE_MAC_ONLY                                                                                             \
	4                  // no allowed destination is on the pod's own link: every frame must carry a MAC of the node
#define FLAG_ROOT_PROBES 8 // the kubelet was not found: root's sockets in the host network count as its own

struct lock {
	__u64 expiry; // CLOCK_BOOTTIME
	__u32 flags;
	__u32 reserved;
	char lease[160];
	char target[272]; // for user space: a command with another target is not for this lock
};

enum { DENIED_TCP, DENIED_UDP, DENIED_ICMP, DENIED_ARP, DENIED_OTHER, DENIED_KINDS };

struct counts {
	__u64 denied[DENIED_KINDS];
	__u64 replies;
	__u64 last_probe; // when the node last opened a connection to the pod, CLOCK_BOOTTIME
};

#define OBJECT_CGROUP 0
#define OBJECT_VETH 1

struct locked_object_key {
	__u64 id;
	__u32 kind;
	__u32 reserved;
};

struct locked_object {
	__u64 lock;
	__u8 mac[6]; // of the pod's interface, for OBJECT_VETH
	__u8 reserved[2];
};

#define ROLE_NODE 0
#define ROLE_POD 1

struct address_key {
	__u64 lock;
	__u8 address[16]; // IPv4 is mapped to IPv6
	__u32 role;
	__u32 reserved;
};

struct allow_key {
	__u32 prefix; // in bits, including the 64 of the lock's id
	__u32 lock_high, lock_low;
	__u8 address[16];
};

#define ALLOW_RULES 8
struct allow_rule {
	__u16 port;    // host byte order; 0 is any
	__u8 protocol; // 0 is TCP and UDP
	__u8 used;
};
struct allow_value {
	struct allow_rule rule[ALLOW_RULES];
};

// A MAC address of the node itself: of its end of the veth pair, its bridge, or an interface with an address.
struct mac_key {
	__u64 lock;
	__u8 mac[6];
	__u8 reserved[2];
};

// A cgroup and uid whose sockets are the kubelet's.
struct prober_key {
	__u64 cgroup;
	__u32 uid;
	__u32 reserved;
};

struct flow {
	__u64 lock;
	__u8 node[16];
	__u8 pod[16];
	__u16 node_port; // network byte order
	__u16 pod_port;
	__u32 reserved;
};

struct flow_value {
	__u64 seen;         // when the kubelet's socket last sent
	__u64 second_start; // the start of the second for which bytes counts
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct lock);
} locks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct counts);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct locked_object_key);
	__type(value, struct locked_object);
} locked_objects SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address_key);
	__type(value, __u8);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allow_key);
	__type(value, struct allow_value);
} allow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow);
	__type(value, struct flow_value);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mac_key);
	__type(value, __u8);
} macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct prober_key);
	__type(value, __u8);
} probers SEC(".maps");

// The latest expiry of all locks, so that a host without a lock pays for one lookup only.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} latest_expiry SEC(".maps");

#define SECOND_NS 1000000000ULL
#define FLOW_NS (60 * SECOND_NS)

// The bytes that a pod may send per second on a connection of the kubelet, plus one packet. The kubelet reads 10 KiB of
// a probe's response.
#define FLOW_BYTES (64 * 1024)

#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86DD
#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMPV6 58
#define TH_FIN 0x01
#define TH_SYN 0x02
#define TH_RST 0x04
#define TH_ACK 0x10

struct packet {
	__u8 from[16];
	__u8 to[16];
	__u16 from_port; // network byte order
	__u16 to_port;
	__u8 protocol;
	__u8 tcp_flags;
	bool has_ports; // the ports are known: neither a fragment nor truncated
	__u32 offset;   // of the transport header
};

static __always_inline void map_v4(__u8 *to, __u32 v4)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, &v4, 4);
}

static __always_inline bool parse_packet(struct __sk_buff *skb, __u32 offset, __u16 ethertype, struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	if (ethertype == ETH_P_IP) {
		__u8 h[20];
		__u32 v4;

		if (bpf_skb_load_bytes(skb, offset, h, sizeof(h)) ||
		    h[0] != 0x45) // no options: a source route leads elsewhere
			return false;
		__builtin_memcpy(&v4, h + 12, 4);
		map_v4(p->from, v4);
		__builtin_memcpy(&v4, h + 16, 4);
		map_v4(p->to, v4);
		p->protocol = h[9];
		if ((h[6] & 0x3f) || h[7]) // a fragment, including the first
			return true;
		offset += (h[0] & 15) * 4;
	} else if (ethertype == ETH_P_IPV6) {
		__u8 h[40];

		if (bpf_skb_load_bytes(skb, offset, h, sizeof(h)) || (h[0] >> 4) != 6)
			return false;
		__builtin_memcpy(p->from, h + 8, 16);
		__builtin_memcpy(p->to, h + 24, 16);
		p->protocol = h[6]; // extension headers are never allowed
		offset += 40;
	} else {
		return false;
	}
	p->offset = offset;
	if (p->protocol == PROTO_TCP) {
		__u8 h[14];

		if (bpf_skb_load_bytes(skb, offset, h, sizeof(h)))
			return true;
		__builtin_memcpy(&p->from_port, h, 2);
		__builtin_memcpy(&p->to_port, h + 2, 2);
		p->tcp_flags = h[13];
		p->has_ports = true;
	} else if (p->protocol == PROTO_UDP) {
		__u8 h[4];

		if (bpf_skb_load_bytes(skb, offset, h, sizeof(h)))
			return true;
		__builtin_memcpy(&p->from_port, h, 2);
		__builtin_memcpy(&p->to_port, h + 2, 2);
		p->has_ports = true;
	}
	return true;
}

static __always_inline bool is_address(__u64 lock, __u32 role, const __u8 *address)
{
	struct address_key key = {.lock = lock, .role = role};

	__builtin_memcpy(key.address, address, 16);
	return bpf_map_lookup_elem(&addresses, &key) != NULL;
}

static __always_inline struct allow_value *find_allow_rules(__u64 lock, const __u8 *address)
{
	struct allow_key key = {.prefix = 64 + 128};

	key.lock_high = lock >> 32;
	key.lock_low = lock;
	__builtin_memcpy(key.address, address, 16);
	return bpf_map_lookup_elem(&allow, &key);
}

static __always_inline bool is_allowed(__u64 lock, const struct packet *p)
{
	struct allow_value *v;
	int i;

	if (!p->has_ports)
		return false;
	v = find_allow_rules(lock, p->to);
	if (!v)
		return false;
	for (i = 0; i < ALLOW_RULES; i++) {
		struct allow_rule *r = &v->rule[i];

		if (r->used && (!r->protocol || r->protocol == p->protocol) &&
		    (!r->port || r->port == bpf_ntohs(p->to_port)))
			return true;
	}
	return false;
}

static __always_inline bool is_node_mac(__u64 lock, const __u8 *mac)
{
	struct mac_key key = {.lock = lock};

	__builtin_memcpy(key.mac, mac, 6);
	return bpf_map_lookup_elem(&macs, &key) != NULL;
}

// find_flow returns the kubelet's connection that a packet from the pod belongs to. A packet that opens a connection
// belongs to none.
static __always_inline struct flow_value *find_flow(__u64 lock, const struct packet *p, __u64 now)
{
	struct flow key = {.lock = lock, .node_port = p->to_port, .pod_port = p->from_port};
	struct flow_value *flow;

	if (!p->has_ports || p->protocol != PROTO_TCP || (p->tcp_flags & (TH_SYN | TH_ACK)) == TH_SYN)
		return NULL;
	__builtin_memcpy(key.node, p->to, 16);
	__builtin_memcpy(key.pod, p->from, 16);
	flow = bpf_map_lookup_elem(&flows, &key);
	return flow && now - flow->seen < FLOW_NS ? flow : NULL;
}

static __always_inline void count_denied(__u64 lock, __u32 kind)
{
	struct counts *c = bpf_map_lookup_elem(&counts, &lock);

	if (c && kind < DENIED_KINDS)
		__sync_fetch_and_add(&c->denied[kind], 1);
}

static __always_inline void count_reply(__u64 lock)
{
	struct counts *c = bpf_map_lookup_elem(&counts, &lock);

	if (c)
		__sync_fetch_and_add(&c->replies, 1);
}

static __always_inline __u32 denied_kind(__u8 protocol)
{
	switch (protocol) {
	case PROTO_TCP:
		return DENIED_TCP;
	case PROTO_UDP:
		return DENIED_UDP;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		return DENIED_ICMP;
	}
	return DENIED_OTHER;
}

static __always_inline bool any_lock_in_force(__u64 now)
{
	__u32 zero = 0;
	__u64 *end = bpf_map_lookup_elem(&latest_expiry, &zero);

	return end && now < *end;
}

#define MAX_DEPTH 16
#define LOOPBACK 1 // the loopback index in every network namespace

SEC("cgroup_skb/egress")
int lock_egress(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct packet p;
	bool parsed = false;
	int level;

	if (!any_lock_in_force(now))
		return 1;
	for (level = 1; level < MAX_DEPTH; level++) {
		struct locked_object_key key = {.kind = OBJECT_CGROUP};
		struct locked_object *object;
		struct lock *lock;
		__u64 id;

		key.id = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!key.id)
			break;
		object = bpf_map_lookup_elem(&locked_objects, &key);
		if (!object)
			continue;
		id = object->lock;
		lock = bpf_map_lookup_elem(&locks, &id);
		if (!lock || now >= lock->expiry)
			continue;
		if (skb->ifindex == LOOPBACK && !(lock->flags & FLAG_HOST_NETWORK))
			continue;
		if (!parsed) {
			parsed = true;
			if (!parse_packet(skb, 0, bpf_ntohs(skb->protocol), &p)) {
				count_denied(id, DENIED_OTHER);
				return 0;
			}
		}
		// A known flow suffices for a reply to the kubelet here: lock_veth_ingress, where flows are recorded,
		// checks the rest.
		if (is_allowed(id, &p) || find_flow(id, &p, now))
			continue;
		count_denied(id, denied_kind(p.protocol));
		return 0;
	}
	return 1;
}

static __always_inline bool was_probed(__u64 lock, __u64 now)
{
	struct counts *c = bpf_map_lookup_elem(&counts, &lock);

	return c && c->last_probe && now - c->last_probe < FLOW_NS;
}

// may_resolve reports whether the pod may resolve an address to a MAC: an allowed destination at any time, the node or
// gateway only after a recent probe or if an allowed destination lies behind it.
static __always_inline bool may_resolve(__u64 id, struct lock *lock, const __u8 *address, __u64 now)
{
	if (find_allow_rules(id, address))
		return true;
	return is_address(id, ROLE_NODE, address) && ((lock->flags & FLAG_ALLOW_LIST) || was_probed(id, now));
}

// is_permitted_arp lets the pod resolve the node and be resolved by it, and nothing else: the frame has exactly the
// kernel's size and the pod's own addresses, and goes to broadcast or to the node. The pod can choose no byte of it.
static __always_inline bool is_permitted_arp(struct __sk_buff *skb, __u64 id, struct locked_object *object,
					     struct lock *lock, __u64 now)
{
	__u8 h[42], address[16];
	bool request, broadcast = true;
	__u32 v4;
	int i;

	if (skb->len != 42 || bpf_skb_load_bytes(skb, 0, h, sizeof(h)))
		return false;
	if (h[14] != 0 || h[15] != 1 || h[16] != 8 || h[17] != 0 || h[18] != 6 || h[19] != 4 || h[20] != 0)
		return false;
	if (h[21] != 1 && h[21] != 2)
		return false;
	request = h[21] == 1;
	for (i = 0; i < 6; i++) {
		if (h[6 + i] != h[22 + i] || h[6 + i] != object->mac[i])
			return false;
		if (request ? h[32 + i] != 0 : h[i] != h[32 + i])
			return false;
		broadcast = broadcast && h[i] == 0xff;
	}
	__builtin_memcpy(&v4, h + 28, 4);
	map_v4(address, v4);
	if (!is_address(id, ROLE_POD, address))
		return false;
	__builtin_memcpy(&v4, h + 38, 4);
	map_v4(address, v4);
	if (request && !may_resolve(id, lock, address, now))
		return false;
	if (request && broadcast)
		return true;
	if (!request && !is_address(id, ROLE_NODE, address) && !find_allow_rules(id, address))
		return false;
	return is_node_mac(id, h) || !(lock->flags & FLAG_NODE_MAC_ONLY);
}

// Neighbor discovery, RFC 4861: the fixed sizes and values of what a kernel sends.
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_HOP_LIMIT 255
#define ND_OPTION_SOURCE 1
#define ND_OPTION_TARGET 2
#define ND_SOLICITED 0x40
#define ND_OPTIONAL_FLAGS 0xa0 // router, override
#define ND_SIZE_PLAIN 24       // bytes without an option
#define ND_SIZE_WITH_OPTION 32 // bytes with one link-layer address
#define ND_FRAME(bytes) (14 + 40 + (bytes))

// checksum_valid verifies the checksum of an ICMPv6 message, which would otherwise be two bytes that the pod can
// choose.
static __always_inline bool checksum_valid(__be32 *addresses, __be32 *message, __u32 bytes)
{
	__s64 partial = bpf_csum_diff(NULL, 0, addresses, 32, 0);
	__u64 sum;

	if (bytes == ND_SIZE_WITH_OPTION)
		partial = bpf_csum_diff(NULL, 0, message, ND_SIZE_WITH_OPTION, (__wsum)partial);
	else
		partial = bpf_csum_diff(NULL, 0, message, ND_SIZE_PLAIN, (__wsum)partial);
	if (partial < 0)
		return false;
	sum = (__u64)(__u32)partial + bpf_htonl(bytes) + bpf_htonl(PROTO_ICMPV6);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

// is_permitted_neighbor_discovery is is_permitted_arp for IPv6: a solicitation for the node's address, or an
// advertisement to the node, with the pod's own addresses and exactly as a kernel writes it.
static __always_inline bool is_permitted_neighbor_discovery(struct __sk_buff *skb, __u64 id,
							    struct locked_object *object, struct lock *lock, __u64 now)
{
	__u8 eth[12], *ip, *nd, *to, *target;
	__be32 ip_words[10], nd_words[8] = {};
	bool multicast = true;
	__u32 bytes;
	int i;

	if (skb->len == ND_FRAME(ND_SIZE_WITH_OPTION))
		bytes = ND_SIZE_WITH_OPTION;
	else if (skb->len == ND_FRAME(ND_SIZE_PLAIN))
		bytes = ND_SIZE_PLAIN;
	else
		return false;
	if (bpf_skb_load_bytes(skb, 0, eth, sizeof(eth)) || bpf_skb_load_bytes(skb, 14, ip_words, sizeof(ip_words)))
		return false;
	if (bytes == ND_SIZE_WITH_OPTION ? bpf_skb_load_bytes(skb, 54, nd_words, ND_SIZE_WITH_OPTION)
					 : bpf_skb_load_bytes(skb, 54, nd_words, ND_SIZE_PLAIN))
		return false;
	ip = (__u8 *)ip_words;
	nd = (__u8 *)nd_words;
	to = ip + 24;
	target = nd + 8;
	// No traffic class, no flow label, and the exact length.
	if (ip_words[0] != bpf_htonl(0x60000000) ||
	    ip_words[1] != bpf_htonl(bytes << 16 | PROTO_ICMPV6 << 8 | ND_HOP_LIMIT))
		return false;
	if (nd[1] != 0 || nd[5] != 0 || nd[6] != 0 || nd[7] != 0)
		return false;
	for (i = 0; i < 6; i++) {
		if (eth[6 + i] != object->mac[i] || (bytes == ND_SIZE_WITH_OPTION && nd[26 + i] != object->mac[i]))
			return false;
	}
	if (!is_address(id, ROLE_POD, ip + 8) || !checksum_valid(ip_words + 2, nd_words, bytes))
		return false;
	if (nd[0] == ND_ADVERTISEMENT) {
		if ((nd[4] & ~ND_OPTIONAL_FLAGS) != ND_SOLICITED || !is_address(id, ROLE_POD, target))
			return false;
		if (bytes == ND_SIZE_WITH_OPTION && (nd[24] != ND_OPTION_TARGET || nd[25] != 1))
			return false;
		if (!is_address(id, ROLE_NODE, to) && !find_allow_rules(id, to))
			return false;
		return is_node_mac(id, eth) || !(lock->flags & FLAG_NODE_MAC_ONLY);
	}
	if (nd[0] != ND_SOLICITATION || nd[4] != 0 || bytes != ND_SIZE_WITH_OPTION || nd[24] != ND_OPTION_SOURCE ||
	    nd[25] != 1)
		return false;
	if (!may_resolve(id, lock, target, now))
		return false;
	// To the target's solicited-node group (ff02::1:ff00:0/104 and its multicast MAC), or to the target itself.
	if (eth[0] != 0x33 || eth[1] != 0x33 || eth[2] != 0xff || ip_words[6] != bpf_htonl(0xff020000) ||
	    ip_words[7] != 0 || ip_words[8] != bpf_htonl(1) || to[12] != 0xff)
		multicast = false;
	for (i = 13; i < 16; i++) {
		if (to[i] != target[i] || (multicast && eth[i - 10] != target[i]))
			return false;
	}
	if (multicast)
		return true;
	for (i = 0; i < 13; i++) {
		if (to[i] != target[i])
			return false;
	}
	return is_node_mac(id, eth) || !(lock->flags & FLAG_NODE_MAC_ONLY);
}

// fill_tuple fills in the node's side of a connection, from the pod to the node, and returns the size of the tuple.
static __always_inline __u32 fill_tuple(struct bpf_sock_tuple *t, const __u8 *pod, __u16 pod_port, const __u8 *node,
					__u16 node_port)
{
	__u32 v4;

	__builtin_memcpy(&v4, pod + 8, 4);
	if (((__u64 *)pod)[0] == 0 && v4 == bpf_htonl(0xffff)) {
		__builtin_memcpy(&t->ipv4.saddr, pod + 12, 4);
		__builtin_memcpy(&t->ipv4.daddr, node + 12, 4);
		t->ipv4.sport = pod_port;
		t->ipv4.dport = node_port;
		return sizeof(t->ipv4);
	}
	__builtin_memcpy(t->ipv6.saddr, pod, 16);
	__builtin_memcpy(t->ipv6.daddr, node, 16);
	t->ipv6.sport = pod_port;
	t->ipv6.dport = node_port;
	return sizeof(t->ipv6);
}

// node_socket_state returns the state of the host network's socket for exactly this connection, or 0 if none exists. A
// listener that would accept the packet does not count.
static __always_inline __u32 node_socket_state(struct __sk_buff *skb, const __u8 *pod, __u16 pod_port, const __u8 *node,
					       __u16 node_port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 state;

	if (fill_tuple(&tuple, pod, pod_port, node, node_port) == sizeof(tuple.ipv4))
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state == BPF_TCP_LISTEN || state == BPF_TCP_NEW_SYN_RECV ? 0 : state;
}

// is_probe_reply reports whether a frame is a reply to the kubelet: its destination MAC is the node's, the node still
// has the socket, and the connection has bytes left in this second.
static __always_inline bool is_probe_reply(struct __sk_buff *skb, __u64 id, const struct packet *p, const __u8 *to,
					   __u64 now)
{
	struct flow_value *flow = find_flow(id, p, now);

	if (!flow || !is_node_mac(id, to))
		return false;
	if (!node_socket_state(skb, p->from, p->from_port, p->to, p->to_port))
		return false;
	if (now - flow->second_start >= SECOND_NS) {
		flow->second_start = now;
		flow->bytes = 0;
	}
	if (flow->bytes >= FLOW_BYTES)
		return false;
	__sync_fetch_and_add(&flow->bytes, skb->len);
	return true;
}

// lock_veth_ingress filters what a pod sends, on ingress of its host-side veth.
SEC("tcx/ingress")
int lock_veth_ingress(struct __sk_buff *skb)
{
	struct locked_object_key key = {.id = skb->ifindex, .kind = OBJECT_VETH};
	__u64 now = bpf_ktime_get_boot_ns(), id;
	struct locked_object *object = bpf_map_lookup_elem(&locked_objects, &key);
	struct packet p;
	struct lock *lock;
	__u16 ethertype;
	__u8 eth[14];

	if (!object)
		return TCX_NEXT;
	id = object->lock;
	lock = bpf_map_lookup_elem(&locks, &id);
	if (!lock || now >= lock->expiry)
		return TCX_NEXT;
	if (skb->vlan_present || bpf_skb_load_bytes(skb, 0, eth, sizeof(eth))) {
		count_denied(id, DENIED_OTHER);
		return TCX_DROP;
	}
	ethertype = eth[12] << 8 | eth[13];
	if (ethertype == ETH_P_ARP) {
		if (is_permitted_arp(skb, id, object, lock, now))
			return TCX_NEXT;
		count_denied(id, DENIED_ARP);
		return TCX_DROP;
	}
	if (!parse_packet(skb, 14, ethertype, &p)) {
		count_denied(id, DENIED_OTHER);
		return TCX_DROP;
	}
	if (ethertype == ETH_P_IPV6 && p.protocol == PROTO_ICMPV6 &&
	    is_permitted_neighbor_discovery(skb, id, object, lock, now))
		return TCX_NEXT;
	if (is_allowed(id, &p) && (!(lock->flags & FLAG_NODE_MAC_ONLY) || is_node_mac(id, eth)))
		return TCX_NEXT;
	if (is_probe_reply(skb, id, &p, eth, now)) {
		count_reply(id); // counted only here, where every reply passes, including resets by the kernel
		return TCX_NEXT;
	}
	count_denied(id, denied_kind(p.protocol));
	return TCX_DROP;
}

#define SOCK_STREAM 1

// sent_by_kubelet reports whether a socket of the kubelet sent a packet to the pod. A socket's cgroup is that of the
// process that created it. Its uid is the host's, also for a process in a user namespace.
static __always_inline bool sent_by_kubelet(struct __sk_buff *skb, struct lock *lock)
{
	struct prober_key key = {};
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SOCK_STREAM || sk->protocol != PROTO_TCP)
		return false;
	key.cgroup = bpf_skb_cgroup_id(skb);
	key.uid = bpf_get_socket_uid(skb);
	return bpf_map_lookup_elem(&probers, &key) || ((lock->flags & FLAG_ROOT_PROBES) && key.uid == 0);
}

// lock_veth_egress sees what is sent to a pod and records the connections that the kubelet opens. A forwarded packet
// (from another machine, also after source NAT to the node's address) has no socket here. Another pod's socket is
// visible here and may use the node's address (IP_TRANSPARENT), so the host's network namespace must have that
// connection too.
SEC("tcx/egress")
int lock_veth_egress(struct __sk_buff *skb)
{
	struct locked_object_key key = {.id = skb->ifindex, .kind = OBJECT_VETH};
	__u64 now = bpf_ktime_get_boot_ns(), id;
	struct locked_object *object = bpf_map_lookup_elem(&locked_objects, &key);
	struct flow_value fresh = {.seen = now, .second_start = now}, *known;
	struct flow flow = {};
	struct counts *c;
	struct packet p;
	struct lock *lock;

	if (!object)
		return TCX_NEXT;
	id = object->lock;
	lock = bpf_map_lookup_elem(&locks, &id);
	if (!lock || now >= lock->expiry)
		return TCX_NEXT;
	if (!parse_packet(skb, 14, bpf_ntohs(skb->protocol), &p) || p.protocol != PROTO_TCP || !p.has_ports)
		return TCX_NEXT;
	flow.lock = id;
	__builtin_memcpy(flow.node, p.from, 16);
	__builtin_memcpy(flow.pod, p.to, 16);
	flow.node_port = p.from_port;
	flow.pod_port = p.to_port;
	known = bpf_map_lookup_elem(&flows, &flow);
	if ((p.tcp_flags & (TH_SYN | TH_ACK)) != TH_SYN) {
		// A packet that the kernel sends without a socket, such as a reset, does not refresh the flow.
		if (known && sent_by_kubelet(skb, lock))
			known->seen = now;
		return TCX_NEXT;
	}
	if (node_socket_state(skb, p.to, p.to_port, p.from, p.from_port) != BPF_TCP_SYN_SENT ||
	    !is_address(id, ROLE_NODE, p.from))
		return TCX_NEXT;
	if (!sent_by_kubelet(skb, lock)) {
		// Another process uses the port now.
		if (known && skb->sk && !skb->ingress_ifindex)
			bpf_map_delete_elem(&flows, &flow);
		return TCX_NEXT;
	}
	bpf_map_update_elem(&flows, &flow, &fresh, BPF_ANY);
	c = bpf_map_lookup_elem(&counts, &id);
	if (c)
		c->last_probe = now;
	return TCX_NEXT;
}
