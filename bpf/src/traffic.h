// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The names that containers ask for over UDP, and bursts of new processes.
#pragma once

#include "describe.h"

struct question {
	__u64 cgroup;
	__u64 hash;
};

// Names asked for lately: a name is reported once a minute for each container.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct question);
	__type(value, __u64);
} questions SEC(".maps");

#define ASK_AGAIN 60000000000ULL
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
	struct question q = {};
	struct hasher h;
	struct event *e;
	__u8 head[8] = {}, version = 0, proto = 0, flags = 0;
	__u32 off, len;
	__u64 *last, now;
	struct bpf_sock *sk = skb->sk;

	// Most packets are TCP's: this is all that they pay.
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
	if (!q.cgroup || !watched(q.cgroup))
		return 1;
	off += 8;
	if (bpf_skb_load_bytes(skb, off + 2, &flags, 1) || flags & 0x80)
		return 1; // an answer
	off += DNS_HEAD;
	if (skb->len <= off)
		return 1;
	len = skb->len - off;
	if (len > DNS_NAME)
		len = DNS_NAME;
	e = take(KIND_DNS, q.cgroup);
	if (!e)
		return 1;
	__builtin_memset(e->data, 0, DNS_NAME);
	if (len == 0 || len > DNS_NAME || bpf_skb_load_bytes(skb, off, e->data, len))
		goto out;
	h = (struct hasher){.e = e, .hash = 0xcbf29ce484222325ULL};
	bpf_loop(DNS_NAME / 8, hash_word, &h, 0);
	q.hash = h.hash;
	now = e->time;
	last = bpf_map_lookup_elem(&questions, &q);
	if (last && now - *last < ASK_AGAIN)
		goto out;
	bpf_map_update_elem(&questions, &q, &now, BPF_ANY);
	// The sender is the current task unless the packet waited somewhere.
	task = (struct task_struct *)bpf_get_current_task();
	if (cgroup_of(task) == q.cgroup)
		describe(e, task);
	{
		__u64 at = e->used;

		if (at <= DATA_LIMIT - DNS_NAME && len > 0 && len <= DNS_NAME && !bpf_skb_load_bytes(skb, off, &e->data[at], len)) {
			e->file_len = len;
			e->used = at + len;
		}
	}
	emit(&telemetry, DROP_TELEMETRY, e);
out:
	give(e);
	return 1;
}

// So many new processes within the window are a burst. Set before loading.
const volatile __u32 burst_processes = 400;
#define BURST_WINDOW 10000000000ULL

// The window slides by halves: what began in the last half counts with what began in this one.
struct births {
	__u64 half;
	__u64 before;
	__u64 count;
	__u64 told;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct births);
} births SEC(".maps");

// observe_fork counts processes, and sees those that begin in namespaces of their own.
SEC("tp_btf/sched_process_fork")
int BPF_PROG(observe_fork, struct task_struct *parent, struct task_struct *child)
{
	__u64 cgroup = bpf_get_current_cgroup_id(), now, half;
	struct births *b, fresh = {};
	struct event *e;
	__u16 kind = 0;
	__u64 value = 0;

	if (!watched(cgroup))
		return 0;
	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0; // a thread
	now = bpf_ktime_get_boot_ns();
	half = now / (BURST_WINDOW / 2);
	b = bpf_map_lookup_elem(&births, &cgroup);
	if (!b || b->half != half) {
		if (b) {
			fresh.told = b->told;
			if (b->half == half - 1)
				fresh.before = b->count;
		}
		fresh.half = half;
		fresh.count = 1;
		bpf_map_update_elem(&births, &cgroup, &fresh, BPF_ANY);
	} else {
		__sync_fetch_and_add(&b->count, 1);
		if (b->before + b->count >= burst_processes && (!b->told || now - b->told > BURST_WINDOW)) {
			kind = KIND_BURST;
			value = b->before + b->count;
		}
	}
	if (BPF_CORE_READ(child, nsproxy) != BPF_CORE_READ(parent, nsproxy) || BPF_CORE_READ(child, cred, user_ns) != BPF_CORE_READ(parent, cred, user_ns))
		kind = KIND_NAMESPACE; // a burst is told with the next process
	if (!kind)
		return 0;
	e = take(kind, cgroup);
	if (!e)
		return 0;
	if (kind == KIND_BURST)
		b->told = now;
	if (kind == KIND_NAMESPACE)
		e->call = CALL_CLONE;
	e->value = value;
	describe(e, parent);
	emit(&alerts, DROP_ALERTS, e);
	give(e);
	return 0;
}
