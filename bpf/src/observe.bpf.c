// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Observes containers: exec, exit, connect, the opening of sensitive files, and the calls by which they are left. It
// never denies anything.
//
// Every program asks first whose cgroup it runs in and leaves at once if that is the host's. The logic is in static
// functions that work on the current task, so that the raw tracepoint program observe_self can be run by a test
// (BPF_PROG_TEST_RUN) where the real hooks cannot.
#include "describe.h"
#include "calls.h"
#include "traffic.h"

char LICENSE[] SEC("license") = "GPL";

SEC("tp_btf/sched_process_exec")
int BPF_PROG(observe_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct event *e;

	if (!watched(cgroup))
		return 0;
	e = take(KIND_EXEC, cgroup);
	if (!e)
		return 0;
	describe(e, task);
	emit(&alerts, DROP_ALERTS, e);
	give(e);
	return 0;
}

#define CGROUP_PATH 1024

// observe_cgroup tells the path of each new cgroup: a container may be gone, and its cgroup with it, before user space
// looks.
SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(observe_cgroup, struct cgroup *made, const char *path)
{
	struct event *e;
	long n;

	if (BPF_CORE_READ(made, root, hierarchy_id) != 0)
		return 0; // version 1
	e = take(KIND_CGROUP, BPF_CORE_READ(made, kn, id));
	if (!e)
		return 0;
	n = bpf_probe_read_kernel_str(e->data, CGROUP_PATH, path);
	if (n > 1 && n <= CGROUP_PATH) {
		e->file_len = n - 1;
		e->used = n - 1;
		emit(&alerts, DROP_ALERTS, e);
	}
	give(e);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(observe_exit, struct task_struct *task)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct event *e;

	if (!watched(cgroup))
		return 0;
	// Not the leader but the last thread ends a process: a leader may leave before the others.
	if (BPF_CORE_READ(task, signal, live.counter) != 0)
		return 0;
	e = take(KIND_EXIT, cgroup);
	if (!e)
		return 0;
	ids(e, task);
	e->exit_code = BPF_CORE_READ(task, exit_code);
	emit(&telemetry, DROP_TELEMETRY, e);
	give(e);
	return 0;
}

#define SOCK_STREAM 1
#define IPPROTO_TCP 6

static __always_inline void connecting(struct bpf_sock_addr *ctx, bool v6, __u32 a0, __u32 a1, __u32 a2, __u32 a3)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct event *e;
	__u32 *address;

	if (!watched(cgroup))
		return;
	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
		return;
	e = take(KIND_CONNECT, cgroup);
	if (!e)
		return;
	address = (__u32 *)e->address;
	if (v6 && a0 == 0 && a1 == 0 && a2 == bpf_htonl(0xffff)) {
		v6 = false;
		a0 = a3;
	}
	address[0] = a0;
	if (v6) {
		e->flags |= FLAG_IPV6;
		address[1] = a1;
		address[2] = a2;
		address[3] = a3;
	}
	e->port = bpf_ntohs((__u16)ctx->user_port);
	describe(e, (struct task_struct *)bpf_get_current_task());
	emit(&alerts, DROP_ALERTS, e);
	give(e);
}

SEC("cgroup/connect4")
int observe_connect4(struct bpf_sock_addr *ctx)
{
	connecting(ctx, false, ctx->user_ip4, 0, 0, 0);
	return 1;
}

SEC("cgroup/connect6")
int observe_connect6(struct bpf_sock_addr *ctx)
{
	connecting(ctx, true, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	return 1;
}

#define O_TRUNC 01000

static __always_inline bool cutting(__u16 call)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	__u64 flags = 0;

	switch (call) {
	case CALL_OPENAT:
		return ARG2(regs) & O_TRUNC;
	case CALL_OPENAT2:
		bpf_probe_read_user(&flags, sizeof(flags), (void *)ARG2(regs));
		return flags & O_TRUNC;
	case CALL_OPEN:
		return ARG1(regs) & O_TRUNC;
	case CALL_CREAT:
		return true;
	}
	return false;
}

// opened looks at a descriptor that an open call has just returned: the file behind it cannot be another one than was
// opened, as the caller's string could.
static __always_inline void opened(__s64 fd, __u16 call)
{
	__u64 cgroup;
	struct task_struct *task;
	struct file *file;
	struct dentry *dentry;
	struct place at, root;
	struct event *e;
	__u16 kind = KIND_OPEN;
	__u32 class, mode;
	bool write;

	if (fd < 0)
		return;
	cgroup = bpf_get_current_cgroup_id();
	if (!watched(cgroup))
		return;
	task = (struct task_struct *)bpf_get_current_task();
	file = file_of(task, fd);
	if (!file)
		return;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	class = class_of(dentry);
	if (!class)
		return;
	mode = BPF_CORE_READ(file, f_flags) & O_ACCMODE;
	write = mode != 0;
	if (!(class & (mode == 0 ? ON_READ : mode == 1 ? ON_WRITE : ON_READ | ON_WRITE))) {
		// A file that is cut when it is opened, as `> /var/log/auth.log` does. The flag is only in the call.
		if (!write || !(class & ON_TRUNCATE) || !cutting(call))
			return;
		kind = KIND_DELETE;
	}
	e = take(kind, cgroup);
	if (!e)
		return;
	e->call = call;
	if (write)
		e->flags |= FLAG_WRITE;
	at = (struct place){dentry, BPF_CORE_READ(file, f_path.mnt)};
	root = (struct place){BPF_CORE_READ(task, fs, root.dentry), BPF_CORE_READ(task, fs, root.mnt)};
	describe(e, task);
	e->file_len = walk(e, &at, &root);
	emit(&alerts, DROP_ALERTS, e);
	give(e);
}

// Why these: on kernels without fentry, kprobes and LSM, the return of the open calls is the only place where the
// opened file can be seen. Tracepoints of single calls tax other calls less (a third more on getppid) than
// sys_enter/sys_exit in tp_btf (two thirds to twice). io_uring passes them by: see observe_uring.
SEC("tracepoint/syscalls/sys_exit_openat")
int observe_openat(struct sys_exit_args *ctx)
{
	opened(ctx->ret, CALL_OPENAT);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_openat2")
int observe_openat2(struct sys_exit_args *ctx)
{
	opened(ctx->ret, CALL_OPENAT2);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_open")
int observe_open(struct sys_exit_args *ctx)
{
	opened(ctx->ret, CALL_OPEN);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_creat")
int observe_creat(struct sys_exit_args *ctx)
{
	opened(ctx->ret, CALL_CREAT);
	return 0;
}

// observe_self describes whoever runs it. Only tests do: BPF_PROG_TEST_RUN reaches raw tracepoints, not tp_btf.
SEC("raw_tp/sys_exit")
int observe_self(void *ctx)
{
	struct event *e = take(KIND_EXEC, bpf_get_current_cgroup_id());

	if (!e)
		return 0;
	describe(e, (struct task_struct *)bpf_get_current_task());
	emit(&alerts, DROP_ALERTS, e);
	give(e);
	return 0;
}
