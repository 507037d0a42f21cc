package sourceserver

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
)

// NewTLSMux accepts TLS from everywhere, and plain connections from this machine, on one address: an API server's
// webhook sends its token only over TLS, and sensors on the same machine need none. A plain request from another
// machine is answered with 400 and not read, because its token would cross the network in clear text.
func NewTLSMux(l net.Listener, c *tls.Config) net.Listener {
	c = c.Clone()
	// senders authenticate with a token
	c.ClientAuth, c.ClientCAs, c.NextProtos = tls.NoClientCert, nil, []string{"http/1.1"}
	return &tlsMuxListener{l, c}
}

type tlsMuxListener struct {
	net.Listener
	config *tls.Config
}

func (l *tlsMuxListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err //nolint:wrapcheck // the server compares net's errors
	}
	return &tlsMuxConn{Conn: c, config: l.config}, nil
}

// tlsMuxConn decides by the first byte that it reads, because HTTP clients send first. The server's own deadlines apply
// meanwhile.
type tlsMuxConn struct {
	net.Conn
	config *tls.Config
	once   sync.Once
	inner  net.Conn
	err    error
}

// tlsHandshakeByte is the first byte of TLS; no HTTP method starts with it.
const tlsHandshakeByte = 0x16

func (c *tlsMuxConn) detectTLS() {
	c.once.Do(func() {
		reader := bufio.NewReader(c.Conn)
		first, err := reader.Peek(1)
		if err != nil {
			c.err = err
			return
		}
		c.inner = &bufferedConn{c.Conn, reader}
		switch {
		case first[0] == tlsHandshakeByte:
			c.inner = tls.Server(c.inner, c.config)
		case !isLocalConnection(c.Conn):
			_, c.err = io.WriteString(c.Conn, plainRefusedResponse)
			if c.err == nil {
				c.err = errPlainHTTPRefused
			}
		}
	})
}

var errPlainHTTPRefused = errors.New("plain HTTP from another machine is not allowed; use https")

const plainRefusedResponse = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" +
	`{"status":"use https; a token is not accepted in clear text from another machine"}` + "\n"

// isLocalConnection reports whether both ends of a connection are on this machine, so that its packets never leave it.
func isLocalConnection(c net.Conn) bool {
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	return remote.IP.IsLoopback() || ok && remote.IP.Equal(local.IP)
}

func (c *tlsMuxConn) Read(b []byte) (int, error) {
	if c.detectTLS(); c.err != nil {
		return 0, c.err
	}
	return c.inner.Read(b) //nolint:wrapcheck // the server compares net's errors
}

func (c *tlsMuxConn) Write(b []byte) (int, error) {
	if c.detectTLS(); c.err != nil {
		return 0, c.err
	}
	return c.inner.Write(b) //nolint:wrapcheck // as above
}

type bufferedConn struct {
	net.Conn
	reader *bufio.Reader
}

func (p *bufferedConn) Read(b []byte) (int, error) {
	return p.reader.Read(b) //nolint:wrapcheck // as above
}
