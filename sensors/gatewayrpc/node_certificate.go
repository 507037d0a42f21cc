package gatewayrpc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"stanch/sensors/durablefile"
)

// NodeCertificate is the node's certificate and its renewals. The private key never leaves the node. It is safe for
// concurrent use.
type NodeCertificate struct {
	baseTLS *tls.Config
	path    string // the file with the newest certificate and its key; "" keeps them in memory only

	mu         sync.Mutex
	current    tls.Certificate
	pendingKey *ecdsa.PrivateKey // the key of the pending request
}

// NewNodeCertificate returns the certificate of base, or the one in path if that expires later and has the same
// authority and name. Renewed certificates are written to path together with their key. It returns an error if base
// has no certificate or the file is damaged.
func NewNodeCertificate(base *tls.Config, path string) (*NodeCertificate, error) {
	if len(base.Certificates) == 0 {
		return nil, errors.New("the configuration contains no certificate")
	}
	i := &NodeCertificate{baseTLS: base, path: path, current: base.Certificates[0]}
	if i.current.Leaf == nil {
		leaf, err := x509.ParseCertificate(i.current.Certificate[0])
		if err != nil {
			return nil, fmt.Errorf("read the node's certificate: %w", err)
		}
		i.current.Leaf = leaf
	}
	if path == "" {
		return i, nil
	}
	renewed, err := ReadKeyPair(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("%w; remove it to use the certificate that was issued first", err)
	case i.checkRenewal(renewed.Leaf) == nil && renewed.Leaf.NotAfter.After(i.current.Leaf.NotAfter):
		i.current = renewed
	}
	return i, nil
}

// ReadKeyPair reads a PEM file that contains a certificate and its key. The error wraps fs.ErrNotExist if there is no
// file.
func ReadKeyPair(path string) (tls.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the renewed certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the renewed certificate in %s is corrupted: %w", path, err)
	}
	return pair, nil
}

// WriteKeyPair writes a certificate and its key into one file, atomically, so that a crash never leaves one without
// the other.
func WriteKeyPair(path string, certificate, key []byte) error {
	if err := durablefile.MakeDirectory(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save the certificate: %w", err)
	}
	if err := durablefile.Write(path, slices.Concat(certificate, key), 0o600); err != nil {
		return fmt.Errorf("save the certificate: %w", err)
	}
	return nil
}

// checkRenewal returns an error unless c has this node's name and is signed by its authority.
func (i *NodeCertificate) checkRenewal(c *x509.Certificate) error {
	if c.Subject.CommonName != i.current.Leaf.Subject.CommonName {
		return fmt.Errorf("the certificate is for node %q, but this node is %q", c.Subject.CommonName,
			i.current.Leaf.Subject.CommonName)
	}
	_, err := c.Verify(x509.VerifyOptions{
		Roots:     i.baseTLS.RootCAs,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("the certificate does not belong to this installation: %w", err)
	}
	return nil
}

// TLS returns the client configuration of the node. Each new connection uses the newest certificate.
func (i *NodeCertificate) TLS() *tls.Config {
	c := i.baseTLS.Clone()
	c.Certificates = nil
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		pair := i.current
		return &pair, nil
	}
	return c
}

// NodeName returns the common name in the node's certificate.
func (i *NodeCertificate) NodeName() string { return i.Certificate().Subject.CommonName }

// Certificate returns the newest certificate.
func (i *NodeCertificate) Certificate() *x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current.Leaf
}

// NeedsRenewal reports whether half of the certificate's validity period has passed.
func (i *NodeCertificate) NeedsRenewal(now time.Time) bool {
	c := i.Certificate()
	return now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2))
}

// BeginRenewal generates a key and returns a certificate request for it, in DER form. It replaces a pending request.
func (i *NodeCertificate) BeginRenewal() ([]byte, error) {
	csr, key, err := NewCertificateRequest(i.NodeName())
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pendingKey = key
	return csr, nil
}

// NewCertificateRequest generates a P-256 key and returns it with a certificate request in DER form.
func NewCertificateRequest(name string) (csr []byte, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("create a key: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}},
		key)
	if err != nil {
		return nil, nil, fmt.Errorf("create a certificate request: %w", err)
	}
	return csr, key, nil
}

// EncodePrivateKey returns the key as PKCS #8 in PEM form.
func EncodePrivateKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// AcceptCertificate stores the certificate for the pending request and uses it for new connections. Existing
// connections keep the old certificate. It returns an error, and changes nothing, if no request is pending or the
// certificate does not match.
func (i *NodeCertificate) AcceptCertificate(certificate []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pendingKey == nil {
		return errors.New("received a certificate that was not requested")
	}
	key, err := EncodePrivateKey(i.pendingKey)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("the certificate does not match the request: %w", err)
	}
	if err := i.checkRenewal(pair.Leaf); err != nil {
		return err
	}
	if i.path != "" {
		if err := WriteKeyPair(i.path, certificate, key); err != nil {
			return err
		}
	}
	i.current, i.pendingKey = pair, nil
	return nil
}
