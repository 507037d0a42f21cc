package gatewayrpc

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"stanch/sensors/attestation"
)

// MutualTLSConfig is the configuration of either end: both show a certificate of the pool's authority.
func MutualTLSConfig(pair tls.Certificate, pool *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: ServerName,
	}
}

// ServerName is the name that the gateway's certificate always carries, whatever its address.
const ServerName = "gateway.stanch.internal"

// LoadTLS reads NAME.crt, NAME.key and ca.crt from a directory, as Files wrote them.
func LoadTLS(dir, base string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key"))
	if err != nil {
		return nil, fmt.Errorf("read the certificate in %s: %w", dir, err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the certificate in %s: %w", dir, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(dir, "ca.crt"))
	}
	return MutualTLSConfig(pair, pool), nil
}

// AuthorityKeysFile is where a node's folder of certificates has the authority's keys.
const AuthorityKeysFile = "authority.json"

// LoadPinnedKeys pins the authority's keys that a node's folder of certificates has, unless later ones are kept in path already.
func LoadPinnedKeys(dir, path string) (*PinnedKeys, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the certificate in %s: %w", dir, err)
	}
	set, err := loadKeySet(dir)
	if err != nil {
		return nil, err
	}
	return OpenPinnedKeys(path, InstallationID(ca), set)
}

func loadKeySet(dir string) (attestation.KeySet, error) {
	var set attestation.KeySet
	raw, err := os.ReadFile(filepath.Join(dir, AuthorityKeysFile))
	if err == nil {
		err = json.Unmarshal(raw, &set)
	}
	if err == nil {
		_, err = set.Keyring()
	}
	if err != nil {
		return set, fmt.Errorf("read the authority's keys in %s: %w; issue the folder again with `stanch cert node`", dir, err)
	}
	return set, nil
}

// CertificateName is the name in the certificate of a configuration.
func CertificateName(c *tls.Config) string {
	if len(c.Certificates) == 0 || c.Certificates[0].Leaf == nil {
		return ""
	}
	return c.Certificates[0].Leaf.Subject.CommonName
}
