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

	"stanch/sensors/proof"
)

// Enrolment says how a node gets its first certificate.
type Enrolment struct {
	URL   string // of the gateway's door for people: https://HOST:PORT
	Token string // the file with the token that Kubernetes made for the sensor's pod
	CA    string // the file with the installation's authority
	Path  string // where the certificate is kept
	Pins  string // where the authority's keys are kept
}

// Open gives the node's identity and the pinned keys: those that are kept if the certificate still holds, or else new ones from
// the gateway. Pinned keys that are kept stay, whatever the gateway answers. An error that is ErrDamagedPins comes with an
// identity.
func (e Enrolment) Open(ctx context.Context) (*Identity, *Pins, error) {
	var enrolled proof.KeySet
	ca, err := os.ReadFile(e.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("read the installation's authority: %w", err)
	}
	pinned, err := OpenPins(e.Pins, Anchor(ca), enrolled)
	damaged := errors.Is(err, ErrDamagedPins)
	if err != nil && !errors.Is(err, ErrNoPins) && !damaged {
		return nil, nil, err
	}
	why := err
	identity, err := e.open(ctx, ca, pinned == nil && !damaged, &enrolled)
	if err != nil {
		return nil, nil, err
	}
	if damaged {
		return identity, nil, why
	}
	if pinned == nil {
		if pinned, err = OpenPins(e.Pins, Anchor(ca), enrolled); err != nil {
			return nil, nil, err
		}
	}
	return identity, pinned, nil
}

func (e Enrolment) open(ctx context.Context, ca []byte, anew bool, enrolled *proof.KeySet) (*Identity, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", e.CA)
	}
	if kept, err := ReadPair(e.Path); err == nil && !anew {
		i, err := NewIdentity(Mutual(kept, pool), e.Path)
		if err == nil && i.fits(kept.Leaf) == nil {
			return i, nil
		}
	}
	csr, key, err := NewRequest("")
	if err != nil {
		return nil, err
	}
	certificate, keys, err := e.ask(ctx, pool, csr)
	if err != nil {
		return nil, fmt.Errorf("enrol with the gateway at %s: %w", e.URL, err)
	}
	*enrolled = keys
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

func (e Enrolment) ask(ctx context.Context, pool *x509.CertPool, csr []byte) (string, proof.KeySet, error) {
	token, err := os.ReadFile(e.Token) // anew each time: the kubelet rotates it
	if err != nil {
		return "", proof.KeySet{}, fmt.Errorf("read the sensor's token: %w", err)
	}
	body, err := json.Marshal(map[string][]byte{"csr": csr})
	if err != nil {
		return "", proof.KeySet{}, fmt.Errorf("encode the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(e.URL, "/")+"/v1/enrol", bytes.NewReader(body))
	if err != nil {
		return "", proof.KeySet{}, fmt.Errorf("make the request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: ServerName}}
	defer transport.CloseIdleConnections()
	// No redirect is followed: the token is for nobody else.
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		return "", proof.KeySet{}, fmt.Errorf("ask: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Certificate, Error string
		Keys               proof.KeySet
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer); err != nil {
		return "", proof.KeySet{}, fmt.Errorf("the answer %s cannot be read: %w", resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK || answer.Certificate == "" {
		return "", proof.KeySet{}, errors.New(resp.Status + ": " + answer.Error)
	}
	return answer.Certificate, answer.Keys, nil
}
