package link

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

// Identity is a node's certificate over its life: the one that it was given, and those that the gateway made of its own
// requests since. The key never leaves the node.
type Identity struct {
	base *tls.Config
	path string // of the newest certificate with its key, in one file; "" keeps it in memory only

	mu   sync.Mutex
	pair tls.Certificate
	key  *ecdsa.PrivateKey // of the request under way
}

// NewIdentity begins with the certificate of a configuration, or with the one at path if that holds for longer and is of
// the same authority and name. What is renewed is written to path, certificate and key at once.
func NewIdentity(base *tls.Config, path string) (*Identity, error) {
	if len(base.Certificates) == 0 {
		return nil, errors.New("the configuration holds no certificate")
	}
	i := &Identity{base: base, path: path, pair: base.Certificates[0]}
	if i.pair.Leaf == nil {
		leaf, err := x509.ParseCertificate(i.pair.Certificate[0])
		if err != nil {
			return nil, fmt.Errorf("read the node's certificate: %w", err)
		}
		i.pair.Leaf = leaf
	}
	if path == "" {
		return i, nil
	}
	renewed, err := ReadPair(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("%w; remove it to go on with the certificate that was issued first", err)
	case i.fits(renewed.Leaf) == nil && renewed.Leaf.NotAfter.After(i.pair.Leaf.NotAfter):
		i.pair = renewed
	}
	return i, nil
}

// ReadPair reads a file with a certificate and its key.
func ReadPair(path string) (tls.Certificate, error) {
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

// WritePair writes a certificate and its key into one file, so that no crash leaves one without the other.
func WritePair(path string, certificate, key []byte) error {
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

// fits tells whether a certificate is this node's and of its authority.
func (i *Identity) fits(c *x509.Certificate) error {
	if c.Subject.CommonName != i.pair.Leaf.Subject.CommonName {
		return fmt.Errorf("the certificate is %q's, and this node is %q", c.Subject.CommonName, i.pair.Leaf.Subject.CommonName)
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: i.base.RootCAs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fmt.Errorf("the certificate is not of this installation: %w", err)
	}
	return nil
}

// TLS is the node's end of the connection; each new connection shows the newest certificate.
func (i *Identity) TLS() *tls.Config {
	c := i.base.Clone()
	c.Certificates = nil
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		pair := i.pair
		return &pair, nil
	}
	return c
}

// Name is the node's name in its certificate.
func (i *Identity) Name() string { return i.Certificate().Subject.CommonName }

// Certificate is the newest certificate.
func (i *Identity) Certificate() *x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.pair.Leaf
}

// Due tells whether it is time to ask for a new certificate: half of its life has passed.
func (i *Identity) Due(now time.Time) bool {
	c := i.Certificate()
	return now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2))
}

// Request makes a key and asks for a certificate for it. A request before it is forgotten.
func (i *Identity) Request() ([]byte, error) {
	csr, key, err := NewRequest(i.Name())
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key = key
	return csr, nil
}

// NewRequest makes a key and a certificate request of it.
func NewRequest(name string) (csr []byte, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, key, nil
}

// EncodeKey writes a key as PEM.
func EncodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Take accepts the answer to the last request. The connections that are up go on with the old certificate.
func (i *Identity) Take(certificate []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.key == nil {
		return errors.New("a certificate came that was not asked for")
	}
	key, err := EncodeKey(i.key)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("the certificate does not belong to the request: %w", err)
	}
	if err := i.fits(pair.Leaf); err != nil {
		return err
	}
	if i.path != "" {
		if err := WritePair(i.path, certificate, key); err != nil {
			return err
		}
	}
	i.pair, i.key = pair, nil
	return nil
}
