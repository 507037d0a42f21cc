// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// System calls that in a container only attackers and a few tools make, observed on their return: the result is known,
// and a descriptor or task in the arguments is the one that was used. One program serves all of their tracepoints; user
// space maps syscall numbers to calls.
#pragma once

#include "describe.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} calls SEC(".maps");

#define CLONE_NEW_ANY 0x7e020080ULL // all CLONE_NEW* flags
#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define SOCK_TYPE 0xf
#define SOCK_RAW 3
#define PTRACE_ATTACH 16
#define PTRACE_SEIZE 0x4206
#define PTRACE_POKETEXT 4
#define PTRACE_POKEDATA 5
#define PTRACE_SETREGS 13
#define PTRACE_SETREGSET 0x4205
#define SECURITY_CAPABILITY 0x7974697275636573ULL // "security"

// call_match is an observed call with the arguments that matter.
struct call_match {
	__u16 kind;
	__u64 value;
	__u32 target;
	__s64 fd;         // a descriptor among the call's arguments, or -1
	const char *path; // the caller's string, or NULL
	const char *detail;
	__u32 required;          // the ON_* bits of which the path's base name must have one, or 0
	const char *destination; // the new path of a renamed or linked file, or NULL
	__u16 port;
};

static __always_inline bool is_inet(__u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

static __always_inline struct sock *find_socket(struct task_struct *task, __u32 fd)
{
	struct file *file = find_file(task, fd);
	struct inode *inode;

	if (!file)
		return NULL;
	inode = BPF_CORE_READ(file, f_inode);
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	return BPF_CORE_READ(container_of(inode, struct socket_alloc, vfs_inode), socket.sk);
}

static __always_inline __u32 file_class(struct dentry *dentry)
{
	char name[SENSITIVE_NAME] = {};
	__u32 len = BPF_CORE_READ(dentry, d_name.len), *class;

	if (len == 0 || len >= SENSITIVE_NAME)
		return 0;
	if (bpf_probe_read_kernel(name, len, BPF_CORE_READ(dentry, d_name.name)))
		return 0;
	class = bpf_map_lookup_elem(&sensitive, name);
	return class ? *class : 0;
}

static __always_inline bool is_capability_attribute(const char *user)
{
	char name[24] = {};

	return bpf_probe_read_user_str(name, sizeof(name), user) == 20 && *(__u64 *)name == SECURITY_CAPABILITY &&
	       name[9] == 'c';
}

// match_call reports whether a call is relevant, and fills in f. Most calls are not.
static __always_inline bool match_call(struct call_match *f, __u32 call, struct pt_regs *regs)
{
	__u64 mode = 0;

	switch (call) {
	case CALL_MOUNT:
		f->kind = KIND_MOUNT, f->path = (void *)ARG1(regs), f->detail = (void *)ARG2(regs),
		f->value = ARG3(regs);
		return true;
	case CALL_MOVE_MOUNT:
		f->kind = KIND_MOUNT, f->path = (void *)ARG3(regs);
		return true;
	case CALL_PIVOT_ROOT:
		f->kind = KIND_MOUNT, f->path = (void *)ARG0(regs);
		return true;
	case CALL_FSMOUNT:
		f->kind = KIND_MOUNT;
		return true;
	case CALL_SETNS:
		f->kind = KIND_NAMESPACE, f->value = ARG1(regs), f->fd = ARG0(regs);
		return true;
	case CALL_UNSHARE:
		f->kind = KIND_NAMESPACE, f->value = ARG0(regs);
		return f->value & CLONE_NEW_ANY;
	case CALL_PTRACE:
		f->kind = KIND_TRACE, f->value = ARG0(regs), f->target = ARG1(regs);
		return f->value == PTRACE_ATTACH || f->value == PTRACE_SEIZE || f->value == PTRACE_POKETEXT ||
		       f->value == PTRACE_POKEDATA || f->value == PTRACE_SETREGS || f->value == PTRACE_SETREGSET;
	case CALL_VM_READV:
	case CALL_VM_WRITEV:
		f->kind = KIND_TRACE, f->target = ARG0(regs);
		return true;
	case CALL_CHMOD:
		f->kind = KIND_CHMOD, f->path = (void *)ARG0(regs), f->value = ARG1(regs);
		return f->value & (S_ISUID | S_ISGID);
	case CALL_FCHMOD:
		f->kind = KIND_CHMOD, f->fd = ARG0(regs), f->value = ARG1(regs);
		return f->value & (S_ISUID | S_ISGID);
	case CALL_FCHMODAT:
		f->kind = KIND_CHMOD, f->path = (void *)ARG1(regs), f->value = ARG2(regs);
		return f->value & (S_ISUID | S_ISGID);
	case CALL_SETXATTR:
		f->kind = KIND_CHMOD, f->path = (void *)ARG0(regs), f->detail = (void *)ARG1(regs);
		return is_capability_attribute(f->detail);
	case CALL_FSETXATTR:
		f->kind = KIND_CHMOD, f->fd = ARG0(regs), f->detail = (void *)ARG1(regs);
		return is_capability_attribute(f->detail);
	case CALL_SOCKET:
		f->kind = KIND_RAW_SOCKET, f->value = ARG0(regs), mode = ARG1(regs) & SOCK_TYPE, f->target = mode;
		return f->value == AF_PACKET || (mode == SOCK_RAW && is_inet(f->value));
	case CALL_BPF:
		f->kind = KIND_BPF, f->value = ARG0(regs);
		return true;
	case CALL_URING_SETUP:
		f->kind = KIND_URING, f->value = ARG0(regs);
		return true;
	case CALL_INIT_MODULE:
	case CALL_DELETE_MODULE:
		f->kind = KIND_MODULE;
		return true;
	case CALL_HANDLE:
		// An escape by file handle: only backup programs and attackers use this call.
		f->kind = KIND_MOUNT, f->fd = -1;
		return true;
	case CALL_UNLINK:
		f->kind = KIND_DELETE, f->path = (void *)ARG0(regs), f->required = ON_DELETE;
		return true;
	case CALL_UNLINKAT:
		f->kind = KIND_DELETE, f->path = (void *)ARG1(regs), f->required = ON_DELETE;
		return true;
	case CALL_RENAME:
		f->kind = KIND_DELETE, f->path = (void *)ARG0(regs), f->required = ON_DELETE,
		f->destination = (void *)ARG1(regs);
		return true;
	case CALL_RENAMEAT:
		f->kind = KIND_DELETE, f->path = (void *)ARG1(regs), f->required = ON_DELETE,
		f->destination = (void *)ARG3(regs);
		return true;
	case CALL_LINK:
		// Access under the new name would not be observed.
		f->kind = KIND_OPEN, f->path = (void *)ARG0(regs), f->required = ON_READ | ON_WRITE,
		f->destination = (void *)ARG1(regs);
		return true;
	case CALL_LINKAT:
		f->kind = KIND_OPEN, f->path = (void *)ARG1(regs), f->required = ON_READ | ON_WRITE,
		f->destination = (void *)ARG3(regs);
		return true;
	case CALL_TRUNCATE:
		f->kind = KIND_DELETE, f->path = (void *)ARG0(regs), f->required = ON_TRUNCATE;
		return true;
	}
	return false;
}

struct slash_search {
	struct event *e;
	__u32 start;
	__u32 last;
};

static long find_slash(__u64 i, struct slash_search *s)
{
	__u64 at = s->start + i;
	char c;

	if (at >= DATA_SIZE)
		return 1;
	c = s->e->data[at];
	if (c == '/')
		s->last = at + 1;
	return c == 0;
}

// base_name_class returns the class of the base name of the path at start in the event's data, or 0 if it is not
// sensitive.
static __noinline __u32 base_name_class(struct event *e, __u32 start)
{
	struct slash_search s = {.e = e, .start = start, .last = start};
	char name[SENSITIVE_NAME] = {};
	__u32 *class;
	__u64 at;

	bpf_loop(MAX_NAME, find_slash, &s, 0);
	at = s.last;
	if (at > DATA_LIMIT)
		return 0;
	if (bpf_probe_read_kernel_str(name, sizeof(name), &e->data[at]) < 0)
		return 0;
	class = bpf_map_lookup_elem(&sensitive, name);
	return class ? *class : 0;
}

// append_user_string appends a string of the calling process to the event and returns its length without the
// terminator.
static __always_inline __u32 append_user_string(struct event *e, const char *user)
{
	__u64 off = e->used;
	long n;

	if (!user || off > DATA_LIMIT - MAX_NAME)
		return 0;
	n = bpf_probe_read_user_str(&e->data[off], MAX_NAME, user);
	if (n <= 1 || n > MAX_NAME)
		return 0;
	e->used = off + n - 1;
	return n - 1;
}

static __always_inline void submit_call(struct event *e, struct task_struct *task, struct call_match *f)
{
	struct file *file = f->fd >= 0 ? find_file(task, f->fd) : NULL;

	describe_process(e, task);
	if (file) {
		struct location at = {BPF_CORE_READ(file, f_path.dentry), BPF_CORE_READ(file, f_path.mnt)};
		struct location root = {BPF_CORE_READ(task, fs, root.dentry), BPF_CORE_READ(task, fs, root.mnt)};

		e->file_len = append_path(e, &at, &root);
	} else if (f->path) {
		e->flags |= FLAG_PATH_UNRESOLVED;
		e->file_len = append_user_string(e, f->path);
	}
	e->detail_len = append_user_string(e, f->detail);
	submit(&alerts, DROP_ALERTS, e);
}

SEC("tracepoint/syscalls/sys_exit_call")
int observe_call(struct sys_exit_args *ctx)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct call_match f = {.fd = -1};
	struct task_struct *task;
	struct event *e;
	__u32 nr = ctx->nr, *call;

	if (!is_watched(cgroup))
		return 0;
	call = bpf_map_lookup_elem(&calls, &nr);
	if (!call)
		return 0;
	task = (struct task_struct *)bpf_get_current_task_btf();
	if (!match_call(&f, *call, (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf())))
		return 0;
	if (f.required && ctx->ret < 0)
		return 0; // nothing changed
	e = reserve_event(f.kind, cgroup);
	if (!e)
		return 0;
	if (f.destination && append_user_string(e, f.destination) && (base_name_class(e, 0) & ON_WRITE)) {
		// The sensitive file was replaced by a rename or link instead of being written.
		e->kind = KIND_OPEN;
		e->flags |= FLAG_WRITE;
		f.path = f.destination;
		f.required = 0;
	}
	e->used = 0;
	if (f.required) {
		if (!append_user_string(e, f.path) || !(base_name_class(e, 0) & f.required)) {
			release_event(e);
			return 0;
		}
		e->used = 0;
	}
	e->call = *call;
	e->value = f.value;
	e->target = f.target;
	if (ctx->ret < 0)
		e->flags |= FLAG_FAILED;
	submit_call(e, task, &f);
	release_event(e);
	return 0;
}

// observe_listen reports that a socket starts to listen.
SEC("tracepoint/syscalls/sys_exit_listen")
int observe_listen(struct sys_exit_args *ctx)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct task_struct *task;
	struct event *e;
	struct sock *sk;
	__u16 family;

	if (ctx->ret < 0 || !is_watched(cgroup))
		return 0;
	task = (struct task_struct *)bpf_get_current_task_btf();
	sk = find_socket(task, ARG0((struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf())));
	if (!sk)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (!is_inet(family))
		return 0;
	e = reserve_event(KIND_LISTEN, cgroup);
	if (!e)
		return 0;
	if (family == AF_INET6)
		e->flags |= FLAG_IPV6;
	e->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	describe_process(e, task);
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
	return 0;
}

// observe_unix reports connections to Unix sockets with a sensitive name. It uses the path of the connected socket, so
// that neither a link nor a mount under another name hides it.
SEC("tracepoint/syscalls/sys_exit_connect")
int observe_unix(struct sys_exit_args *ctx)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct task_struct *task;
	struct dentry *dentry;
	struct sock *sk, *peer;
	struct location at, root;
	struct event *e;

	if (ctx->ret < 0 || !is_watched(cgroup))
		return 0;
	task = (struct task_struct *)bpf_get_current_task_btf();
	sk = find_socket(task, ARG0((struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf())));
	if (!sk || BPF_CORE_READ(sk, __sk_common.skc_family) != AF_UNIX)
		return 0;
	peer = BPF_CORE_READ((struct unix_sock *)sk, peer);
	if (!peer)
		return 0;
	dentry = BPF_CORE_READ((struct unix_sock *)peer, path.dentry);
	if (!dentry || !(file_class(dentry) & ON_CONNECT))
		return 0;
	e = reserve_event(KIND_UNIX, cgroup);
	if (!e)
		return 0;
	describe_process(e, task);
	at = (struct location){dentry, BPF_CORE_READ((struct unix_sock *)peer, path.mnt)};
	root = (struct location){BPF_CORE_READ(task, fs, root.dentry), BPF_CORE_READ(task, fs, root.mnt)};
	e->file_len = append_path(e, &at, &root);
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
	return 0;
}

#define IORING_OP_OPENAT 18
#define IORING_OP_OPENAT2 28

// observe_uring reports opens by io_uring, which bypass the system calls. Only the requested path is known at this
// point.
SEC("tp_btf/io_uring_submit_req")
int BPF_PROG(observe_uring, struct io_kiocb *req)
{
	__u64 cgroup = bpf_get_current_cgroup_id(), off;
	struct task_struct *task;
	struct event *e;
	__u8 opcode;
	long n;

	if (!is_watched(cgroup))
		return 0;
	opcode = BPF_CORE_READ(req, opcode);
	if (opcode != IORING_OP_OPENAT && opcode != IORING_OP_OPENAT2)
		return 0;
	e = reserve_event(KIND_OPEN, cgroup);
	if (!e)
		return 0;
	n = bpf_probe_read_kernel_str(e->data, MAX_NAME, BPF_CORE_READ((struct io_open *)req, filename, name));
	if (n <= 1 || n > MAX_NAME || !(base_name_class(e, 0) & (ON_READ | ON_WRITE))) {
		release_event(e);
		return 0;
	}
	e->used = 0;
	e->call = CALL_URING;
	e->flags |= FLAG_PATH_UNRESOLVED;
	if (BPF_CORE_READ((struct io_open *)req, how.flags) & O_ACCMODE)
		e->flags |= FLAG_WRITE;
	task = (struct task_struct *)bpf_get_current_task();
	describe_process(e, task);
	off = e->used;
	if (off <= DATA_LIMIT - MAX_NAME) {
		n = bpf_probe_read_kernel_str(&e->data[off], MAX_NAME,
					      BPF_CORE_READ((struct io_open *)req, filename, name));
		if (n > 1 && n <= MAX_NAME) {
			e->file_len = n - 1;
			e->used = off + n - 1;
		}
	}
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
	return 0;
}
