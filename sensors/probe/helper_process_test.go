package probe

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func netNamespaceOf(t *testing.T, a *helperProcess) string {
	t.Helper()
	for _, arg := range a.cmd.Args {
		if ns, ok := strings.CutPrefix(arg, "--net="); ok {
			return ns
		}
	}
	t.Fatal("actor without a namespace")
	return ""
}

// dialAndAsk opens a connection, sends a line and returns the response.
func dialAndAsk(host, port string) (string, error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprintln(c, "question")
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

// runHelperProcess executes commands from stdin, one per line: it sends in many ways, serves, and captures frames.
func runHelperProcess() error {
	var (
		mu     sync.Mutex
		frames = map[string]int{}
		text   bytes.Buffer
		conn   net.Conn
	)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(swapBytes(unix.ETH_P_ALL)))
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING || n < 14 {
				continue
			}
			if buf[12] == 8 && buf[13] == 6 { // ignore ARP
				continue
			}
			mu.Lock()
			frames[net.HardwareAddr(buf[6:12]).String()]++
			mu.Unlock()
		}
	}()
	ln, err := net.Listen("tcp", ":7000")
	go func() {
		for err == nil { // a second helper in the same namespace does not listen
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					mu.Lock()
					text.Write(buf[:n])
					mu.Unlock()
				}
			}()
		}
	}()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		w := strings.Fields(in.Text())
		answer := "sent"
		var err error
		switch w[0] {
		case "hello":
			answer = "hello"
		case "frames":
			mu.Lock()
			answer = strconv.Itoa(frames[w[1]])
			mu.Unlock()
		case "text":
			mu.Lock()
			answer = strconv.Quote(text.String())
			mu.Unlock()
		case "tcp":
			var c net.Conn
			if c, err = net.DialTimeout("tcp", net.JoinHostPort(w[1], w[2]), 300*time.Millisecond); err == nil {
				_, err = c.Write([]byte("token"))
				c.Close()
			}
		case "udp":
			var c net.Conn
			if c, err = net.Dial("udp", net.JoinHostPort(w[1], w[2])); err == nil {
				_, err = c.Write([]byte("token"))
				c.Close()
			}
		case "raw": // a TCP segment outside of any connection, from a raw socket
			err = sendRawPacket(unix.IPPROTO_TCP, w[1], append([]byte{
				0x1f, 0x90, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10,
				0, 9, 0, 0, 0, 0,
			}, "token"...))
		case "icmp":
			err = sendRawPacket(unix.IPPROTO_ICMP, w[1], append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, "token"...))
		case "packet":
			err = broadcastFrame(w[1])
		case "open":
			answer = "open"
			conn, err = net.DialTimeout("tcp", net.JoinHostPort(w[1], w[2]), time.Second)
		case "say":
			answer = "said"
			_, err = conn.Write([]byte(w[1]))
		case "serve":
			var l net.Listener
			if l, err = net.Listen("tcp", ":"+w[1]); err == nil {
				go serveConnections(l)
			} else if strings.Contains(err.Error(), "in use") {
				err = nil
			}
		case "ask":
			answer, err = dialAndAsk(w[1], w[2])
		case "hold": // keep a file open
			_, err = unix.Open(w[1], unix.O_RDONLY, 0)
		case "enter": // one thread enters a network namespace and stays there
			entered := make(chan error, 1)
			go func() {
				runtime.LockOSThread()
				ns, err := os.Open(w[1])
				if err == nil {
					err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
				}
				entered <- err
				<-make(chan bool)
			}()
			err = <-entered
		case "mac":
			var ifi *net.Interface
			if ifi, err = net.InterfaceByName(w[1]); err == nil {
				answer = ifi.HardwareAddr.String()
			}
		case "frame": // frame INTERFACE HEX TIMES
			err = sendFrame(w[1], w[2], w[3])
		case "pretend": // pretend SOURCE PORT DESTINATION PORT
			err = connectFromAddress(netip.MustParseAddrPort(net.JoinHostPort(w[1], w[2])),
				netip.MustParseAddrPort(net.JoinHostPort(w[3], w[4])))
		}
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Println(answer)
	}
	return nil
}

func serveConnections(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = bufio.NewReader(c).ReadString('\n')
		fmt.Fprintln(c, "answer")
		c.Close()
	}
}

// sendFrame sends one raw frame several times.
func sendFrame(name, frame, times string) error {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	raw, err := hex.DecodeString(frame)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range n {
		if err := unix.Sendto(fd, raw, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6}); err != nil {
			return err
		}
	}
	return nil
}

// connectFromAddress starts a connection from an address that this machine does not have (IP_TRANSPARENT). It gets no
// response.
func connectFromAddress(from, to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(from.Port()), Addr: from.Addr().As4()}); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil &&
		!errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return nil // the socket stays open until the helper exits
}

func swapBytes(v uint16) uint16 { return v<<8 | v>>8 }

func sendRawPacket(protocol int, to string, payload []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(to).As4()})
}

// broadcastFrame broadcasts a frame of an invented protocol from a packet socket.
func broadcastFrame(name string) error {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	frame := append(bytes.Repeat([]byte{0xff}, 6), ifi.HardwareAddr...)
	frame = append(frame, 0x88, 0xb5)
	frame = append(frame, "a token in a frame of its own, long enough to be one"...)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6})
}

// runLockHelper applies a lock and then waits to be killed. Its arguments are directory, cgroup, interface, MAC and
// duration.
func runLockHelper(args []string) error {
	l, err := OpenEgressLock(args[0])
	if err != nil {
		return err
	}
	id, _ := strconv.ParseUint(args[1], 10, 64)
	index, _ := strconv.Atoi(args[2])
	hw, err := net.ParseMAC(args[3])
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(args[4])
	if err != nil {
		return err
	}
	st, err := l.Apply(EgressLockRequest{
		LeaseID: "owner", Cgroups: []uint64{id}, Veths: []Veth{{Index: index, MAC: [6]byte(hw)}},
		ExpiresAt: time.Now().Add(d),
	})
	if err != nil {
		return err
	}
	if !st.VethLocked {
		return errors.New("no veth")
	}
	fmt.Println("locked", filepath.Base(args[0]))
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt)
	<-end
	return nil
}

func itoa(n int) string { return strconv.Itoa(n) }

func pidOf(a *helperProcess) string { return itoa(a.cmd.Process.Pid) }
