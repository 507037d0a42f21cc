// Package mail is a small mail server: real SMTP with STARTTLS or implicit TLS, a login, and messages in memory.
//
// It refuses what a careful server refuses: unencrypted mail where it has a certificate, a wrong login, and unknown
// recipients.
package mail

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// The login of the server.
const (
	User     = "stanch"
	Password = "correct-horse-battery"
)

// Message is a received message.
type Message struct {
	From string
	To   []string
	Raw  string
	// Encrypted and Login describe the session.
	Encrypted bool
	Login     string
}

// Server is a running server.
type Server struct {
	Host  string
	Port  int
	Roots *x509.CertPool

	mu               sync.Mutex
	messages         []Message
	nextErrors       []error
	unknownRecipient string
}

// TLSMode is how the server encrypts its connections.
type TLSMode int

// The modes.
const (
	ModeStartTLS TLSMode = iota
	ModeImplicitTLS
	ModePlaintext
)

// Start starts a server on loopback.
func Start(t testing.TB, mode TLSMode) *Server {
	t.Helper()
	s := &Server{Host: "127.0.0.1"}
	server := smtp.NewServer(s)
	server.Domain, server.MaxRecipients, server.MaxMessageBytes = "mail.example", 20, 1<<20
	server.ReadTimeout, server.WriteTimeout = 10*time.Second, 10*time.Second
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = l.Addr().(*net.TCPAddr).Port
	if mode != ModePlaintext {
		certificate := s.newCertificate(t)
		server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}}
		if mode == ModeImplicitTLS {
			l = tls.NewListener(l, server.TLSConfig)
		}
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return s
}

func (s *Server) newCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	s.Roots = x509.NewCertPool()
	s.Roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}

// FailNext makes the next message fail with an SMTP error.
func (s *Server) FailNext(code int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextErrors = append(s.nextErrors, &smtp.SMTPError{Code: code, Message: text})
}

// RejectRecipient makes the server reject a recipient as unknown.
func (s *Server) RejectRecipient(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unknownRecipient = address
}

// Messages returns the received messages.
func (s *Server) Messages() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// NewSession starts a session.
func (s *Server) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{server: s, conn: c}, nil
}

type session struct {
	server  *Server
	conn    *smtp.Conn
	login   string
	current Message
}

func (s *session) isEncrypted() bool {
	_, ok := s.conn.TLSConnectionState()
	return ok
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != User || password != Password {
			// Like some servers, it repeats the received credentials.
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "no such login: " + user + " " +
				password}
		}
		s.login = user
		return nil
	}), nil
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	if s.server.Roots != nil && !s.isEncrypted() {
		return &smtp.SMTPError{Code: 530, Message: "must issue a STARTTLS command first"}
	}
	s.current = Message{From: from, Encrypted: s.isEncrypted(), Login: s.login}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	if to == s.server.unknownRecipient {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such mailbox"}
	}
	s.current.To = append(s.current.To, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return errors.New("the message did not arrive")
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	if len(s.server.nextErrors) > 0 {
		err := s.server.nextErrors[0]
		s.server.nextErrors = s.server.nextErrors[1:]
		return err
	}
	s.current.Raw = string(raw)
	s.server.messages = append(s.server.messages, s.current)
	return nil
}

func (s *session) Reset()        { s.current = Message{} }
func (s *session) Logout() error { return nil }
