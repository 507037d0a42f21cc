// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Resolves the path of an opened file from its dentry up to the root.
#pragma once

#include "kernel.h"
#include "event.h"

struct location {
	struct dentry *dentry;
	struct vfsmount *mnt;
};

struct path_walk {
	struct event *e;
	struct location at;
	struct location root;
	bool done;
};

static long append_name(__u64 i, struct path_walk *w)
{
	struct dentry *dentry = w->at.dentry, *parent;
	struct vfsmount *vfsmnt = w->at.mnt;
	struct mount *mnt = container_of(vfsmnt, struct mount, mnt), *up;
	__u64 off = w->e->used;
	bool end = false;
	long n;

	if (off > DATA_LIMIT - MAX_NAME)
		return 1;
	if (dentry == w->root.dentry && vfsmnt == w->root.mnt) {
		w->done = true;
		return 1;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	if (dentry == BPF_CORE_READ(vfsmnt, mnt_root) || dentry == parent) {
		up = BPF_CORE_READ(mnt, mnt_parent);
		if (up && up != mnt) {
			w->at.dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
			w->at.mnt = __builtin_preserve_access_index(&up->mnt);
			return 0;
		}
		// A detached root: a memfd has its name here, a detached mount tree has "/".
		end = true;
	}
	n = bpf_probe_read_kernel_str(&w->e->data[off], MAX_NAME, BPF_CORE_READ(dentry, d_name.name));
	if (n <= 0 || n > MAX_NAME)
		return 1;
	if (end) {
		w->done = true;
		if (n > 1 && w->e->data[off] != '/')
			w->e->used = off + n;
		return 1;
	}
	w->e->used = off + n;
	w->at.dentry = parent;
	return 0;
}

// append_path appends the names from a location up to root to the event's data, leaf first, and returns their size in
// bytes. It follows dentries and mounts, so the result is the file that was opened, whatever the caller's string was.
// The number of used bytes is in the event and not on the stack, where the verifier would track each of its values.
static __noinline __u32 append_path(struct event *e, struct location *from, struct location *root)
{
	struct path_walk w = {.e = e, .at = *from, .root = *root};
	__u32 start = e->used;

	bpf_loop(MAX_COMPONENTS, append_name, &w, 0);
	if (!w.done)
		e->flags |= FLAG_EXE_TRUNCATED;
	return e->used - start;
}
