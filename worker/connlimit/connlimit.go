// Package connlimit limits the connections of a listener, in total and per peer. A connection above a limit is closed
// at once, so that a peer with many connections does not block others.
//
// It applies no timeouts: those are the server's.
package connlimit

import (
	"net"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Limits are the maximum numbers of open connections of a listener. Zero values mean 1024 in total and 128 per peer.
type Limits struct {
	MaxTotal   int
	MaxPerPeer int
}

const (
	defaultTotal   = 1024
	defaultPerPeer = 128
)

// NewLimitedListener wraps a listener. A peer is an IP address or, on a Unix socket, a user id. Root on the Unix socket
// has no limit per peer, so that nobody can keep the operator from pausing or releasing.
func NewLimitedListener(l net.Listener, limits Limits) net.Listener {
	if limits.MaxTotal == 0 {
		limits.MaxTotal = defaultTotal
	}
	if limits.MaxPerPeer == 0 {
		limits.MaxPerPeer = defaultPerPeer
	}
	return &limitedListener{Listener: l, limits: limits, openByPeer: map[string]int{}}
}

type limitedListener struct {
	net.Listener
	limits Limits

	mu         sync.Mutex
	openTotal  int
	openByPeer map[string]int
}

// Accept returns the next connection within the limits.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err //nolint:wrapcheck // servers compare net's own errors
		}
		peer := peerKey(c)
		if l.admit(peer) {
			return &limitedConn{Conn: c, release: func() { l.release(peer) }}, nil
		}
		_ = c.Close()
	}
}

// rootPeer is the peer that is always admitted: uid 0 on a Unix socket.
const rootPeer = "uid:0"

func (l *limitedListener) admit(peer string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if peer != rootPeer && (l.openTotal >= l.limits.MaxTotal || l.openByPeer[peer] >= l.limits.MaxPerPeer) {
		return false
	}
	l.openTotal++
	l.openByPeer[peer]++
	return true
}

func (l *limitedListener) release(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.openTotal--
	if l.openByPeer[peer]--; l.openByPeer[peer] <= 0 {
		delete(l.openByPeer, peer)
	}
}

// limitedConn is a connection that is subtracted from the counts when it is closed.
type limitedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

// Close closes the connection and subtracts it from the counts. Repeated calls subtract it once.
func (c *limitedConn) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close() //nolint:wrapcheck // servers compare net's own errors
}

// NetConn returns the underlying connection, for peer credentials.
func (c *limitedConn) NetConn() net.Conn { return c.Conn }

func peerKey(c net.Conn) string {
	if u, ok := c.(*net.UnixConn); ok {
		uid := "unknown"
		if raw, err := u.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					uid = strconv.FormatUint(uint64(cred.Uid), 10)
				}
			})
		}
		return "uid:" + uid
	}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}
