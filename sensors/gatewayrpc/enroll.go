package gatewayrpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"stanch/sensors/attestation"
)

// Enrollment describes how a node gets its first certificate.
type Enrollment struct {
	GatewayURL      string // the gateway's HTTPS address: https://HOST:PORT
	TokenFile       string // the file with the service account token of the sensor's pod
	CAFile          string // the file with the installation's CA certificate
	CertificatePath string // where the certificate is stored
	PinnedKeysPath  string // where the authority's keys are stored
}

// OpenOrEnroll returns the node's certificate and its pinned keys. It uses the stored certificate if that is still
// valid, and otherwise requests a new one from the gateway. Stored pinned keys are never replaced by keys from the
// gateway. If the error wraps ErrDamagedPinnedKeys, the returned certificate is usable and the pinned keys are nil.
func (e Enrollment) OpenOrEnroll(ctx context.Context) (*NodeCertificate, *PinnedKeys, error) {
	var enrolled attestation.KeySet
	ca, err := os.ReadFile(e.CAFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the installation's authority: %w", err)
	}
	pinned, err := OpenPinnedKeys(e.PinnedKeysPath, InstallationID(ca), enrolled)
	damaged := errors.Is(err, ErrDamagedPinnedKeys)
	if err != nil && !errors.Is(err, ErrNoPinnedKeys) && !damaged {
		return nil, nil, err
	}
	why := err
	identity, err := e.openOrEnroll(ctx, ca, pinned == nil && !damaged, &enrolled)
	if err != nil {
		return nil, nil, err
	}
	if damaged {
		return identity, nil, why
	}
	if pinned == nil {
		if pinned, err = OpenPinnedKeys(e.PinnedKeysPath, InstallationID(ca), enrolled); err != nil {
			return nil, nil, err
		}
	}
	return identity, pinned, nil
}

func (e Enrollment) openOrEnroll(ctx context.Context, ca []byte, anew bool,
	enrolled *attestation.KeySet,
) (*NodeCertificate, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s contains no certificate", e.CAFile)
	}
	if kept, err := ReadKeyPair(e.CertificatePath); err == nil && !anew {
		i, err := NewNodeCertificate(MutualTLSConfig(kept, pool), e.CertificatePath)
		if err == nil && i.checkRenewal(kept.Leaf) == nil {
			return i, nil
		}
	}
	csr, key, err := NewCertificateRequest("")
	if err != nil {
		return nil, err
	}
	certificate, keys, err := e.requestCertificate(ctx, pool, csr)
	if err != nil {
		return nil, fmt.Errorf("enroll with the gateway at %s: %w", e.GatewayURL, err)
	}
	*enrolled = keys
	keyPEM, err := EncodePrivateKey(key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair([]byte(certificate), keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the gateway's certificate does not match the request: %w", err)
	}
	if err := WriteKeyPair(e.CertificatePath, []byte(certificate), keyPEM); err != nil {
		return nil, err
	}
	return NewNodeCertificate(MutualTLSConfig(pair, pool), e.CertificatePath)
}

func (e Enrollment) requestCertificate(ctx context.Context, pool *x509.CertPool, csr []byte) (string,
	attestation.KeySet, error,
) {
	token, err := os.ReadFile(e.TokenFile) // The token is read for every request, because the kubelet rotates it.
	if err != nil {
		return "", attestation.KeySet{}, fmt.Errorf("read the sensor's token: %w", err)
	}
	body, err := json.Marshal(map[string][]byte{"csr": csr})
	if err != nil {
		return "", attestation.KeySet{}, fmt.Errorf("encode the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(e.GatewayURL, "/")+"/v1/enroll",
		bytes.NewReader(body))
	if err != nil {
		return "", attestation.KeySet{}, fmt.Errorf("create the request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool,
		ServerName: ServerName,
	}}
	defer transport.CloseIdleConnections()
	// Redirects are not followed, so that the token is sent to the gateway only.
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request,
		[]*http.Request,
	) error {
		return http.ErrUseLastResponse
	}}
	resp, err := client.Do(r)
	if err != nil {
		return "", attestation.KeySet{}, fmt.Errorf("send the request: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Certificate string             `json:"certificate"`
		Error       string             `json:"error"`
		Keys        attestation.KeySet `json:"keys"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer); err != nil {
		return "", attestation.KeySet{}, fmt.Errorf("decode the response %s: %w", resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK || answer.Certificate == "" {
		return "", attestation.KeySet{}, errors.New(resp.Status + ": " + answer.Error)
	}
	return answer.Certificate, answer.Keys, nil
}
