package gateway

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
)

// Either speaks TLS with who begins it, and plain with senders on this machine, on one address: an API server's webhook
// gives its token only to TLS, and sensors on the same machine need none. A plain request from another machine is
// answered 400 and not read: its token would cross the network in clear text.
func Either(l net.Listener, c *tls.Config) net.Listener {
	c = c.Clone()
	c.ClientAuth, c.ClientCAs, c.NextProtos = tls.NoClientCert, nil, []string{"http/1.1"} // who posts shows a token
	return &eitherListener{l, c}
}

type eitherListener struct {
	net.Listener
	config *tls.Config
}

func (l *eitherListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err //nolint:wrapcheck // the server knows net's own errors
	}
	return &eitherConn{Conn: c, config: l.config}, nil
}

// eitherConn decides with the first byte that it reads: in HTTP the client speaks first. The server's own deadlines hold
// meanwhile.
type eitherConn struct {
	net.Conn
	config *tls.Config
	once   sync.Once
	spoken net.Conn
	err    error
}

// handshake is the first byte of TLS; no method of HTTP begins with it.
const handshake = 0x16

func (c *eitherConn) decide() {
	c.once.Do(func() {
		reader := bufio.NewReader(c.Conn)
		first, err := reader.Peek(1)
		if err != nil {
			c.err = err
			return
		}
		c.spoken = &peeked{c.Conn, reader}
		switch {
		case first[0] == handshake:
			c.spoken = tls.Server(c.spoken, c.config)
		case !fromThisMachine(c.Conn):
			_, c.err = io.WriteString(c.Conn, plainRefused)
			if c.err == nil {
				c.err = errPlain
			}
		}
	})
}

var errPlain = errors.New("plain HTTP from another machine is refused; use https")

const plainRefused = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" +
	`{"status":"use https: a token is not accepted in clear text from another machine"}` + "\n"

// fromThisMachine reports whether both ends of a connection are on this machine: its packets never leave it.
func fromThisMachine(c net.Conn) bool {
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	return remote.IP.IsLoopback() || ok && remote.IP.Equal(local.IP)
}

func (c *eitherConn) Read(b []byte) (int, error) {
	if c.decide(); c.err != nil {
		return 0, c.err
	}
	return c.spoken.Read(b) //nolint:wrapcheck // the server knows net's own errors
}

func (c *eitherConn) Write(b []byte) (int, error) {
	if c.decide(); c.err != nil {
		return 0, c.err
	}
	return c.spoken.Write(b) //nolint:wrapcheck // as above
}

type peeked struct {
	net.Conn
	reader *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) {
	return p.reader.Read(b) //nolint:wrapcheck // as above
}
