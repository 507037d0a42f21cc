// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// DNS queries of containers over UDP, and bursts of new processes.
#pragma once

#include "describe.h"

struct dns_query {
	__u64 cgroup;
	__u64 hash;
};

// Recent queries: a name is reported once per minute and container.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct dns_query);
	__type(value, __u64);
} dns_queries SEC(".maps");

#define DNS_REPEAT_NS 60000000000ULL
#define DNS_PORT 53
#define DNS_HEAD 12
#define DNS_NAME 256
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

struct hasher {
	struct event *e;
	__u64 hash;
};

static long hash_word(__u64 i, struct hasher *h)
{
	__u64 at = (i & 31) * 8;

	h->hash = (h->hash ^ *(__u64 *)&h->e->data[at]) * 0x100000001b3ULL;
	return 0;
}

SEC("cgroup_skb/egress")
int observe_dns(struct __sk_buff *skb)
{
	struct task_struct *task;
	struct dns_query q = {};
	struct hasher h;
	struct event *e;
	__u8 head[8] = {}, version = 0, proto = 0, flags = 0;
	__u32 off, len;
	__u64 *last, now;
	struct bpf_sock *sk = skb->sk;

	// Most packets are TCP, for which this is the only cost.
	if (sk && (sk = bpf_sk_fullsock(sk)) && sk->protocol == IPPROTO_TCP)
		return 1;
	if (bpf_skb_load_bytes(skb, 0, &version, 1))
		return 1;
	if (version >> 4 == 4) {
		if (bpf_skb_load_bytes(skb, 9, &proto, 1) || proto != IPPROTO_UDP)
			return 1;
		off = (version & 0xf) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, 6, &proto, 1) || proto != IPPROTO_UDP)
			return 1;
		off = 40;
	}
	if (bpf_skb_load_bytes(skb, off, head, 8) || head[2] != 0 || head[3] != DNS_PORT)
		return 1;
	q.cgroup = bpf_skb_cgroup_id(skb);
	if (!q.cgroup || !is_watched(q.cgroup))
		return 1;
	off += 8;
	if (bpf_skb_load_bytes(skb, off + 2, &flags, 1) || flags & 0x80)
		return 1; // a response
	off += DNS_HEAD;
	if (skb->len <= off)
		return 1;
	len = skb->len - off;
	if (len > DNS_NAME)
		len = DNS_NAME;
	e = reserve_event(KIND_DNS, q.cgroup);
	if (!e)
		return 1;
	__builtin_memset(e->data, 0, DNS_NAME);
	if (len == 0 || len > DNS_NAME || bpf_skb_load_bytes(skb, off, e->data, len))
		goto out;
	h = (struct hasher){.e = e, .hash = 0xcbf29ce484222325ULL};
	bpf_loop(DNS_NAME / 8, hash_word, &h, 0);
	q.hash = h.hash;
	now = e->time;
	last = bpf_map_lookup_elem(&dns_queries, &q);
	if (last && now - *last < DNS_REPEAT_NS)
		goto out;
	bpf_map_update_elem(&dns_queries, &q, &now, BPF_ANY);
	// The sender is the current task unless the packet was queued.
	task = (struct task_struct *)bpf_get_current_task();
	if (cgroup_of(task) == q.cgroup)
		describe_process(e, task);
	{
		__u64 at = e->used;

		if (at <= DATA_LIMIT - DNS_NAME && len > 0 && len <= DNS_NAME &&
		    !bpf_skb_load_bytes(skb, off, &e->data[at], len)) {
			e->file_len = len;
			e->used = at + len;
		}
	}
	submit(&telemetry, DROP_TELEMETRY, e);
out:
	release_event(e);
	return 1;
}

// This number of new processes within the window is a burst. Set before loading.
const volatile __u32 burst_processes = 400;
#define BURST_WINDOW 10000000000ULL

// The window slides by halves: processes of the previous half count together with those of the current one.
struct fork_window {
	__u64 half_window;
	__u64 previous_count;
	__u64 count;
	__u64 reported_at;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct fork_window);
} fork_window SEC(".maps");

// observe_fork counts new processes, and reports those that start in new namespaces.
SEC("tp_btf/sched_process_fork")
int BPF_PROG(observe_fork, struct task_struct *parent, struct task_struct *child)
{
	__u64 cgroup = bpf_get_current_cgroup_id(), now, half_window;
	struct fork_window *b, fresh = {};
	struct event *e;
	__u16 kind = 0;
	__u64 value = 0;

	if (!is_watched(cgroup))
		return 0;
	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0; // a thread
	now = bpf_ktime_get_boot_ns();
	half_window = now / (BURST_WINDOW / 2);
	b = bpf_map_lookup_elem(&fork_window, &cgroup);
	if (!b || b->half_window != half_window) {
		if (b) {
			fresh.reported_at = b->reported_at;
			if (b->half_window == half_window - 1)
				fresh.previous_count = b->count;
		}
		fresh.half_window = half_window;
		fresh.count = 1;
		bpf_map_update_elem(&fork_window, &cgroup, &fresh, BPF_ANY);
	} else {
		__sync_fetch_and_add(&b->count, 1);
		if (b->previous_count + b->count >= burst_processes &&
		    (!b->reported_at || now - b->reported_at > BURST_WINDOW)) {
			kind = KIND_BURST;
			value = b->previous_count + b->count;
		}
	}
	if (BPF_CORE_READ(child, nsproxy) != BPF_CORE_READ(parent, nsproxy) ||
	    BPF_CORE_READ(child, cred, user_ns) != BPF_CORE_READ(parent, cred, user_ns))
		kind = KIND_NAMESPACE; // a burst is reported with the next process
	if (!kind)
		return 0;
	e = reserve_event(kind, cgroup);
	if (!e)
		return 0;
	if (kind == KIND_BURST)
		b->reported_at = now;
	if (kind == KIND_NAMESPACE)
		e->call = CALL_CLONE;
	e->value = value;
	describe_process(e, parent);
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
	return 0;
}
