package agent

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// EnterNodeCgroupNamespace makes this process a process in the cgroup namespace of the node's first process, by
// executing the program again: a program with several threads cannot change its namespace otherwise. It returns if
// there is nothing to enter, or with an error. Call it before anything is opened.
//
// On nodes with cgroup v2, a container that is not privileged has a cgroup namespace of its own. From there the kernel
// starts no process in a cgroup outside (mount option nsdelegate), such as the heartbeat's and the thawer's, and /proc
// shows the cgroups of other processes relative to the container's.
func EnterNodeCgroupNamespace() error {
	node, err := os.Open("/proc/1/ns/cgroup")
	if err != nil {
		return nil // a machine that protects its first process; CheckCapabilities reports other causes
	}
	defer node.Close()
	var theirs, own unix.Stat_t
	if err := unix.Fstat(int(node.Fd()), &theirs); err != nil {
		return fmt.Errorf("read the node's cgroup namespace: %w", err)
	}
	if err := unix.Stat("/proc/self/ns/cgroup", &own); err != nil {
		return fmt.Errorf("read this process's cgroup namespace: %w", err)
	}
	if theirs.Ino == own.Ino {
		return nil
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(node.Fd()), unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("enter the node's cgroup namespace: %w", err)
	}
	return fmt.Errorf("execute the sensor in the node's cgroup namespace: %w",
		syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}
