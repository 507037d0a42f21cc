// Package connlimit bounds the connections of a listener: all together, and from one peer. A connection beyond a bound is
// closed at once, so that whoever opens many takes nothing from the others.
//
// It refuses to time anything out: that is the server's, which knows what it waits for.
package connlimit

import (
	"net"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Limits are how many connections a listener keeps open. Zero values are 1024 in all and 128 from one peer.
type Limits struct {
	MaxTotal   int
	MaxPerPeer int
}

const (
	defaultTotal   = 1024
	defaultPerPeer = 128
)

// NewLimitedListener wraps a listener. A peer is an IP address or, on a Unix socket, a user id. Root on the Unix socket is not bounded as
// a peer, so that nobody keeps the operator from pausing or releasing.
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

// Accept returns the next connection within the bounds.
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

// limitedConn is a connection that gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close() //nolint:wrapcheck // servers compare net's own errors
}

// NetConn returns the connection itself, for who asks it for peer credentials.
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
