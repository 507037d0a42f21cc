// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// How the path of an opened file is found: by what was opened, from its name up to the root.
#pragma once

#include "kernel.h"
#include "event.h"

struct place {
	struct dentry *dentry;
	struct vfsmount *mnt;
};

struct walker {
	struct event *e;
	struct place at;
	struct place root;
	bool done;
};

static long step(__u64 i, struct walker *w)
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
		// A root of its own: a memfd has its name here, a tree of mounts has "/".
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

// walk appends the names from a path up to root to the event's data, leaf first, and returns how many bytes that took. It
// goes by dentries and mounts, so what it finds is what was opened and not what a caller's string said. The
// number of bytes in use lies in the event and not on the stack: the verifier would follow each of its values.
static __noinline __u32 walk(struct event *e, struct place *from, struct place *root)
{
	struct walker w = {.e = e, .at = *from, .root = *root};
	__u32 start = e->used;

	bpf_loop(MAX_COMPONENTS, step, &w, 0);
	if (!w.done)
		e->flags |= FLAG_EXE_TRUNCATED;
	return e->used - start;
}
