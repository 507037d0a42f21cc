package authority

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
	"math/big"
	"os"
	"path/filepath"
	"time"

	"stanch/sensors/durablefile"
	"stanch/sensors/gatewayrpc"
)

// PKI is the certificate authority of one installation. It issues certificates for the gateway, the nodes and, in
// `stanch up`, the client of the embedded Temporal. Its key is in a directory that only the owner may read.
type PKI struct {
	// Lifetime is the lifetime of issued certificates; 0 means 90 days. None outlives the authority.
	Lifetime time.Duration

	caCert *x509.Certificate
	caKey  *ecdsa.PrivateKey
	caPEM  []byte
}

// Names in certificates. A node's certificate has its name as CommonName and RoleNode as OrganizationalUnit.
const (
	RoleGateway  = "gateway"
	RoleNode     = "node"
	RoleTemporal = "temporal"
)

// OpenOrCreatePKI reads the authority in dir, or creates one.
func OpenOrCreatePKI(dir string) (*PKI, error) {
	if err := durablefile.MakeDirectory(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificates: %w", err)
	}
	certPath, keyPath := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if _, err := os.Stat(certPath); errors.Is(err, fs.ErrNotExist) {
		if err := createCA(certPath, keyPath); err != nil {
			return nil, err
		}
	}
	// What this authority issues must not outlive it: the process that created it may have been killed before it was on
	// the disk.
	if err := errors.Join(durablefile.Sync(keyPath), durablefile.Sync(certPath)); err != nil {
		return nil, fmt.Errorf("open certificates: %w", err)
	}
	raw, err := os.ReadFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("open certificates: %w", err)
	}
	keyRaw, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("open certificates: %w", err)
	}
	pair, err := tls.X509KeyPair(raw, keyRaw)
	if err != nil {
		return nil, fmt.Errorf("the certificate authority in %s is corrupted: %w", dir, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the certificate authority in %s has an unknown key type", dir)
	}
	return &PKI{caCert: pair.Leaf, caKey: key, caPEM: raw}, nil
}

// createCA creates the authority's key and its certificate. The key is created first and never replaced, so that after
// a crash, or with two processes, the certificate always belongs to the key.
func createCA(certPath, keyPath string) error {
	key, err := createCAKey(keyPath)
	if err != nil {
		return fmt.Errorf("create the certificate authority: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: newSerialNumber(), Subject: pkix.Name{CommonName: "Stanch"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA:     true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("create the certificate authority: %w", err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := durablefile.Create(certPath, certPEM, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("store the certificate authority: %w", err)
	}
	return nil
}

// createCAKey creates the key, or reads the one that a crash left without a certificate.
func createCAKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	keyPEM, err := encodePrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := durablefile.Create(path, keyPEM, 0o600); !errors.Is(err, fs.ErrExist) {
		return key, err //nolint:wrapcheck // the caller adds context
	}
	if keyPEM, err = os.ReadFile(path); err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, fmt.Errorf("%s contains no key; remove it if the installation has no ca.crt", path)
	}
	existing, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	key, ok := existing.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s has an unknown key type", path)
	}
	return key, nil
}

func newSerialNumber() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // without the system's random source nothing is secure
	}
	return n
}

func encodePrivateKey(key *ecdsa.PrivateKey) ([]byte, error) { return gatewayrpc.EncodePrivateKey(key) }

// CACertPEM returns the authority's certificate as PEM.
func (p *PKI) CACertPEM() []byte { return p.caPEM }

// CertPool returns a pool that trusts only this authority.
func (p *PKI) CertPool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.caCert)
	return pool
}

// defaultLifetime is the lifetime of issued certificates.
const defaultLifetime = 90 * 24 * time.Hour

// IssueCertificate returns a new certificate and key for a role and a name, valid for server and client. hosts are
// names or addresses.
func (p *PKI) IssueCertificate(role, name string, hosts ...string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	if certPEM, err = p.signPublicKey(role, name, &key.PublicKey, hosts...); err != nil {
		return nil, nil, err
	}
	if keyPEM, err = encodePrivateKey(key); err != nil {
		return nil, nil, err
	}
	return certPEM, keyPEM, nil
}

// MutualTLSConfig issues a certificate and returns the configuration of one end of a mutual TLS connection.
func (p *PKI) MutualTLSConfig(role, name string, hosts ...string) (*tls.Config, error) {
	certPEM, keyPEM, err := p.IssueCertificate(role, name, hosts...)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	return gatewayrpc.MutualTLSConfig(pair, p.CertPool()), nil
}

// WriteCertificateFiles issues a certificate and writes it with the authority's certificate: BASE.crt, BASE.key,
// ca.crt.
func (p *PKI) WriteCertificateFiles(dir, base, role, name string, hosts ...string) (cert, key string, err error) {
	certPEM, keyPEM, err := p.IssueCertificate(role, name, hosts...)
	if err != nil {
		return "", "", err
	}
	if err := durablefile.MakeDirectory(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("write the certificate for %s: %w", name, err)
	}
	cert, key = filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key")
	for _, f := range []struct {
		path string
		data []byte
	}{{key, keyPEM}, {cert, certPEM}, {filepath.Join(dir, "ca.crt"), p.caPEM}} {
		if err := durablefile.Write(f.path, f.data, 0o600); err != nil {
			return "", "", fmt.Errorf("write the certificate for %s: %w", name, err)
		}
	}
	return cert, key, nil
}
