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

// MutualTLSConfig returns the TLS 1.3 configuration for either side of the connection: both present a certificate that
// is signed by an authority in pool.
func MutualTLSConfig(pair tls.Certificate, pool *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: ServerName,
	}
}

// ServerName is a name that the gateway's certificate always contains, whatever its address.
const ServerName = "gateway.stanch.internal"

// LoadTLS reads base.crt, base.key and ca.crt from dir and returns a mutual TLS configuration.
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
		return nil, fmt.Errorf("%s contains no certificate", filepath.Join(dir, "ca.crt"))
	}
	return MutualTLSConfig(pair, pool), nil
}

// AuthorityKeysFile is the name of the file with the authority's keys in a node's certificate directory.
const AuthorityKeysFile = "authority.json"

// LoadPinnedKeys pins the authority's keys from a node's certificate directory, unless path already contains keys.
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
		return set,
			fmt.Errorf("read the authority's keys in %s: %w; create the directory again with `stanch cert node`", dir, err)
	}
	return set, nil
}
