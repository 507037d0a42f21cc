package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"stanch/playbooks"
	"stanch/worker"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/worker/embeddedtemporal"
)

// SocketPath is the path of the local API.
func (s *Harness) SocketPath() string { return filepath.Join(s.DataDir, "stanch.sock") }

// Get sends a GET request to the local API.
func (s *Harness) Get(path string, out any) error { return s.callAPI(http.MethodGet, path, nil, out) }

// Post sends a POST request to the local API.
func (s *Harness) Post(path string, in, out any) error {
	return s.callAPI(http.MethodPost, path, in, out)
}

func (s *Harness) callAPI(method, path string, in, out any) error {
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.SocketPath())
		},
	}}
	raw, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	r, err := http.NewRequestWithContext(context.Background(), method, "http://stanch"+path, bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	resp, err := c.Do(r)
	if err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if raw, err = io.ReadAll(resp.Body); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	if resp.StatusCode >= 400 {
		return errors.New(strings.TrimSpace(string(raw)))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// IncidentsAbout returns the incidents, open or closed, about a container.
func (s *Harness) IncidentsAbout(container string) ([]playbooks.Incident, error) {
	var list []playbooks.Incident
	if err := s.Get("/v1/incidents", &list); err != nil {
		return nil, err
	}
	var out []playbooks.Incident
	for _, in := range list {
		for _, target := range in.Targets {
			if target.UID != container {
				continue
			}
			var whole playbooks.Incident
			if err := s.Get("/v1/incidents/"+in.ID, &whole); err != nil {
				return nil, err
			}
			out = append(out, whole)
		}
	}
	return out, nil
}

// WaitForIncident polls until the container's incident satisfies a condition. Otherwise the test fails with the current
// state.
func (s *Harness) WaitForIncident(t testing.TB, container string, limit time.Duration, what string,
	ok func(playbooks.Incident) bool,
) playbooks.Incident {
	t.Helper()
	var last playbooks.Incident
	var lastErr error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		found, err := s.IncidentsAbout(container)
		if err != nil {
			lastErr = err
			continue
		}
		for _, in := range found {
			last = in
			if ok(in) {
				return in
			}
		}
	}
	story, _ := json.MarshalIndent(last, "", " ")
	require.Fail(t, "never: "+what, "last error: %v\nlast seen: %s", lastErr, story)
	return last
}

// TemporalClient connects to Stanch's Temporal with a client certificate, with or without the payload codec's key. It
// never has the authority's key.
func (s *Harness) TemporalClient(t testing.TB, withKey bool) client.Client {
	t.Helper()
	address, err := os.ReadFile(filepath.Join(s.DataDir, "temporal", "address"))
	require.NoError(t, err)
	pki, err := authority.OpenOrCreatePKI(filepath.Join(s.DataDir, "pki", "temporal"))
	require.NoError(t, err)
	tlsConfig, err := pki.MutualTLSConfig(authority.RoleTemporal, "intruder")
	require.NoError(t, err)
	o := client.Options{
		HostPort: strings.TrimSpace(string(address)), Namespace: embeddedtemporal.Namespace,
		Logger: discardLogger{}, ConnectionOptions: client.ConnectionOptions{TLS: tlsConfig},
	}
	if withKey {
		o, err = worker.SecureClientOptions(o, filepath.Join(s.DataDir, "keys"))
		require.NoError(t, err)
	}
	c, err := client.Dial(o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// DataConverter returns a converter that decrypts Stanch's payloads with the codec's key.
func (s *Harness) DataConverter(t testing.TB) converter.DataConverter {
	t.Helper()
	c, err := codec.Open(filepath.Join(s.DataDir, "keys"))
	require.NoError(t, err)
	return c.DataConverter()
}

type discardLogger struct{}

func (discardLogger) Debug(string, ...any) {}
func (discardLogger) Info(string, ...any)  {}
func (discardLogger) Warn(string, ...any)  {}
func (discardLogger) Error(string, ...any) {}
