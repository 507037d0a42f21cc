package connlimit_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/worker/connlimit"
)

// startServer accepts and keeps every connection within the limits.
func startServer(t *testing.T, limits connlimit.Limits) (address string, accepted chan net.Conn) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := connlimit.NewLimitedListener(inner, limits)
	t.Cleanup(func() { _ = l.Close() })
	accepted = make(chan net.Conn, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	return inner.Addr().String(), accepted
}

func dialFrom(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", to)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// isClosed reports whether the other end closed the connection.
func isClosed(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, err := c.Read(make([]byte, 1))
	return err != nil && !isTimeout(err)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestConnectionsPerPeerAreLimited(t *testing.T) {
	address, accepted := startServer(t, connlimit.Limits{MaxTotal: 10, MaxPerPeer: 3})
	for range 3 {
		dialFrom(t, "127.0.0.1", address)
		<-accepted
	}
	require.True(t, isClosed(dialFrom(t, "127.0.0.1", address)), "the fourth connection of one peer is closed")
	other := dialFrom(t, "127.0.0.2", address)
	served := <-accepted
	require.Equal(t, other.LocalAddr().String(), served.RemoteAddr().String())
}

func TestTotalConnectionsAreLimited(t *testing.T) {
	address, accepted := startServer(t, connlimit.Limits{MaxTotal: 2, MaxPerPeer: 2})
	dialFrom(t, "127.0.0.1", address)
	first := <-accepted
	dialFrom(t, "127.0.0.2", address)
	<-accepted
	require.True(t, isClosed(dialFrom(t, "127.0.0.3", address)))
	require.NoError(t, first.Close())
	third := dialFrom(t, "127.0.0.3", address)
	select {
	case c := <-accepted:
		require.Equal(t, third.LocalAddr().String(), c.RemoteAddr().String(), "a closed connection frees its slot")
	case <-time.After(5 * time.Second):
		t.Fatal("a closed connection still counts")
	}
}
