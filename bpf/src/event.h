// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What the programs write into the rings. sensors/probe/decode.go reads it; neither trusts the other's lengths.
#pragma once

#define KIND_EXEC 1
#define KIND_EXIT 2
#define KIND_CONNECT 3
#define KIND_OPEN 4

#define FLAG_UPPER (1 << 0)	     // executable in the overlay's upper layer, with content of its own
#define FLAG_MEMFD (1 << 1)	     // executable is a memfd
#define FLAG_DELETED (1 << 2)	     // executable has no name any more
#define FLAG_ARGS_TRUNCATED (1 << 3) // more arguments than were copied
#define FLAG_EXE_TRUNCATED (1 << 4)  // path deeper than was walked
#define FLAG_WRITE (1 << 5)	     // file opened for writing
#define FLAG_IPV6 (1 << 6)	     // address is IPv6
#define FLAG_COPY_UP (1 << 7)	     // in the upper layer with the lower file's size and time: only copied up
#define FLAG_DENIED (1 << 8)	     // an egress lock holds the process

#define MAX_ANCESTORS 8
#define MAX_COMPONENTS 48
#define MAX_NAME 256
#define MAX_ARGS 2048
#define DATA_SIZE 8192
#define DATA_LIMIT (DATA_SIZE - MAX_ARGS)

struct ancestor {
	__u32 pid;
	char comm[16];
};

// struct event is followed by nothing: data[] is cut to the bytes in use. Its parts lie one behind the other in
// the order of the lengths. Paths are lists of names, leaf first, each ended by a zero byte.
struct event {
	__u16 kind;
	__u16 flags;
	__u16 exe_len;
	__u16 cwd_len;
	__u16 args_len;
	__u16 file_len;
	__u8 stdio_sockets;
	__u8 ancestors;
	__u16 port; // host byte order
	__u64 time; // CLOCK_BOOTTIME
	__u64 cgroup;
	__u64 start; // CLOCK_BOOTTIME
	__u64 capabilities;
	__u64 inode;
	__u64 device;
	__u32 pid;
	__u32 ppid;
	__u32 uid;
	__u32 euid;
	__u32 gid;
	__u32 cpu;
	__s32 exit_code;
	__u32 class; // KIND_OPEN: what the base name hinted at
	__u32 used;  // bytes of data in use
	__u32 slot;  // which scratch buffer this is
	__u8 address[16];
	char comm[16];
	char tty[16];
	struct ancestor ancestor[MAX_ANCESTORS];
	char data[DATA_SIZE];
};

#define EVENT_HEAD __builtin_offsetof(struct event, data)
