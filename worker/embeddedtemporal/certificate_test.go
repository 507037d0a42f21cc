package embeddedtemporal_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"

	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
)

// issueCertificate returns a directory with a certificate of a new authority, in the files of a Kubernetes secret, and
// the authority.
func issueCertificate(t *testing.T) (string, *authority.PKI) {
	t.Helper()
	pki, err := authority.OpenOrCreatePKI(filepath.Join(t.TempDir(), "pki"))
	require.NoError(t, err)
	dir := t.TempDir()
	_, _, err = pki.WriteCertificateFiles(dir, "tls", authority.RoleTemporal, "temporal", "127.0.0.1",
		gatewayrpc.ServerName)
	require.NoError(t, err)
	return dir, pki
}

// With an address, other machines reach the frontend, which then accepts certificates of its authority only.
func TestFrontendOnOtherAddressNeedsCertificate(t *testing.T) {
	dir, pki := issueCertificate(t)
	server, err := embeddedtemporal.Start(t.Context(), embeddedtemporal.Options{
		DataDir: t.TempDir(), CertificateDir: dir, ListenIP: "0.0.0.0", SyncCommits: true,
		Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop()) })
	_, port, err := net.SplitHostPort(server.Address)
	require.NoError(t, err)
	address := net.JoinHostPort("127.0.0.2", port) // not the address that Temporal uses itself

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	mutual, err := pki.MutualTLSConfig(authority.RoleTemporal, "stanch")
	require.NoError(t, err)
	c, err := client.DialContext(ctx, client.Options{
		HostPort: address, Namespace: embeddedtemporal.Namespace,
		ConnectionOptions: client.ConnectionOptions{TLS: mutual},
		Logger:            sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler)),
	})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.CheckHealth(ctx, &client.CheckHealthRequest{})
	require.NoError(t, err)

	anonymous := mutual.Clone()
	anonymous.Certificates, anonymous.GetClientCertificate = nil, nil
	require.ErrorContains(t, readFromServer(t, address, anonymous), "certificate required")

	_, other := issueCertificate(t)
	foreign, err := other.MutualTLSConfig(authority.RoleTemporal, "stanch")
	require.NoError(t, err)
	foreign.RootCAs = mutual.RootCAs // it trusts the server; the server does not trust it
	require.ErrorContains(t, readFromServer(t, address, foreign), "unknown certificate authority")
}

// readFromServer connects and reads: with TLS 1.3, a client learns only then that it is refused.
func readFromServer(t *testing.T, address string, config *tls.Config) error {
	t.Helper()
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	buffer := make([]byte, 1024)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return err
		}
	}
}
