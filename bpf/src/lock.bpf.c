// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The egress lock: nothing leaves a held pod but answers to connections that this node's kubelet opened to it.
//
// lock_egress holds every socket below a held cgroup, whatever network namespace it is in. What has no such socket
// (packet sockets, the kernel's own resets and ARP) is held at the pod's host-side veth: what the pod sends arrives there
// on tcx ingress. What the node sends to the pod leaves there on tcx egress, where the kubelet's connections are noted.
// Every decision asks for the end first: a lock lapses by itself, whoever has died.
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

#define TCX_NEXT (-1) // younger than the headers of some distributions
#define TCX_DROP 2

#define FLAG_HOST_NETWORK 1 // loopback is the node's: denied too
#define FLAG_ALLOW_LIST 2   // there are allowed destinations: the pod may look for its gateway
#define FLAG_BY_NODE 4      // no allowed destination is on the pod's own link: every frame bears a MAC of the node's
#define FLAG_ROOT_PROBES 8  // the kubelet was not found: sockets of root in the host's network count as the kubelet's

struct lock {
	__u64 expiry; // CLOCK_BOOTTIME
	__u32 flags;
	__u32 reserved;
	char lease[160];
	char target[272]; // for user space: a command that names another one is not for this lock
};

enum { DENIED_TCP, DENIED_UDP, DENIED_ICMP, DENIED_ARP, DENIED_OTHER, DENIED_KINDS };

struct counts {
	__u64 denied[DENIED_KINDS];
	__u64 answered;
	__u64 asked; // when the node last opened a connection to the pod
};

#define HOLD_CGROUP 0
#define HOLD_WIRE 1

struct hold_key {
	__u64 id;
	__u32 kind;
	__u32 reserved;
};

struct hold {
	__u64 lock;
	__u8 mac[6]; // of the pod's end, for HOLD_WIRE
	__u8 reserved[2];
};

#define ROLE_NODE 0
#define ROLE_POD 1

struct address_key {
	__u64 lock;
	__u8 address[16]; // v4 is mapped
	__u32 role;
	__u32 reserved;
};

struct allow_key {
	__u32 prefix; // bits, those of the lock's id included
	__u32 lock_high, lock_low;
	__u8 address[16];
};

#define ALLOW_RULES 8
struct allow_rule {
	__u16 port;    // host byte order, 0 any
	__u8 protocol; // 0 TCP and UDP
	__u8 used;
};
struct allow_value {
	struct allow_rule rule[ALLOW_RULES];
};

// A MAC address of the node itself: of its end of the wire, of its bridge, of an interface with an address.
struct mac_key {
	__u64 lock;
	__u8 mac[6];
	__u8 reserved[2];
};

// Whose sockets are the kubelet's.
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
	__u64 seen;   // when the kubelet's socket sent last
	__u64 second; // the start of the second that bytes counts
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
	__type(key, struct hold_key);
	__type(value, struct hold);
} holds SEC(".maps");

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

// The latest end of all locks, so that a host without one pays for a single look.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} latest SEC(".maps");

#define SECOND_NS 1000000000ULL
#define FLOW_NS (60 * SECOND_NS)

// What a connection of the kubelet's is answered per second, and one packet more. The kubelet reads 10 KiB of a probe's
// answer.
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
	bool ports; // the ports are known: not a fragment, not cut short
	__u32 at;   // where the transport header begins
};

static __always_inline void map_v4(__u8 *to, __u32 v4)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, &v4, 4);
}

static __always_inline bool parse(struct __sk_buff *skb, __u32 at, __u16 ethertype, struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	if (ethertype == ETH_P_IP) {
		__u8 h[20];
		__u32 v4;

		if (bpf_skb_load_bytes(skb, at, h, sizeof(h)) || h[0] != 0x45) // no options: a source route would lead elsewhere
			return false;
		__builtin_memcpy(&v4, h + 12, 4);
		map_v4(p->from, v4);
		__builtin_memcpy(&v4, h + 16, 4);
		map_v4(p->to, v4);
		p->protocol = h[9];
		if ((h[6] & 0x3f) || h[7]) // a fragment, also the first one
			return true;
		at += (h[0] & 15) * 4;
	} else if (ethertype == ETH_P_IPV6) {
		__u8 h[40];

		if (bpf_skb_load_bytes(skb, at, h, sizeof(h)) || (h[0] >> 4) != 6)
			return false;
		__builtin_memcpy(p->from, h + 8, 16);
		__builtin_memcpy(p->to, h + 24, 16);
		p->protocol = h[6]; // an extension header is none that is let through
		at += 40;
	} else {
		return false;
	}
	p->at = at;
	if (p->protocol == PROTO_TCP) {
		__u8 h[14];

		if (bpf_skb_load_bytes(skb, at, h, sizeof(h)))
			return true;
		__builtin_memcpy(&p->from_port, h, 2);
		__builtin_memcpy(&p->to_port, h + 2, 2);
		p->tcp_flags = h[13];
		p->ports = true;
	} else if (p->protocol == PROTO_UDP) {
		__u8 h[4];

		if (bpf_skb_load_bytes(skb, at, h, sizeof(h)))
			return true;
		__builtin_memcpy(&p->from_port, h, 2);
		__builtin_memcpy(&p->to_port, h + 2, 2);
		p->ports = true;
	}
	return true;
}

static __always_inline bool is_address(__u64 lock, __u32 role, const __u8 *address)
{
	struct address_key key = {.lock = lock, .role = role};

	__builtin_memcpy(key.address, address, 16);
	return bpf_map_lookup_elem(&addresses, &key) != NULL;
}

static __always_inline struct allow_value *allowed_to(__u64 lock, const __u8 *address)
{
	struct allow_key key = {.prefix = 64 + 128};

	key.lock_high = lock >> 32;
	key.lock_low = lock;
	__builtin_memcpy(key.address, address, 16);
	return bpf_map_lookup_elem(&allow, &key);
}

static __always_inline bool allowed(__u64 lock, const struct packet *p)
{
	struct allow_value *v;
	int i;

	if (!p->ports)
		return false;
	v = allowed_to(lock, p->to);
	if (!v)
		return false;
	for (i = 0; i < ALLOW_RULES; i++) {
		struct allow_rule *r = &v->rule[i];

		if (r->used && (!r->protocol || r->protocol == p->protocol) && (!r->port || r->port == bpf_ntohs(p->to_port)))
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

// flow_of finds the kubelet's connection that a packet from the pod belongs to. A packet that opens a connection itself
// belongs to none.
static __always_inline struct flow_value *flow_of(__u64 lock, const struct packet *p, __u64 now)
{
	struct flow key = {.lock = lock, .node_port = p->to_port, .pod_port = p->from_port};
	struct flow_value *flow;

	if (!p->ports || p->protocol != PROTO_TCP || (p->tcp_flags & (TH_SYN | TH_ACK)) == TH_SYN)
		return NULL;
	__builtin_memcpy(key.node, p->to, 16);
	__builtin_memcpy(key.pod, p->from, 16);
	flow = bpf_map_lookup_elem(&flows, &key);
	return flow && now - flow->seen < FLOW_NS ? flow : NULL;
}

static __always_inline void denied(__u64 lock, __u32 kind)
{
	struct counts *c = bpf_map_lookup_elem(&counts, &lock);

	if (c && kind < DENIED_KINDS)
		__sync_fetch_and_add(&c->denied[kind], 1);
}

static __always_inline void answered(__u64 lock)
{
	struct counts *c = bpf_map_lookup_elem(&counts, &lock);

	if (c)
		__sync_fetch_and_add(&c->answered, 1);
}

static __always_inline __u32 kind_of(__u8 protocol)
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

static __always_inline bool in_force(__u64 now)
{
	__u32 zero = 0;
	__u64 *end = bpf_map_lookup_elem(&latest, &zero);

	return end && now < *end;
}

#define MAX_DEPTH 16
#define LOOPBACK 1 // the index of loopback in every network namespace

SEC("cgroup_skb/egress")
int lock_egress(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct packet p;
	bool parsed = false;
	int level;

	if (!in_force(now))
		return 1;
	for (level = 1; level < MAX_DEPTH; level++) {
		struct hold_key key = {.kind = HOLD_CGROUP};
		struct hold *hold;
		struct lock *lock;
		__u64 id;

		key.id = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!key.id)
			break;
		hold = bpf_map_lookup_elem(&holds, &key);
		if (!hold)
			continue;
		id = hold->lock;
		lock = bpf_map_lookup_elem(&locks, &id);
		if (!lock || now >= lock->expiry)
			continue;
		if (skb->ifindex == LOOPBACK && !(lock->flags & FLAG_HOST_NETWORK))
			continue;
		if (!parsed) {
			parsed = true;
			if (!parse(skb, 0, bpf_ntohs(skb->protocol), &p)) {
				denied(id, DENIED_OTHER);
				return 0;
			}
		}
		// An answer to the kubelet passes by its flow alone: the wire, where flows are noted, looks at the rest.
		if (allowed(id, &p) || flow_of(id, &p, now))
			continue;
		denied(id, kind_of(p.protocol));
		return 0;
	}
	return 1;
}

static __always_inline bool asked(__u64 lock, __u64 now)
{
	struct counts *c = bpf_map_lookup_elem(&counts, &lock);

	return c && c->asked && now - c->asked < FLOW_NS;
}

// findable tells whether the pod may ask who has an address: an allowed destination at any time, the node or gateway
// after the node has come to ask or if something lies behind it.
static __always_inline bool findable(__u64 id, struct lock *lock, const __u8 *address, __u64 now)
{
	if (allowed_to(id, address))
		return true;
	return is_address(id, ROLE_NODE, address) && ((lock->flags & FLAG_ALLOW_LIST) || asked(id, now));
}

// arp lets the pod find the node and be found by it, and nothing else: a frame of exactly the kernel's size, in
// the pod's own name, to everybody or to the node. No byte of it is the pod's to choose.
static __always_inline bool arp(struct __sk_buff *skb, __u64 id, struct hold *hold, struct lock *lock, __u64 now)
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
		if (h[6 + i] != h[22 + i] || h[6 + i] != hold->mac[i])
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
	if (request && !findable(id, lock, address, now))
		return false;
	if (request && broadcast)
		return true;
	if (!request && !is_address(id, ROLE_NODE, address) && !allowed_to(id, address))
		return false;
	return is_node_mac(id, h) || !(lock->flags & FLAG_BY_NODE);
}

// Neighbor discovery, RFC 4861: the fixed sizes and values of what a kernel sends.
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_HOP_LIMIT 255
#define ND_OPTION_SOURCE 1
#define ND_OPTION_TARGET 2
#define ND_SOLICITED 0x40
#define ND_FREE_FLAGS 0xa0 // router, override
#define ND_BARE 24         // bytes without an option
#define ND_LONG 32         // bytes with one link-layer address
#define ND_FRAME(bytes) (14 + 40 + (bytes))

// sum_is_right checks the checksum of an ICMPv6 message: else it were two bytes for the pod to choose.
static __always_inline bool sum_is_right(__be32 *addresses, __be32 *message, __u32 bytes)
{
	__s64 partial = bpf_csum_diff(NULL, 0, addresses, 32, 0);
	__u64 sum;

	if (bytes == ND_LONG)
		partial = bpf_csum_diff(NULL, 0, message, ND_LONG, (__wsum)partial);
	else
		partial = bpf_csum_diff(NULL, 0, message, ND_BARE, (__wsum)partial);
	if (partial < 0)
		return false;
	sum = (__u64)(__u32)partial + bpf_htonl(bytes) + bpf_htonl(PROTO_ICMPV6);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

// neighbor does for IPv6 what arp does: a solicitation of the node's address or an advertisement to the node, in the
// pod's own name, exactly as a kernel writes it.
static __always_inline bool neighbor(struct __sk_buff *skb, __u64 id, struct hold *hold, struct lock *lock, __u64 now)
{
	__u8 eth[12], *ip, *nd, *to, *target;
	__be32 ip_words[10], nd_words[8] = {};
	bool multicast = true;
	__u32 bytes;
	int i;

	if (skb->len == ND_FRAME(ND_LONG))
		bytes = ND_LONG;
	else if (skb->len == ND_FRAME(ND_BARE))
		bytes = ND_BARE;
	else
		return false;
	if (bpf_skb_load_bytes(skb, 0, eth, sizeof(eth)) || bpf_skb_load_bytes(skb, 14, ip_words, sizeof(ip_words)))
		return false;
	if (bytes == ND_LONG ? bpf_skb_load_bytes(skb, 54, nd_words, ND_LONG) : bpf_skb_load_bytes(skb, 54, nd_words, ND_BARE))
		return false;
	ip = (__u8 *)ip_words;
	nd = (__u8 *)nd_words;
	to = ip + 24;
	target = nd + 8;
	// No traffic class, no flow label, no other length.
	if (ip_words[0] != bpf_htonl(0x60000000) || ip_words[1] != bpf_htonl(bytes << 16 | PROTO_ICMPV6 << 8 | ND_HOP_LIMIT))
		return false;
	if (nd[1] != 0 || nd[5] != 0 || nd[6] != 0 || nd[7] != 0)
		return false;
	for (i = 0; i < 6; i++) {
		if (eth[6 + i] != hold->mac[i] || (bytes == ND_LONG && nd[26 + i] != hold->mac[i]))
			return false;
	}
	if (!is_address(id, ROLE_POD, ip + 8) || !sum_is_right(ip_words + 2, nd_words, bytes))
		return false;
	if (nd[0] == ND_ADVERTISEMENT) {
		if ((nd[4] & ~ND_FREE_FLAGS) != ND_SOLICITED || !is_address(id, ROLE_POD, target))
			return false;
		if (bytes == ND_LONG && (nd[24] != ND_OPTION_TARGET || nd[25] != 1))
			return false;
		if (!is_address(id, ROLE_NODE, to) && !allowed_to(id, to))
			return false;
		return is_node_mac(id, eth) || !(lock->flags & FLAG_BY_NODE);
	}
	if (nd[0] != ND_SOLICITATION || nd[4] != 0 || bytes != ND_LONG || nd[24] != ND_OPTION_SOURCE || nd[25] != 1)
		return false;
	if (!findable(id, lock, target, now))
		return false;
	// To the target's solicited-node group (ff02::1:ff00:0/104 and the frame that goes with it), or to the target itself.
	if (eth[0] != 0x33 || eth[1] != 0x33 || eth[2] != 0xff || ip_words[6] != bpf_htonl(0xff020000) || ip_words[7] != 0 ||
	    ip_words[8] != bpf_htonl(1) || to[12] != 0xff)
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
	return is_node_mac(id, eth) || !(lock->flags & FLAG_BY_NODE);
}

// The node's end of a connection, as its own network sees it: from the pod, to the node.
static __always_inline __u32 tuple_of(struct bpf_sock_tuple *t, const __u8 *pod, __u16 pod_port, const __u8 *node, __u16 node_port)
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

// node_state is the state of the socket that the host's network namespace has for exactly this connection; 0 if there is
// none. A listener that would accept the packet is no such socket.
static __always_inline __u32 node_state(struct __sk_buff *skb, const __u8 *pod, __u16 pod_port, const __u8 *node, __u16 node_port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 state;

	if (tuple_of(&tuple, pod, pod_port, node, node_port) == sizeof(tuple.ipv4))
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state == BPF_TCP_LISTEN || state == BPF_TCP_NEW_SYN_RECV ? 0 : state;
}

// answers decides whether a frame is an answer to the kubelet: it goes to the node by its MAC too, the node still has
// the socket, and the connection has not used up this second's bytes.
static __always_inline bool answers(struct __sk_buff *skb, __u64 id, const struct packet *p, const __u8 *to, __u64 now)
{
	struct flow_value *flow = flow_of(id, p, now);

	if (!flow || !is_node_mac(id, to))
		return false;
	if (!node_state(skb, p->from, p->from_port, p->to, p->to_port))
		return false;
	if (now - flow->second >= SECOND_NS) {
		flow->second = now;
		flow->bytes = 0;
	}
	if (flow->bytes >= FLOW_BYTES)
		return false;
	__sync_fetch_and_add(&flow->bytes, skb->len);
	return true;
}

// lock_wire_in sees what a pod sends, on ingress of its host-side veth.
SEC("tcx/ingress")
int lock_wire_in(struct __sk_buff *skb)
{
	struct hold_key key = {.id = skb->ifindex, .kind = HOLD_WIRE};
	__u64 now = bpf_ktime_get_boot_ns(), id;
	struct hold *hold = bpf_map_lookup_elem(&holds, &key);
	struct packet p;
	struct lock *lock;
	__u16 ethertype;
	__u8 eth[14];

	if (!hold)
		return TCX_NEXT;
	id = hold->lock;
	lock = bpf_map_lookup_elem(&locks, &id);
	if (!lock || now >= lock->expiry)
		return TCX_NEXT;
	if (skb->vlan_present || bpf_skb_load_bytes(skb, 0, eth, sizeof(eth))) {
		denied(id, DENIED_OTHER);
		return TCX_DROP;
	}
	ethertype = eth[12] << 8 | eth[13];
	if (ethertype == ETH_P_ARP) {
		if (arp(skb, id, hold, lock, now))
			return TCX_NEXT;
		denied(id, DENIED_ARP);
		return TCX_DROP;
	}
	if (!parse(skb, 14, ethertype, &p)) {
		denied(id, DENIED_OTHER);
		return TCX_DROP;
	}
	if (ethertype == ETH_P_IPV6 && p.protocol == PROTO_ICMPV6 && neighbor(skb, id, hold, lock, now))
		return TCX_NEXT;
	if (allowed(id, &p) && (!(lock->flags & FLAG_BY_NODE) || is_node_mac(id, eth)))
		return TCX_NEXT;
	if (answers(skb, id, &p, eth, now)) {
		answered(id); // counted here alone: every answer comes by, also a reset by the kernel
		return TCX_NEXT;
	}
	denied(id, kind_of(p.protocol));
	return TCX_DROP;
}

#define SOCK_STREAM 1

// by_kubelet decides whether a packet to the pod was sent by a socket of the kubelet's. A socket's cgroup is that of the
// process that made it, a namespace's uid is the host's where the namespace is.
static __always_inline bool by_kubelet(struct __sk_buff *skb, struct lock *lock)
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

// lock_wire_out sees what is sent to a pod and notes the connections that the kubelet opens. What is forwarded (other
// machines, also with the node's address put in) has no socket here. Another pod's socket is seen here and may bear the
// node's address (IP_TRANSPARENT), so the host's network namespace must have that connection too.
SEC("tcx/egress")
int lock_wire_out(struct __sk_buff *skb)
{
	struct hold_key key = {.id = skb->ifindex, .kind = HOLD_WIRE};
	__u64 now = bpf_ktime_get_boot_ns(), id;
	struct hold *hold = bpf_map_lookup_elem(&holds, &key);
	struct flow_value fresh = {.seen = now, .second = now}, *known;
	struct flow flow = {};
	struct counts *c;
	struct packet p;
	struct lock *lock;

	if (!hold)
		return TCX_NEXT;
	id = hold->lock;
	lock = bpf_map_lookup_elem(&locks, &id);
	if (!lock || now >= lock->expiry)
		return TCX_NEXT;
	if (!parse(skb, 14, bpf_ntohs(skb->protocol), &p) || p.protocol != PROTO_TCP || !p.ports)
		return TCX_NEXT;
	flow.lock = id;
	__builtin_memcpy(flow.node, p.from, 16);
	__builtin_memcpy(flow.pod, p.to, 16);
	flow.node_port = p.from_port;
	flow.pod_port = p.to_port;
	known = bpf_map_lookup_elem(&flows, &flow);
	if ((p.tcp_flags & (TH_SYN | TH_ACK)) != TH_SYN) {
		// What the kernel sends without a socket, such as a reset, keeps nothing open.
		if (known && by_kubelet(skb, lock))
			known->seen = now;
		return TCX_NEXT;
	}
	if (node_state(skb, p.to, p.to_port, p.from, p.from_port) != BPF_TCP_SYN_SENT || !is_address(id, ROLE_NODE, p.from))
		return TCX_NEXT;
	if (!by_kubelet(skb, lock)) {
		// The port is somebody else's now.
		if (known && skb->sk && !skb->ingress_ifindex)
			bpf_map_delete_elem(&flows, &flow);
		return TCX_NEXT;
	}
	bpf_map_update_elem(&flows, &flow, &fresh, BPF_ANY);
	c = bpf_map_lookup_elem(&counts, &id);
	if (c)
		c->asked = now;
	return TCX_NEXT;
}
