package gatewayrpc

import (
	"bytes"
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
	"sync"
	"time"
)

// NodeCertificate is a node's certificate over its life: the one that it was given, and those that the gateway made of its own
// requests since. The key never leaves the node.
type NodeCertificate struct {
	baseTLS *tls.Config
	path    string // of the newest certificate with its key, in one file; "" keeps it in memory only

	mu         sync.Mutex
	current    tls.Certificate
	pendingKey *ecdsa.PrivateKey // of the request under way
}

// NewNodeCertificate begins with the certificate of a configuration, or with the one at path if that holds for longer and is of
// the same authority and name. What is renewed is written to path, certificate and key at once.
func NewNodeCertificate(base *tls.Config, path string) (*NodeCertificate, error) {
	if len(base.Certificates) == 0 {
		return nil, errors.New("the configuration holds no certificate")
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
		return nil, fmt.Errorf("%w; remove it to go on with the certificate that was issued first", err)
	case i.checkRenewal(renewed.Leaf) == nil && renewed.Leaf.NotAfter.After(i.current.Leaf.NotAfter):
		i.current = renewed
	}
	return i, nil
}

// ReadKeyPair reads a file with a certificate and its key.
func ReadKeyPair(path string) (tls.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the renewed certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the renewed certificate in %s is damaged: %w", path, err)
	}
	return pair, nil
}

// WriteKeyPair writes a certificate and its key into one file, so that no crash leaves one without the other.
func WriteKeyPair(path string, certificate, key []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep the certificate: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".certificate-")
	if err != nil {
		return fmt.Errorf("keep the certificate: %w", err)
	}
	_, err = f.Write(bytes.Join([][]byte{certificate, key}, nil))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("keep the certificate: %w", err)
	}
	return nil
}

// checkRenewal tells whether a certificate is this node's and of its authority.
func (i *NodeCertificate) checkRenewal(c *x509.Certificate) error {
	if c.Subject.CommonName != i.current.Leaf.Subject.CommonName {
		return fmt.Errorf("the certificate is %q's, and this node is %q", c.Subject.CommonName, i.current.Leaf.Subject.CommonName)
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: i.baseTLS.RootCAs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fmt.Errorf("the certificate is not of this installation: %w", err)
	}
	return nil
}

// TLS is the node's end of the connection; each new connection shows the newest certificate.
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

// NodeName is the node's name in its certificate.
func (i *NodeCertificate) NodeName() string { return i.Certificate().Subject.CommonName }

// Certificate is the newest certificate.
func (i *NodeCertificate) Certificate() *x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current.Leaf
}

// NeedsRenewal tells whether it is time to ask for a new certificate: half of its life has passed.
func (i *NodeCertificate) NeedsRenewal(now time.Time) bool {
	c := i.Certificate()
	return now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2))
}

// BeginRenewal makes a key and asks for a certificate for it. A request before it is forgotten.
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

// NewCertificateRequest makes a key and a certificate request of it.
func NewCertificateRequest(name string) (csr []byte, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, key, nil
}

// EncodePrivateKey writes a key as PEM.
func EncodePrivateKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// AcceptCertificate accepts the answer to the last request. The connections that are up go on with the old certificate.
func (i *NodeCertificate) AcceptCertificate(certificate []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pendingKey == nil {
		return errors.New("a certificate came that was not asked for")
	}
	key, err := EncodePrivateKey(i.pendingKey)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("the certificate does not belong to the request: %w", err)
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
