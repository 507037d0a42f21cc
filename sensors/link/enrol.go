package link

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
)

// Enrolment says how a node gets its first certificate.
type Enrolment struct {
	URL   string // of the gateway's door for people: https://HOST:PORT
	Token string // the file with the token that Kubernetes made for the sensor's pod
	CA    string // the file with the installation's authority
	Path  string // where the certificate is kept
}

// Open gives the node's identity: the one that is kept if it still holds, or else a new one from the gateway.
func (e Enrolment) Open(ctx context.Context) (*Identity, error) {
	ca, err := os.ReadFile(e.CA)
	if err != nil {
		return nil, fmt.Errorf("read the installation's authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", e.CA)
	}
	if kept, err := ReadPair(e.Path); err == nil {
		i, err := NewIdentity(Mutual(kept, pool), e.Path)
		if err == nil && i.fits(kept.Leaf) == nil {
			return i, nil
		}
	}
	csr, key, err := NewRequest("")
	if err != nil {
		return nil, err
	}
	certificate, err := e.ask(ctx, pool, csr)
	if err != nil {
		return nil, fmt.Errorf("enrol with the gateway at %s: %w", e.URL, err)
	}
	keyPEM, err := EncodeKey(key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair([]byte(certificate), keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the gateway's certificate does not belong to the request: %w", err)
	}
	if err := WritePair(e.Path, []byte(certificate), keyPEM); err != nil {
		return nil, err
	}
	return NewIdentity(Mutual(pair, pool), e.Path)
}

func (e Enrolment) ask(ctx context.Context, pool *x509.CertPool, csr []byte) (string, error) {
	token, err := os.ReadFile(e.Token) // anew each time: the kubelet rotates it
	if err != nil {
		return "", fmt.Errorf("read the sensor's token: %w", err)
	}
	body, err := json.Marshal(map[string][]byte{"csr": csr})
	if err != nil {
		return "", fmt.Errorf("encode the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(e.URL, "/")+"/v1/enrol", bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("make the request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: ServerName}}
	defer transport.CloseIdleConnections()
	// No redirect is followed: the token is for nobody else.
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		return "", fmt.Errorf("ask: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct{ Certificate, Error string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer); err != nil {
		return "", fmt.Errorf("the answer %s cannot be read: %w", resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK || answer.Certificate == "" {
		return "", errors.New(resp.Status + ": " + answer.Error)
	}
	return answer.Certificate, nil
}
