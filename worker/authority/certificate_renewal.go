package authority

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"stanch/sensors/gatewayrpc"
)

// maxCSRBytes bounds a certificate request, in bytes.
const maxCSRBytes = 4 << 10

// signPublicKey signs a public key for a role and a name. Nothing else of what was asked for gets into the certificate.
func (p *PKI) signPublicKey(role, name string, key any, hosts ...string) ([]byte, error) {
	now := time.Now()
	ends := now.Add(certLifetime)
	if p.caCert.NotAfter.Before(ends) {
		ends = p.caCert.NotAfter // longer than its authority it holds nowhere
	}
	template := &x509.Certificate{
		SerialNumber: newSerialNumber(), Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{role}},
		NotBefore: now.Add(-time.Hour), NotAfter: ends,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if role == RoleNode {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} // a node serves nothing
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.caCert, key, p.caKey)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// SignCSR makes a certificate of a request's key for a role and a name that the caller has proved. What the request itself
// says about names, uses or times is not looked at.
func (p *PKI) SignCSR(role, name string, csr []byte) ([]byte, error) {
	if len(csr) > maxCSRBytes {
		return nil, fmt.Errorf("the request has %d bytes, at most %d are accepted", len(csr), maxCSRBytes)
	}
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("the request cannot be read: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed with the key that it is for: %w", err)
	}
	switch key := request.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, errors.New("the request's key is on a curve that is not taken: P-256 and P-384 are")
		}
	default:
		return nil, fmt.Errorf("the request's key is a %T: ECDSA and Ed25519 are taken", key)
	}
	return p.signPublicKey(role, name, request.PublicKey)
}

// ExpiresAt is when the authority's own certificate ends, and with it all trust.
func (p *PKI) ExpiresAt() time.Time { return p.caCert.NotAfter }

// RenewingTLSConfig is the configuration of a server that runs for long: when half of its certificate's life has passed, it shows
// a new one to whoever connects then.
func (p *PKI) RenewingTLSConfig(role, name string, hosts ...string) (*tls.Config, error) {
	s := &renewingCertificate{issue: func() (*tls.Certificate, error) {
		certPEM, keyPEM, err := p.IssueCertificate(role, name, hosts...)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			return nil, fmt.Errorf("certificate for %s: %w", name, err)
		}
		return &pair, nil
	}}
	if _, err := s.currentCertificate(time.Now()); err != nil {
		return nil, err
	}
	c := gatewayrpc.MutualTLSConfig(tls.Certificate{}, p.CertPool())
	c.Certificates = nil
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.currentCertificate(time.Now()) }
	return c, nil
}

// renewingCertificate keeps a server's certificate young.
type renewingCertificate struct {
	issue   func() (*tls.Certificate, error)
	mu      sync.Mutex
	current *tls.Certificate
}

func (s *renewingCertificate) currentCertificate(now time.Time) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		c := s.current.Leaf
		if now.Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)) {
			return s.current, nil
		}
	}
	pair, err := s.issue()
	if err != nil {
		if s.current != nil {
			return s.current, nil // the old one may still hold
		}
		return nil, err
	}
	s.current = pair
	return pair, nil
}
