package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"stanch/sensors/gatewayrpc"
)

// apiError is an error response of Stanch.
type apiError struct {
	statusCode int
	message    string
}

// Error returns the message of the response.
func (r *apiError) Error() string { return r.message }

// apiClient calls the API of a running Stanch: on its local socket or, with a server address, in a cluster.
type apiClient struct {
	socketPath string
	drillKey   string // the key of a drill; "" outside of drills
	server     remoteServer
	pod        *podTransport // connects through the worker's pod; nil without --cluster
}

// remoteServer says how to connect to the API in a cluster.
type remoteServer struct {
	address   string // HOST:PORT; "" uses the local socket
	tokenFile string // a file with a Kubernetes token
	caFile    string // a file with the certificate authority of `stanch cert authority`
}

func (g *globalFlags) newAPIClient() *apiClient {
	c := &apiClient{socketPath: g.socketPath(), server: g.remoteServer}
	if g.clusterNamespace != "" {
		c.pod = newPodTransport(g.clusterNamespace)
	}
	return c
}

// transport returns the transport to Stanch, the base URL, and the bearer token; the token is "" on the local socket.
func (l *apiClient) transport() (t *http.Transport, base, token string, err error) {
	if l.pod != nil {
		return l.pod.transport, "http://stanch", "", nil
	}
	if l.server.address == "" {
		return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn,
			error,
		) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.socketPath)
		}}, "http://stanch", "", nil
	}
	if l.server.tokenFile == "" || l.server.caFile == "" {
		return nil, "", "", usageError{errors.New("--server requires --token-file (kubectl create token NAME " +
			"--audience stanch) and --server-ca (pki/ca.crt)")}
	}
	raw, err := os.ReadFile(l.server.tokenFile)
	if err != nil {
		return nil, "", "", fmt.Errorf("read the token: %w", err)
	}
	pem, err := os.ReadFile(l.server.caFile)
	if err != nil {
		return nil, "", "", fmt.Errorf("read the CA certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, "", "", fmt.Errorf("read the CA certificate: %s has no valid PEM certificate", l.server.caFile)
	}
	t = &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool,
		ServerName: gatewayrpc.ServerName,
	}}
	return t, "https://" + l.server.address, strings.TrimSpace(string(raw)), nil
}

func (l *apiClient) doRequest(ctx context.Context, method, path string, in, out any) error {
	transport, base, token, err := l.transport()
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 60 * time.Second, Transport: transport}
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(raw)
	}
	r, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return fmt.Errorf("create the request: %w", err)
	}
	if l.drillKey != "" {
		r.Header.Set("Stanch-Drill", l.drillKey)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return l.explainConnectError(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the response from Stanch: %w", err)
	}
	if resp.StatusCode >= 400 {
		var problem struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(raw, &problem) != nil || problem.Error == "" {
			problem.Error = resp.Status
		}
		return &apiError{statusCode: resp.StatusCode, message: problem.Error}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("read the response from Stanch: %w", err)
	}
	return nil
}

// explainConnectError returns why Stanch cannot be reached, and what to do.
func (l *apiClient) explainConnectError(err error) error {
	if l.pod != nil {
		return fmt.Errorf("connect to Stanch in the namespace %s: %w", l.pod.namespace, err)
	}
	if l.server.address != "" {
		return fmt.Errorf("connect to Stanch at %s: %w", l.server.address, err)
	}
	if errors.Is(err, fs.ErrPermission) {
		return explainSocketDenied(l.socketPath)
	}
	if _, statErr := os.Stat(l.socketPath); errors.Is(statErr, fs.ErrNotExist) {
		if l.socketPath != systemSocket && socketExists(systemSocket) {
			return fmt.Errorf("connect to Stanch: no socket at %s; to use the Stanch instance on this machine, set --data %s",
				l.socketPath, filepath.Dir(systemSocket))
		}
		return fmt.Errorf("connect to Stanch: no socket at %s; start `stanch up`, or set --data", l.socketPath)
	}
	return fmt.Errorf("connect to Stanch at %s: %w", l.socketPath, err)
}

// systemSocket is the socket of a Stanch that root runs with the default data directory.
const systemSocket = "/var/lib/stanch/stanch.sock"

// socketExists reports whether path exists. A path that this user may not read counts as existing.
func socketExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// explainSocketDenied returns the error for a socket that this user may not connect to, with how to get access.
func explainSocketDenied(path string) error {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return fmt.Errorf(
		"connect to Stanch at %s: permission denied; run this as root, or start Stanch with `stanch up --socket-group GROUP`, add yourself with `usermod -aG GROUP %s` and log in again",
		path,
		name,
	)
}

func (l *apiClient) get(ctx context.Context, path string, out any) error {
	return l.doRequest(ctx, http.MethodGet, path, nil, out)
}

func (l *apiClient) post(ctx context.Context, path string, in, out any) error {
	return l.doRequest(ctx, http.MethodPost, path, in, out)
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("print the output: %w", err)
	}
	return nil
}
