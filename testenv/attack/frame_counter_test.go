package main_test

import (
	"bytes"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// newFrameCounter opens a packet socket on an interface and counts "stanch-beacon KIND " in its frames, which is
// past everything that a socket of the peer could hide.
func newFrameCounter(t *testing.T, name string) *frameCounter {
	t.Helper()
	device, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index}); err != nil {
		t.Fatal(err)
	}
	// A receive that ends now and then sees that the test is over.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	w, done := &frameCounter{countByPrefix: map[string]int{}}, make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		defer unix.Close(fd)
		frame := make([]byte, 1<<16)
		for {
			select {
			case <-done:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, frame, 0)
			if err != nil {
				continue
			}
			if _, rest, ok := bytes.Cut(frame[:n], []byte("stanch-beacon ")); ok {
				kind, _, _ := bytes.Cut(rest, []byte(" "))
				w.mu.Lock()
				w.countByPrefix["stanch-beacon "+string(kind)+" "]++
				w.mu.Unlock()
			}
		}
	}()
	return w
}
