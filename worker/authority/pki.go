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

	"stanch/sensors/gatewayrpc"
)

// PKI is the certificate authority of one installation. It issues certificates for the gateway, the nodes and, in
// `stanch up`, the client of the embedded Temporal. Its key is in a directory that only the owner may read.
type PKI struct {
	dir    string
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
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificates: %w", err)
	}
	p := &PKI{dir: dir}
	raw, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, p.createCA()
	}
	if err != nil {
		return nil, fmt.Errorf("open certificates: %w", err)
	}
	keyRaw, err := os.ReadFile(filepath.Join(dir, "ca.key"))
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
	p.caCert, p.caKey, p.caPEM = pair.Leaf, key, raw
	return p, nil
}

func (p *PKI) createCA() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("create a key: %w", err)
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
	if p.caCert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("create the certificate authority: %w", err)
	}
	p.caKey, p.caPEM = key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM, err := encodePrivateKey(key)
	if err != nil {
		return err
	}
	// The key is written first: after a crash in between, the next start creates a new authority, and never one without
	// its key.
	if err := os.WriteFile(filepath.Join(p.dir, "ca.key"), keyPEM, 0o600); err != nil {
		return fmt.Errorf("store the certificate authority: %w", err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "ca.crt"), p.caPEM, 0o600); err != nil {
		return fmt.Errorf("store the certificate authority: %w", err)
	}
	return nil
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

// certLifetime is the lifetime of issued certificates.
const certLifetime = 90 * 24 * time.Hour

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
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("write the certificate for %s: %w", name, err)
	}
	cert, key = filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key")
	for path, data := range map[string][]byte{cert: certPEM, key: keyPEM, filepath.Join(dir, "ca.crt"): p.caPEM} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return "", "", fmt.Errorf("write the certificate for %s: %w", name, err)
		}
	}
	return cert, key, nil
}
