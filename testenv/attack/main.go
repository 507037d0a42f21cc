// Command attack imitates, harmlessly, what attackers do in containers, so that the sensor observes something real. It
// is one static binary for pods and bare containers, and behaves the same under every name, so that an image can
// contain it as /usr/sbin/nginx. Under the name of a tool that is not one of its commands (`nmap 10.0.0.1`) it does
// nothing and succeeds.
//
// It refuses to do harm: it mines nothing and uses at most a twentieth of one CPU, it connects only to the given
// addresses, it reads a token without showing it, and it writes only copies of itself. Every command ends on SIGTERM,
// also as a container's first process.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const usageText = `usage: attack COMMAND
  mine ADDR               becomes "xmrig --url stratum+tcp://ADDR …", speaks to the pool, burns at most 5 % of a CPU
  revshell ADDR           connects and becomes /bin/sh with descriptors 0 to 2 on the socket
  shell [LINE…]           runs /bin/sh on a terminal of its own, types the lines, and stays until the shell ends
  memfd [COMMAND…]        becomes itself from an anonymous memory file, then does COMMAND (default: wait)
  deleted [COMMAND…]      becomes a copy of itself that has no name anymore, then does COMMAND
  drop [COMMAND…]         writes a copy of itself to /tmp/dropped and becomes it, then does COMMAND
  token                   reads the service account's token, tells its length
  shadow                  reads /etc/shadow, tells its length
  metadata [ADDR]         asks the cloud metadata service (default 169.254.169.254:80) for credentials
  connect ADDR            connects once and holds the connection
  beacon KIND ADDR        sends a numbered message every 50 ms for ever; tells what fails and what works again
                          KIND: tcp (one connection), tcp-new (one each), udp, raw, packet, icmp
  spawn COMMAND…          runs a command as its child; spawn-open gives it an input that ends after a moment
  as UID COMMAND…         becomes another user and executes the command
  regain                  takes a right that its file permits, becomes root and executes something
  listen ADDR             opens a port and closes it
  ask NAME SERVER         asks a DNS server (ADDR:PORT) for a name
  unix PATH               connects to a Unix socket
  open PATH | write PATH  opens a file to read or to write, and closes it
  attach | peek | poke    ptrace, process_vm_readv, process_vm_writev on a copy of itself
  packet | raw-ip         opens a socket that sees packets, or makes its own
  handle | bpf            open_by_handle_at, bpf
  uring [PATH [write]]    sets an io_uring up, and opens a file with it
  drop-to PATH [COMMAND…] writes a copy of itself and runs it
  storm N COMMAND…        runs a command N times
  thread COMMAND…         does a command of this list from a thread that is not the first
  rewrite COMMAND…        overwrites its own command line, then does a command of this list
  serve ADDR              answers every HTTP request with "ok"
  wait                    does nothing, well
`

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == minerName { // set by execAsMiner
		exit(mineUntilStopped(args))
	}
	if len(args) == 0 && name == "attack" {
		exit(errUsage)
	}
	if name != "attack" && (len(args) == 0 || !isKnownCommand(args[0])) {
		exit(nil)
	}
	exit(runCommand(args[0], args[1:]))
}

// errUsage makes main print the usage text.
var errUsage = fmt.Errorf("%s", usageText)

func isKnownCommand(command string) bool {
	_, ok := attackCommands()[command]
	return ok
}

type attackCommand struct {
	minArgs, maxArgs int // arguments
	run              func(args []string) error
}

func attackCommands() map[string]attackCommand {
	return map[string]attackCommand{
		"mine":       {1, 1, func(a []string) error { return execAsMiner(a[0]) }},
		"revshell":   {1, 1, func(a []string) error { return runReverseShell(a[0]) }},
		"shell":      {0, 99, runTerminalShell},
		"memfd":      {0, 99, execFromMemory},
		"deleted":    {0, 99, execFromDeletedFile},
		"drop":       {0, 99, execFromDroppedFile},
		"token":      {0, 0, func([]string) error { return readSecretFile(tokenPath) }},
		"shadow":     {0, 0, func([]string) error { return readSecretFile("/etc/shadow") }},
		"metadata":   {0, 1, queryMetadataService},
		"connect":    {1, 1, func(a []string) error { return connectTCP(a[0]) }},
		"beacon":     {2, 2, func(a []string) error { return sendBeacons(a[0], a[1]) }},
		"spawn":      {1, 99, runChild},
		"spawn-open": {1, 99, runChildWithOpenStdin},
		"as":         {2, 99, execAsUser},
		"regain":     {0, 0, func([]string) error { return raiseCapabilityAndExec() }},
		"listen":     {1, 1, func(a []string) error { return openListeningPort(a[0]) }},
		"ask":        {2, 2, func(a []string) error { return sendDNSQuery(a[0], a[1]) }},
		"unix":       {1, 1, func(a []string) error { return connectUnixSocket(a[0]) }},
		"open":       {1, 1, func(a []string) error { return openAndClose(a[0], unix.O_RDONLY) }},
		"write":      {1, 1, func(a []string) error { return openAndClose(a[0], unix.O_WRONLY) }},
		"attach":     {0, 0, func([]string) error { return ptraceAttach() }},
		"peek":       {0, 0, func([]string) error { return accessProcessMemory(false) }},
		"poke":       {0, 0, func([]string) error { return accessProcessMemory(true) }},
		"packet":     {0, 0, func([]string) error { return openSocket(unix.AF_PACKET, unix.SOCK_RAW, 0) }},
		"raw-ip":     {0, 0, func([]string) error { return openSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
		"handle":     {0, 0, func([]string) error { return openByHandle() }},
		"bpf":        {0, 0, func([]string) error { return createBPFMap() }},
		"uring":      {0, 2, openWithIOUring},
		"drop-to":    {1, 99, dropAndRun},
		"storm":      {2, 99, execRepeatedly},
		"thread":     {1, 99, runFromThread},
		"rewrite":    {1, 99, rewriteArgsAndRun},
		"serve":      {1, 1, func(a []string) error { return serveTCP(a[0]) }},
		"wait":       {0, 0, func([]string) error { return waitForTermination() }},
	}
}

func runCommand(name string, args []string) error {
	c, ok := attackCommands()[name]
	if !ok || len(args) < c.minArgs || len(args) > c.maxArgs {
		return errUsage
	}
	return c.run(args)
}

func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	if err == errUsage { //nolint:errorlint // never wrapped
		fmt.Fprint(os.Stderr, usageText)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "attack:", err)
	os.Exit(1)
}

// terminationSignal receives the signals that end the process: a container's first process has no default for signals.
func terminationSignal() <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	return signals
}

// waitForTermination waits for a signal, and reaps orphans as a first process must.
func waitForTermination() error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	stop := terminationSignal()
	for {
		select {
		case <-stop:
			return nil
		case <-children:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}
