package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runChild runs a command as a child and waits for it, so that the child's parent is this program under its current
// name.
func runChild(args []string) error {
	c := exec.Command(args[0], args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	return c.Run()
}

// runChildWithOpenStdin is runChild for a program that reads its input: the input stays silent for a moment and then
// ends.
func runChildWithOpenStdin(args []string) error {
	c := exec.Command(args[0], args[1:]...)
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	return errors.Join(in.Close(), c.Wait())
}

// execAsUser changes to another user and executes a command.
func execAsUser(args []string) error {
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return errUsage
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return syscall.Exec(args[1], args[1:], os.Environ())
}

// raiseCapabilityAndExec raises a permitted capability, becomes root with it and executes a command. To a sensor the
// privileges appear without a cause, as after a kernel exploit.
func raiseCapabilityAndExec() error {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Permitted: 1 << unix.CAP_SETUID, Effective: 1 << unix.CAP_SETUID}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("take the right: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("become root: %w", errno)
	}
	return syscall.Exec("/bin/true", []string{"true"}, os.Environ())
}

// openListeningPort listens on a port and closes it again.
func openListeningPort(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

// sendDNSQuery sends one query to a DNS server and does not wait for a response.
func sendDNSQuery(name, server string) error {
	c, err := net.Dial("udp", server)
	if err != nil {
		return err
	}
	defer c.Close()
	q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		q = append(append(q, byte(len(label))), label...)
	}
	_, err = c.Write(append(q, 0, 0, 1, 0, 1))
	return err
}

func connectUnixSocket(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	return c.Close()
}

// openAndClose opens and closes a file without reading or writing a byte.
func openAndClose(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return unix.Close(fd)
}

// startPtraceVictim starts a process of this program that waits.
func startPtraceVictim() (pid int, end func(), err error) {
	c := exec.Command("/proc/self/exe", "wait")
	if err := c.Start(); err != nil {
		return 0, nil, err
	}
	return c.Process.Pid, func() { _ = c.Process.Kill(); _ = c.Wait() }, nil
}

func ptraceAttach() error {
	pid, end, err := startPtraceVictim()
	if err != nil {
		return err
	}
	defer end()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

// accessProcessMemory reads or writes eight bytes of a waiting copy of this program.
func accessProcessMemory(write bool) error {
	pid, end, err := startPtraceVictim()
	if err != nil {
		return err
	}
	defer end()
	buffer := make([]byte, 8)
	place := uintptr(unsafe.Pointer(&errUsage))
	mine := []unix.Iovec{{Base: &buffer[0], Len: 8}}
	theirs := []unix.RemoteIovec{{Base: place, Len: 8}}
	if write {
		_, err = unix.ProcessVMWritev(pid, mine, theirs, 0)
	} else {
		_, err = unix.ProcessVMReadv(pid, mine, theirs, 0)
	}
	return err
}

func openSocket(domain, kind, protocol int) error {
	fd, err := unix.Socket(domain, kind, protocol)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// openByHandle calls open_by_handle_at with an invalid handle.
func openByHandle() error {
	_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
	fmt.Println("open_by_handle_at:", err)
	return nil
}

// createBPFMap creates and closes a small map.
func createBPFMap() error {
	attributes := make([]byte, 128)
	for i, n := range []uint32{2, 4, 4, 1} { // an array with one element, with keys and values of four bytes
		binary.NativeEndian.PutUint32(attributes[4*i:], n)
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attributes[0])), uintptr(len(attributes)))
	if errno != 0 {
		fmt.Println("bpf:", errno)
		return nil
	}
	return unix.Close(int(fd))
}

// The parts of an io_uring that one open needs. The offsets are those of the kernel's io_uring.h.
const (
	ioUringEntries  = 4
	ioUringSQEBytes = 64
	ioUringOpOpenat = 18
)

// openWithIOUring sets up an io_uring and, if a file is named, opens the file with it, for writing if another argument
// follows. It makes no system call of the open family.
func openWithIOUring(args []string) error {
	parameters := make([]byte, 120)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ioUringEntries, uintptr(unsafe.Pointer(&parameters[0])), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	defer unix.Close(int(fd))
	if len(args) == 0 {
		return nil
	}
	u32 := func(at int) int { return int(binary.NativeEndian.Uint32(parameters[at:])) }
	tail, array := u32(40+4), u32(40+24) // sq_off.tail, sq_off.array
	ring, err := unix.Mmap(int(fd), 0, array+4*ioUringEntries, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	entries, err := unix.Mmap(int(fd), 0x10000000, ioUringSQEBytes*ioUringEntries, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the entries: %w", err)
	}
	path, err := unix.BytePtrFromString(args[0])
	if err != nil {
		return err
	}
	at := unix.AT_FDCWD
	entries[0] = ioUringOpOpenat
	binary.NativeEndian.PutUint32(entries[4:], uint32(int32(at)))
	binary.NativeEndian.PutUint64(entries[16:], uint64(uintptr(unsafe.Pointer(path))))
	if len(args) > 1 {
		binary.NativeEndian.PutUint32(entries[28:], unix.O_WRONLY)
	}
	binary.NativeEndian.PutUint32(ring[array:], 0)
	binary.NativeEndian.PutUint32(ring[tail:], 1)
	_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, 1, 1, 1 /* get events */, 0, 0)
	runtime.KeepAlive(path)
	if errno != 0 {
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	fmt.Println("opened by io_uring")
	return nil
}

// dropAndRun writes a copy of this program to a path and runs a command with it, as a child.
func dropAndRun(args []string) error {
	if err := writeSelfTo(args[0]); err != nil {
		return err
	}
	return runChild(args)
}

// execRepeatedly executes a program many times, as fast as possible.
func execRepeatedly(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return errUsage
	}
	for range n {
		if err := exec.Command(args[1], args[2:]...).Run(); err != nil {
			return err
		}
	}
	return nil
}

// threads runs a command from a thread that is not the first of its process.
func runFromThread(args []string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		for unix.Gettid() == unix.Getpid() {
			next := make(chan error)
			go func() { runtime.LockOSThread(); next <- runCommand(args[0], args[1:]) }()
			done <- <-next
			return
		}
		done <- runCommand(args[0], args[1:])
	}()
	return <-done
}

// rewrite overwrites this process's command line with a harmless one and runs a command.
func rewriteArgsAndRun(args []string) error {
	raw, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	start, err1 := strconv.ParseUint(fields[45], 10, 64)
	end, err2 := strconv.ParseUint(fields[46], 10, 64)
	if err := errors.Join(err1, err2); err != nil || end <= start || end-start > 1<<16 {
		return fmt.Errorf("find the command line: %w", err)
	}
	memory, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	line := make([]byte, end-start)
	copy(line, "[kworker/0:1]")
	kept := append([]string(nil), args...)
	for i := range kept {
		kept[i] = strings.Clone(kept[i])
	}
	if _, err := memory.WriteAt(line, int64(start)); err != nil {
		return err
	}
	return runCommand(kept[0], kept[1:])
}
