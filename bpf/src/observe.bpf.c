// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Observes containers: exec, exit, connect, access to sensitive files, and the system calls of container escapes. It
// never denies anything.
//
// Every program first checks the current cgroup and returns at once if it is the host's. The logic is in static
// functions that work on the current task, so that a test can run the raw tracepoint program observe_self
// (BPF_PROG_TEST_RUN), which is not possible with the real hooks.
#include "describe.h"
#include "calls.h"
#include "traffic.h"

char LICENSE[] SEC("license") = "GPL";

SEC("tp_btf/sched_process_exec")
int BPF_PROG(observe_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct event *e;

	if (!is_watched(cgroup))
		return 0;
	e = reserve_event(KIND_EXEC, cgroup);
	if (!e)
		return 0;
	describe_process(e, task);
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
	return 0;
}

#define CGROUP_PATH 1024

// observe_cgroup reports the path of each new cgroup: a container and its cgroup may be gone before user space can look
// it up.
SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(observe_cgroup, struct cgroup *created, const char *path)
{
	struct event *e;
	long n;

	if (BPF_CORE_READ(created, root, hierarchy_id) != 0)
		return 0; // version 1
	e = reserve_event(KIND_CGROUP, BPF_CORE_READ(created, kn, id));
	if (!e)
		return 0;
	n = bpf_probe_read_kernel_str(e->data, CGROUP_PATH, path);
	if (n > 1 && n <= CGROUP_PATH) {
		e->file_len = n - 1;
		e->used = n - 1;
		submit(&alerts, DROP_ALERTS, e);
	}
	release_event(e);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(observe_exit, struct task_struct *task)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct event *e;

	if (!is_watched(cgroup))
		return 0;
	// A process ends with its last thread, not with its leader, which may exit before the others.
	if (BPF_CORE_READ(task, signal, live.counter) != 0)
		return 0;
	e = reserve_event(KIND_EXIT, cgroup);
	if (!e)
		return 0;
	fill_ids(e, task);
	e->exit_code = BPF_CORE_READ(task, exit_code);
	submit(&telemetry, DROP_TELEMETRY, e);
	release_event(e);
	return 0;
}

#define SOCK_STREAM 1
#define IPPROTO_TCP 6

static __always_inline void submit_connect(struct bpf_sock_addr *ctx, bool v6, __u32 a0, __u32 a1, __u32 a2, __u32 a3)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct event *e;
	__u32 *address;

	if (!is_watched(cgroup))
		return;
	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
		return;
	e = reserve_event(KIND_CONNECT, cgroup);
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
	describe_process(e, (struct task_struct *)bpf_get_current_task());
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
}

SEC("cgroup/connect4")
int observe_connect4(struct bpf_sock_addr *ctx)
{
	submit_connect(ctx, false, ctx->user_ip4, 0, 0, 0);
	return 1;
}

SEC("cgroup/connect6")
int observe_connect6(struct bpf_sock_addr *ctx)
{
	submit_connect(ctx, true, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	return 1;
}

#define O_TRUNC 01000

static __always_inline bool truncates_file(__u16 call)
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

// submit_open checks the descriptor that an open call has just returned: it is the file that was opened, whereas the
// caller's string may name another one by now.
static __always_inline void submit_open(__s64 fd, __u16 call)
{
	__u64 cgroup;
	struct task_struct *task;
	struct file *file;
	struct dentry *dentry;
	struct location at, root;
	struct event *e;
	__u16 kind = KIND_OPEN;
	__u32 class, mode;
	bool write;

	if (fd < 0)
		return;
	cgroup = bpf_get_current_cgroup_id();
	if (!is_watched(cgroup))
		return;
	task = (struct task_struct *)bpf_get_current_task();
	file = find_file(task, fd);
	if (!file)
		return;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	class = file_class(dentry);
	if (!class)
		return;
	mode = BPF_CORE_READ(file, f_flags) & O_ACCMODE;
	write = mode != 0;
	if (!(class & (mode == 0 ? ON_READ : mode == 1 ? ON_WRITE : ON_READ | ON_WRITE))) {
		// A file that is truncated by being opened, as `> /var/log/auth.log` does. Only the call's arguments
		// show that.
		if (!write || !(class & ON_TRUNCATE) || !truncates_file(call))
			return;
		kind = KIND_DELETE;
	}
	e = reserve_event(kind, cgroup);
	if (!e)
		return;
	e->call = call;
	if (write)
		e->flags |= FLAG_WRITE;
	at = (struct location){dentry, BPF_CORE_READ(file, f_path.mnt)};
	root = (struct location){BPF_CORE_READ(task, fs, root.dentry), BPF_CORE_READ(task, fs, root.mnt)};
	describe_process(e, task);
	e->file_len = append_path(e, &at, &root);
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
}

// Why these hooks: on kernels without fentry, kprobes and LSM, only the return of the open calls shows the opened file.
// Tracepoints of single calls slow other calls down less (getppid by a third) than tp_btf on sys_enter and sys_exit (by
// two thirds to twice). io_uring bypasses them: see observe_uring.
SEC("tracepoint/syscalls/sys_exit_openat")
int observe_openat(struct sys_exit_args *ctx)
{
	submit_open(ctx->ret, CALL_OPENAT);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_openat2")
int observe_openat2(struct sys_exit_args *ctx)
{
	submit_open(ctx->ret, CALL_OPENAT2);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_open")
int observe_open(struct sys_exit_args *ctx)
{
	submit_open(ctx->ret, CALL_OPEN);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_creat")
int observe_creat(struct sys_exit_args *ctx)
{
	submit_open(ctx->ret, CALL_CREAT);
	return 0;
}

// observe_self reports the process that runs it. Only tests use it: BPF_PROG_TEST_RUN supports raw tracepoints, not
// tp_btf.
SEC("raw_tp/sys_exit")
int observe_self(void *ctx)
{
	struct event *e = reserve_event(KIND_EXEC, bpf_get_current_cgroup_id());

	if (!e)
		return 0;
	describe_process(e, (struct task_struct *)bpf_get_current_task());
	submit(&alerts, DROP_ALERTS, e);
	release_event(e);
	return 0;
}
