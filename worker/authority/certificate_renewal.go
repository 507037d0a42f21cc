package authority

import (
	"cmp"
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

// maxCSRBytes is the maximum size of a certificate request.
const maxCSRBytes = 4 << 10

// signPublicKey returns a certificate of a public key for a role and a name. Nothing else from a request becomes part
// of it.
func (p *PKI) signPublicKey(role, name string, key any, hosts ...string) ([]byte, error) {
	now := time.Now()
	ends := now.Add(cmp.Or(p.Lifetime, defaultLifetime))
	if p.caCert.NotAfter.Before(ends) {
		ends = p.caCert.NotAfter // it cannot outlive its authority
	}
	template := &x509.Certificate{
		SerialNumber: newSerialNumber(), Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{role}},
		NotBefore: now.Add(-time.Hour), NotAfter: ends,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{
			x509.ExtKeyUsageServerAuth,
			x509.ExtKeyUsageClientAuth,
		},
	}
	if role == RoleNode {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} // nodes are clients only
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

// SignCSR returns a certificate of a request's key, for a role and a name that the caller has verified. Names, usages
// and times in the request are ignored.
func (p *PKI) SignCSR(role, name string, csr []byte) ([]byte, error) {
	if len(csr) > maxCSRBytes {
		return nil, fmt.Errorf("the certificate request is %d bytes; the maximum is %d", len(csr), maxCSRBytes)
	}
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("verify the certificate request: it is not signed with its own key: %w", err)
	}
	switch key := request.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, errors.New("the certificate request's curve is not allowed; use P-256 or P-384")
		}
	default:
		return nil, fmt.Errorf("the certificate request's key type %T is not allowed; use ECDSA or Ed25519", key)
	}
	return p.signPublicKey(role, name, request.PublicKey)
}

// ExpiresAt returns the end of the authority's own certificate, after which no certificate is valid.
func (p *PKI) ExpiresAt() time.Time { return p.caCert.NotAfter }

// RenewingTLSConfig returns the configuration of a long-running server: after half of its certificate's lifetime, new
// connections get a new one.
func (p *PKI) RenewingTLSConfig(role, name string, hosts ...string) (*tls.Config, error) {
	s := &renewingCertificate{issue: func() (*tls.Certificate, error) {
		certPEM, keyPEM, err := p.IssueCertificate(role, name, hosts...)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			return nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
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

// renewingCertificate renews a server's certificate.
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
			return s.current, nil // the old one may still be valid
		}
		return nil, err
	}
	s.current = pair
	return pair, nil
}
