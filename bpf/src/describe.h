// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The maps, and what every program needs: the state of a cgroup, an event buffer, and the description of a task.
#pragma once

#include "kernel.h"
#include "event.h"
#include "paths.h"

// Set before loading. Unknown cgroups are observed unless this is set: a container that lives for 50 ms must not be
// missed because user space has not registered it yet.
const volatile bool ignore_unknown = false;

#define WATCH 1
#define IGNORE 2

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u8);
} cgroups SEC(".maps");

// Base names that may be sensitive, zero-padded. The value is the class and ON_* bits that user space set.
#define SENSITIVE_NAME 48
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, char[SENSITIVE_NAME]);
	__type(value, __u32);
} sensitive SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} alerts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} telemetry SEC(".maps");

#define DROP_ALERTS 0
#define DROP_TELEMETRY 1
#define DROP_SCRATCH 2
#define DROP_REASONS 3
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");

// Lost events by cgroup: a container that floods the rings may hide something, and is reported.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} drop_sources SEC(".maps");

// Several buffers per CPU: a program on a cgroup hook may be preempted or interrupted by one on a tracepoint. A program
// never migrates to another CPU.
#define SLOTS 3
struct scratch {
	__u32 busy[SLOTS + 1];
	struct event event[SLOTS];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline void count_drop(__u32 reason, __u64 cgroup)
{
	__u64 *n = bpf_map_lookup_elem(&drops, &reason), one = 1;

	if (n)
		__sync_fetch_and_add(n, 1);
	n = bpf_map_lookup_elem(&drop_sources, &cgroup);
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		bpf_map_update_elem(&drop_sources, &cgroup, &one, BPF_NOEXIST);
}

static __always_inline __u64 cgroup_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

static __always_inline bool is_watched(__u64 cgroup)
{
	__u8 *mode = bpf_map_lookup_elem(&cgroups, &cgroup);

	if (mode)
		return *mode == WATCH;
	return !ignore_unknown;
}

// reserve_event returns a free buffer of this CPU with a zeroed header, or NULL. Every reserved event must be released.
static __always_inline struct event *reserve_event(__u16 kind, __u64 cgroup)
{
	__u32 zero = 0, i;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s)
		return NULL;
	for (i = 0; i < SLOTS; i++) {
		struct event *e = &s->event[i];

		if (__sync_val_compare_and_swap(&s->busy[i], 0, 1))
			continue;
		__builtin_memset(e, 0, EVENT_HEAD);
		e->slot = i;
		e->kind = kind;
		e->cgroup = cgroup;
		e->time = bpf_ktime_get_boot_ns();
		e->cpu = bpf_get_smp_processor_id();
		return e;
	}
	count_drop(DROP_SCRATCH, cgroup);
	return NULL;
}

static __always_inline void release_event(struct event *e)
{
	__u32 zero = 0, slot = e->slot;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (s && slot < SLOTS)
		s->busy[slot] = 0;
}

static __always_inline void submit(void *ring, __u32 reason, struct event *e)
{
	__u64 used = e->used;

	if (used > DATA_SIZE)
		used = DATA_SIZE;
	if (bpf_ringbuf_output(ring, e, EVENT_HEAD + used, 0))
		count_drop(reason, e->cgroup);
}

#define OVERLAYFS_SUPER_MAGIC 0x794c7630

// overlay_flags reports whether a file's content is in an overlay's upper layer. A file that was only copied up (by a
// change of its mode) still has the size and mtime of the lower one.
static __always_inline __u16 overlay_flags(struct inode *inode)
{
	struct dentry *upper, *lower;
	struct inode *lower_inode, *upper_inode;
	struct ovl_inode *oi;
	struct ovl_entry *oe;

	if (BPF_CORE_READ(inode, i_sb, s_magic) != OVERLAYFS_SUPER_MAGIC || !bpf_core_type_exists(struct ovl_inode))
		return 0;
	oi = container_of(inode, struct ovl_inode, vfs_inode);
	upper = BPF_CORE_READ(oi, __upperdentry);
	if (!upper)
		return 0;
	if (!bpf_core_field_exists(oi->oe))
		return FLAG_UPPER;
	oe = BPF_CORE_READ(oi, oe);
	if (!oe || BPF_CORE_READ(oe, __numlower) == 0)
		return FLAG_UPPER;
	if (!bpf_core_field_exists(inode->i_mtime_sec))
		return FLAG_UPPER;
	lower = BPF_CORE_READ(oe, __lowerstack[0].dentry);
	lower_inode = BPF_CORE_READ(lower, d_inode);
	upper_inode = BPF_CORE_READ(upper, d_inode);
	if (BPF_CORE_READ(upper_inode, i_size) == BPF_CORE_READ(lower_inode, i_size) &&
	    BPF_CORE_READ(upper_inode, i_mtime_sec) == BPF_CORE_READ(lower_inode, i_mtime_sec) &&
	    BPF_CORE_READ(upper_inode, i_mtime_nsec) == BPF_CORE_READ(lower_inode, i_mtime_nsec))
		return FLAG_COPY_UP;
	return FLAG_UPPER;
}

#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define AF_UNIX 1

static __always_inline struct file *find_file(struct task_struct *task, __u32 fd)
{
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **slot, *file = NULL;

	if (fd >= BPF_CORE_READ(fdt, max_fds))
		return NULL;
	slot = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slot + fd);
	return file;
}

// stdio_sockets returns a bit for each of the descriptors 0 to 2 that is a socket, except for Unix sockets, which
// runtimes and supervisors use for output.
static __always_inline __u8 stdio_sockets(struct task_struct *task)
{
	__u8 mask = 0;
	__u32 fd;

	for (fd = 0; fd < 3; fd++) {
		struct file *file = find_file(task, fd);
		struct inode *inode;
		struct socket_alloc *sa;

		if (!file)
			continue;
		inode = BPF_CORE_READ(file, f_inode);
		if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK)
			continue;
		sa = container_of(inode, struct socket_alloc, vfs_inode);
		if (BPF_CORE_READ(sa, socket.sk, __sk_common.skc_family) != AF_UNIX)
			mask |= 1 << fd;
	}
	return mask;
}

#define MEMFD_PREFIX 0x3a64666d656dULL // "memfd:"

static __always_inline __u16 unlinked_flags(struct file *file, struct inode *inode)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	__u64 name = 0;

	if (BPF_CORE_READ(dentry, d_parent) == dentry) {
		bpf_probe_read_kernel(&name, 6, BPF_CORE_READ(dentry, d_name.name));
		if (name == MEMFD_PREFIX)
			return FLAG_MEMFD;
	}
	return BPF_CORE_READ(inode, i_nlink) == 0 ? FLAG_DELETED : 0;
}

#define S_ISUID 04000
#define S_ISGID 02000
#define S_IXGRP 00010
// CAP_DAC_OVERRIDE, DAC_READ_SEARCH, NET_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, PERFMON and BPF.
#define STRONG_CAPABILITIES                                                                                            \
	(1ULL << 1 | 1ULL << 2 | 1ULL << 12 | 1ULL << 16 | 1ULL << 17 | 1ULL << 19 | 1ULL << 21 | 1ULL << 38 |         \
	 1ULL << 39)

// exe_is_from_own_mounts reports whether a task's executable is from a mount namespace that its parent does not share.
// That is so for a container's first program, and not for the runtime that sets the container up, whatever their names
// are.
static __always_inline bool exe_is_from_own_mounts(struct task_struct *task, struct task_struct *parent)
{
	struct vfsmount *vfsmnt = BPF_CORE_READ(task, mm, exe_file, f_path.mnt);
	struct mnt_namespace *task_capabilities = BPF_CORE_READ(task, nsproxy, mnt_ns);

	return vfsmnt && task_capabilities && task_capabilities != BPF_CORE_READ(parent, nsproxy, mnt_ns) &&
	       task_capabilities == BPF_CORE_READ(container_of(vfsmnt, struct mount, mnt), mnt_ns);
}

// parent_flags compares a task with its parent: is the parent outside of the container, has the task more privileges?
static __always_inline __u16 parent_flags(struct event *e, struct task_struct *task)
{
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	__u64 group = cgroup_of(parent), task_capabilities = 0, parent_capabilities = 0;
	__u8 *mode = bpf_map_lookup_elem(&cgroups, &group);
	__u16 flags = 0;

	if (mode && *mode == IGNORE)
		flags |= FLAG_PARENT_ON_HOST;
	if (exe_is_from_own_mounts(task, parent))
		flags |= FLAG_OWN_EXE;
	// A process in a new user namespace has every capability, but over nothing outside of it.
	if (BPF_CORE_READ(task, cred, user_ns) != BPF_CORE_READ(parent, cred, user_ns))
		return flags;
	BPF_CORE_READ_INTO(&task_capabilities, task, cred, cap_effective);
	BPF_CORE_READ_INTO(&parent_capabilities, parent, cred, cap_effective);
	if ((e->euid == 0 && BPF_CORE_READ(parent, cred, euid.val) != 0) ||
	    (task_capabilities & ~parent_capabilities & STRONG_CAPABILITIES))
		flags |= FLAG_PRIVILEGES_GAINED;
	return flags;
}

static __always_inline __u32 ns_pid(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, group_leader, thread_pid);
	struct upid *first = __builtin_preserve_access_index(&pid->numbers[0]);
	__u32 level = BPF_CORE_READ(pid, level);

	return BPF_CORE_READ((struct upid *)((void *)first + (__u64)level * bpf_core_type_size(struct upid)), nr);
}

static __always_inline void fill_ids(struct event *e, struct task_struct *task)
{
	e->pid = BPF_CORE_READ(task, tgid);
	e->ppid = BPF_CORE_READ(task, real_parent, tgid);
	e->start = BPF_CORE_READ(task, group_leader, start_boottime);
	e->uid = BPF_CORE_READ(task, cred, uid.val);
	e->euid = BPF_CORE_READ(task, cred, euid.val);
	e->gid = BPF_CORE_READ(task, cred, gid.val);
	BPF_CORE_READ_INTO(&e->capabilities, task, cred, cap_effective);
	BPF_CORE_READ_STR_INTO(&e->comm, task, comm);
}

static __always_inline void fill_ancestors(struct event *e, struct task_struct *task)
{
	int i;

	for (i = 0; i < MAX_ANCESTORS; i++) {
		task = BPF_CORE_READ(task, real_parent);
		e->ancestor[i].pid = BPF_CORE_READ(task, tgid);
		if (e->ancestor[i].pid == 0)
			break;
		BPF_CORE_READ_STR_INTO(&e->ancestor[i].comm, task, group_leader, comm);
		e->ancestors = i + 1;
		if (e->ancestor[i].pid == 1)
			break;
	}
}

// describe_process fills in everything about a process.
static __always_inline void describe_process(struct event *e, struct task_struct *task)
{
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct location root = {BPF_CORE_READ(fs, root.dentry), BPF_CORE_READ(fs, root.mnt)};
	struct location pwd = {BPF_CORE_READ(fs, pwd.dentry), BPF_CORE_READ(fs, pwd.mnt)};
	struct file *file = BPF_CORE_READ(mm, exe_file);
	struct location exe = {BPF_CORE_READ(file, f_path.dentry), BPF_CORE_READ(file, f_path.mnt)};
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	unsigned long arg, args;
	struct tty_struct *tty;
	__u32 mode;
	__u64 off;

	fill_ids(e, task);
	fill_ancestors(e, task);
	e->ns_pid = ns_pid(task);
	e->flags |= parent_flags(e, task);
	mode = BPF_CORE_READ(inode, i_mode);
	if ((mode & S_ISUID) || (mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP))
		e->flags |= FLAG_SETID;
	e->inode = BPF_CORE_READ(inode, i_ino);
	e->device = BPF_CORE_READ(inode, i_sb, s_dev);
	e->flags |= overlay_flags(inode) | unlinked_flags(file, inode);
	e->stdio_sockets = stdio_sockets(task);
	tty = BPF_CORE_READ(task, signal, tty);
	if (tty)
		bpf_probe_read_kernel_str(&e->tty, sizeof(e->tty), __builtin_preserve_access_index(&tty->name));

	e->exe_len = append_path(e, &exe, &root);
	e->cwd_len = append_path(e, &pwd, &root);

	arg = BPF_CORE_READ(mm, arg_start);
	args = BPF_CORE_READ(mm, arg_end) - arg;
	if (args > MAX_ARGS) {
		args = MAX_ARGS;
		e->flags |= FLAG_ARGS_TRUNCATED;
	}
	off = e->used;
	if (off <= DATA_LIMIT && args && !bpf_probe_read_user(&e->data[off], args, (void *)arg)) {
		e->args_len = args;
		e->used = off + args;
	}
}
