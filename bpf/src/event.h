// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The format of the ring buffers. sensors/probe/decode.go reads it and validates every length.
#pragma once

#define KIND_EXEC 1
#define KIND_EXIT 2
#define KIND_CONNECT 3
#define KIND_OPEN 4
#define KIND_DELETE 5
#define KIND_CHMOD 6
#define KIND_UNIX 7
#define KIND_LISTEN 8
#define KIND_DNS 9
#define KIND_RAW_SOCKET 10
#define KIND_MOUNT 11
#define KIND_NAMESPACE 12
#define KIND_TRACE 13
#define KIND_BPF 14
#define KIND_URING 15
#define KIND_MODULE 16
#define KIND_BURST 17
#define KIND_CGROUP 18 // a cgroup was created: file is its path

#define FLAG_UPPER (1 << 0)              // executable is in the overlay's upper layer, with content of its own
#define FLAG_MEMFD (1 << 1)              // executable is a memfd
#define FLAG_DELETED (1 << 2)            // executable was unlinked
#define FLAG_ARGS_TRUNCATED (1 << 3)     // the arguments are longer than MAX_ARGS
#define FLAG_EXE_TRUNCATED (1 << 4)      // a path has more than MAX_COMPONENTS names
#define FLAG_WRITE (1 << 5)              // file opened for writing
#define FLAG_IPV6 (1 << 6)               // address is IPv6
#define FLAG_COPY_UP (1 << 7)            // in the upper layer with the lower file's size and mtime: only copied up
#define FLAG_PARENT_ON_HOST (1 << 8)     // the parent is in a cgroup of the host
#define FLAG_SETID (1 << 9)              // executable has a set-uid or set-gid bit
#define FLAG_PRIVILEGES_GAINED (1 << 10) // more privileges than the parent
#define FLAG_PATH_UNRESOLVED (1 << 11)   // the file's path is the caller's string
#define FLAG_FAILED (1 << 12)            // the call failed
#define FLAG_OWN_EXE (1 << 13)           // executable is from mounts of the process that its parent does not share

// The observed calls. The numbers are those of sensors/probe/calls.go.
#define CALL_MOUNT 1
#define CALL_MOVE_MOUNT 2
#define CALL_PIVOT_ROOT 3
#define CALL_FSMOUNT 4
#define CALL_SETNS 5
#define CALL_UNSHARE 6
#define CALL_CLONE 7 // observed as a fork, not as a call
#define CALL_PTRACE 8
#define CALL_VM_READV 9
#define CALL_VM_WRITEV 10
#define CALL_CHMOD 11
#define CALL_FCHMOD 12
#define CALL_FCHMODAT 13
#define CALL_SETXATTR 14
#define CALL_FSETXATTR 15
#define CALL_SOCKET 16
#define CALL_BPF 17
#define CALL_URING_SETUP 18
#define CALL_LISTEN 19
#define CALL_UNLINK 20
#define CALL_UNLINKAT 21
#define CALL_TRUNCATE 22
#define CALL_RENAME 23
#define CALL_RENAMEAT 24
#define CALL_CONNECT 25
#define CALL_INIT_MODULE 26
#define CALL_DELETE_MODULE 27
#define CALL_HANDLE 28 // open_by_handle_at
#define CALL_OPENAT 29
#define CALL_OPENAT2 30
#define CALL_OPEN 31
#define CALL_CREAT 32
#define CALL_URING 33 // an open by io_uring
#define CALL_LINK 34
#define CALL_LINKAT 35

// Which access to a sensitive name is reported: bits above the class in the map `sensitive`.
#define ON_READ (1 << 16)
#define ON_WRITE (1 << 17)
#define ON_TRUNCATE (1 << 18)
#define ON_DELETE (1 << 19)
#define ON_CONNECT (1 << 20)

#define O_ACCMODE 3

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

// struct event is the whole record: data[] is cut to the bytes in use. Its parts follow each other in the order of the
// lengths. Paths are lists of zero-terminated names, leaf first.
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
	__u32 used;   // bytes of data in use
	__u32 slot;   // the index of this scratch buffer
	__u32 target; // the process that a call acted on
	__u64 value;  // a call's flags, mode or command; the number of processes of a burst
	__u32 ns_pid; // in the process's own PID namespace
	__u16 call;   // CALL_*
	__u16 detail_len;
	__u8 address[16];
	char comm[16];
	char tty[16];
	struct ancestor ancestor[MAX_ANCESTORS];
	char data[DATA_SIZE];
};

#define EVENT_HEAD __builtin_offsetof(struct event, data)
