// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The egress lock: nothing leaves a held pod but answers to connections that this node itself opened to it.
//
// lock_egress holds every socket below a held cgroup, whatever network namespace it is in. What has no such socket
// (packet sockets, the kernel's own resets and ARP) is held at the pod's host-side veth: what the pod sends arrives there
// on tcx ingress. What the node sends to the pod leaves there on tcx egress, where its connections are noted.
// Every decision asks for the end first: a lock lapses by itself, whoever has died.
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

#define TCX_NEXT (-1) // younger than the headers of some distributions
#define TCX_DROP 2

#define FLAG_HOST_NETWORK 1 // loopback is the node's: denied too
#define FLAG_ALLOW_LIST 2   // there are allowed destinations: the pod may look for its gateway

struct lock {
	__u64 expiry; // CLOCK_BOOTTIME
	__u32 flags;
	__u32 reserved;
	char lease[160];
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

struct flow {
	__u64 lock;
	__u8 node[16];
	__u8 pod[16];
	__u16 node_port; // network byte order
	__u16 pod_port;
	__u32 reserved;
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
	__type(value, __u64);
} flows SEC(".maps");

// The latest end of all locks, so that a host without one pays for a single look.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} latest SEC(".maps");

#define FLOW_NS (60ULL * 1000000000)

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

		if (bpf_skb_load_bytes(skb, at, h, sizeof(h)) || (h[0] >> 4) != 4)
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

// answers tells whether a packet belongs to a connection that the node opened to the pod. A packet that opens one
// itself never does.
static __always_inline bool answers(__u64 lock, const struct packet *p, __u64 now)
{
	struct flow key = {.lock = lock, .node_port = p->to_port, .pod_port = p->from_port};
	__u64 *seen;

	if (!p->ports || p->protocol != PROTO_TCP || (p->tcp_flags & (TH_SYN | TH_ACK)) == TH_SYN)
		return false;
	__builtin_memcpy(key.node, p->to, 16);
	__builtin_memcpy(key.pod, p->from, 16);
	seen = bpf_map_lookup_elem(&flows, &key);
	return seen && now - *seen < FLOW_NS;
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

// passes decides about one IP packet under a lock that is in force.
static __always_inline bool passes(__u64 lock, const struct packet *p, __u64 now)
{
	if (allowed(lock, p))
		return true;
	if (answers(lock, p, now))
		return true;
	denied(lock, kind_of(p->protocol));
	return false;
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
		if (!passes(id, &p, now))
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
// the pod's own name.
static __always_inline bool arp(struct __sk_buff *skb, __u64 id, struct hold *hold, struct lock *lock, __u64 now)
{
	__u8 h[42], address[16];
	__u32 v4;
	int i;

	if (skb->len != 42 || bpf_skb_load_bytes(skb, 0, h, sizeof(h)))
		return false;
	if (h[14] != 0 || h[15] != 1 || h[16] != 8 || h[17] != 0 || h[18] != 6 || h[19] != 4 || h[20] != 0)
		return false;
	for (i = 0; i < 6; i++) {
		if (h[6 + i] != h[22 + i] || h[6 + i] != hold->mac[i])
			return false;
		if (h[21] == 1 ? h[32 + i] != 0 : h[i] != h[32 + i])
			return false;
	}
	if (h[21] != 1 && h[21] != 2)
		return false;
	__builtin_memcpy(&v4, h + 28, 4);
	map_v4(address, v4);
	if (!is_address(id, ROLE_POD, address))
		return false;
	__builtin_memcpy(&v4, h + 38, 4);
	map_v4(address, v4);
	if (h[21] == 1)
		return findable(id, lock, address, now);
	return is_address(id, ROLE_NODE, address) || allowed_to(id, address);
}

// neighbour does for IPv6 what arp does: solicitations of and advertisements to the node, of the kernel's size.
static __always_inline bool neighbour(struct __sk_buff *skb, __u64 id, const struct packet *p, struct lock *lock, __u64 now)
{
	__u8 type, target[16];

	if (p->protocol != PROTO_ICMPV6 || skb->len > 86)
		return false;
	if (!is_address(id, ROLE_POD, p->from) || bpf_skb_load_bytes(skb, p->at, &type, 1) ||
	    bpf_skb_load_bytes(skb, p->at + 8, target, 16))
		return false;
	if (type == 136)
		return (is_address(id, ROLE_NODE, p->to) || allowed_to(id, p->to)) && is_address(id, ROLE_POD, target);
	return type == 135 && findable(id, lock, target, now);
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

	if (!hold)
		return TCX_NEXT;
	id = hold->lock;
	lock = bpf_map_lookup_elem(&locks, &id);
	if (!lock || now >= lock->expiry)
		return TCX_NEXT;
	if (skb->vlan_present || bpf_skb_load_bytes(skb, 12, &ethertype, 2)) {
		denied(id, DENIED_OTHER);
		return TCX_DROP;
	}
	ethertype = bpf_ntohs(ethertype);
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
	if (neighbour(skb, id, &p, lock, now))
		return TCX_NEXT;
	if (!passes(id, &p, now))
		return TCX_DROP;
	if (p.protocol == PROTO_TCP && answers(id, &p, now))
		answered(id); // counted here alone: every answer comes by, also a reset by the kernel
	return TCX_NEXT;
}

#define SOCK_STREAM 1

// lock_wire_out sees what is sent to a pod and notes the connections that the node's own processes open. What is
// forwarded (other machines, also with the node's address put in) has no socket here; another pod's has not the node's address.
SEC("tcx/egress")
int lock_wire_out(struct __sk_buff *skb)
{
	struct hold_key key = {.id = skb->ifindex, .kind = HOLD_WIRE};
	__u64 now = bpf_ktime_get_boot_ns(), id;
	struct hold *hold = bpf_map_lookup_elem(&holds, &key);
	struct flow flow = {};
	struct counts *c;
	struct packet p;
	struct lock *lock;
	struct bpf_sock *sk;

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
	if ((p.tcp_flags & (TH_SYN | TH_ACK)) != TH_SYN) {
		if (bpf_map_lookup_elem(&flows, &flow))
			bpf_map_update_elem(&flows, &flow, &now, BPF_EXIST);
		return TCX_NEXT;
	}
	sk = skb->sk;
	if (!sk)
		return TCX_NEXT;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SOCK_STREAM || sk->protocol != PROTO_TCP)
		return TCX_NEXT;
	if (!is_address(id, ROLE_NODE, p.from))
		return TCX_NEXT;
	bpf_map_update_elem(&flows, &flow, &now, BPF_ANY);
	c = bpf_map_lookup_elem(&counts, &id);
	if (c)
		c->asked = now;
	return TCX_NEXT;
}
