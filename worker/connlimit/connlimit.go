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
	Total   int
	PerPeer int
}

const (
	defaultTotal   = 1024
	defaultPerPeer = 128
)

// New wraps a listener. A peer is an IP address or, on a Unix socket, a user id. Root on the Unix socket is not bounded as
// a peer, so that nobody keeps the operator from pausing or releasing.
func New(l net.Listener, limits Limits) net.Listener {
	if limits.Total == 0 {
		limits.Total = defaultTotal
	}
	if limits.PerPeer == 0 {
		limits.PerPeer = defaultPerPeer
	}
	return &listener{Listener: l, limits: limits, peers: map[string]int{}}
}

type listener struct {
	net.Listener
	limits Limits

	mu    sync.Mutex
	total int
	peers map[string]int
}

// Accept returns the next connection within the bounds.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err //nolint:wrapcheck // servers compare net's own errors
		}
		peer := peerOf(c)
		if l.enter(peer) {
			return &conn{Conn: c, leave: func() { l.leave(peer) }}, nil
		}
		_ = c.Close()
	}
}

// root is the peer that is always admitted: uid 0 on a Unix socket.
const root = "uid:0"

func (l *listener) enter(peer string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if peer != root && (l.total >= l.limits.Total || l.peers[peer] >= l.limits.PerPeer) {
		return false
	}
	l.total++
	l.peers[peer]++
	return true
}

func (l *listener) leave(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.peers[peer]--; l.peers[peer] <= 0 {
		delete(l.peers, peer)
	}
}

// conn is a connection that gives its place back when it is closed.
type conn struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close closes the connection.
func (c *conn) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close() //nolint:wrapcheck // servers compare net's own errors
}

// NetConn returns the connection itself, for who asks it for peer credentials.
func (c *conn) NetConn() net.Conn { return c.Conn }

func peerOf(c net.Conn) string {
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
