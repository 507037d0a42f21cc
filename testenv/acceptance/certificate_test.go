package acceptance

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/testenv/harness"
	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
)

// A compromised node has only its own certificate: it can neither impersonate another node nor connect to Temporal.
func TestNodeCertificateIsLimitedToItsNode(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{})
	pki, err := authority.OpenOrCreatePKI(filepath.Join(s.DataDir, "pki"))
	require.NoError(t, err)
	found := regexp.MustCompile(`nodes +(\S+)`).FindStringSubmatch(s.Output())
	require.NotEmpty(t, found)

	say := func(certificate, hello string, role string) error {
		tlsConfig, err := pki.MutualTLSConfig(role, certificate)
		require.NoError(t, err)
		tlsConfig.ServerName = gatewayrpc.ServerName
		conn, err := grpc.NewClient(found[1], grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		stream, err := gatewaypb.NewGatewayClient(conn).Node(ctx)
		if err != nil {
			return err //nolint:wrapcheck // the test shows it
		}
		if err := stream.Send(
			&gatewaypb.FromNode{Body: &gatewaypb.FromNode_Hello{Hello: &gatewaypb.Hello{Node: hello}}},
		); err != nil {
			return err //nolint:wrapcheck // the test shows it
		}
		_, err = stream.Recv()
		return err //nolint:wrapcheck // the test shows it
	}
	require.NoError(t, say("node-a", "node-a", authority.RoleNode), "it is itself")
	require.ErrorContains(t, say("node-a", "node-b", authority.RoleNode), "the hello message names")
	require.ErrorContains(t, say("node-a", "", authority.RoleNode), "the hello message names")
	require.ErrorContains(t, say("someone", "someone", authority.RoleTemporal), "is not a node")

	address, err := os.ReadFile(filepath.Join(s.DataDir, "temporal", "address"))
	require.NoError(t, err)
	// Not even the installation's authority itself opens Temporal, which trusts one of its own.
	for _, role := range []string{authority.RoleNode, authority.RoleGateway, authority.RoleTemporal} {
		require.Error(t, dialTemporalWithRole(t, pki, role, strings.TrimSpace(string(address))),
			"Temporal takes a certificate of the role %s", role)
	}
	inner, err := authority.OpenOrCreatePKI(filepath.Join(s.DataDir, "pki", "temporal"))
	require.NoError(t, err)
	require.NoError(t, dialTemporalWithRole(t, inner, authority.RoleTemporal, strings.TrimSpace(string(address))),
		"its own opens it")
}

// dialTemporalWithRole asks Temporal for something with a certificate.
func dialTemporalWithRole(t *testing.T, pki *authority.PKI, role, address string) error {
	t.Helper()
	tlsConfig, err := pki.MutualTLSConfig(role, "node-a")
	require.NoError(t, err)
	c, err := client.Dial(client.Options{
		HostPort: address, Namespace: embeddedtemporal.Namespace,
		ConnectionOptions: client.ConnectionOptions{TLS: tlsConfig},
	})
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = c.CheckHealth(ctx, nil)
		c.Close()
	}
	return err //nolint:wrapcheck // the test shows it
}
