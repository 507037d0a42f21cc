package gatewayrpc

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc/gatewaypb"
)

// singleCommandGateway sends one command on each stream, then ends the stream.
type singleCommandGateway struct {
	gatewaypb.UnimplementedGatewayServer
	keys    []string
	streams chan int
}

func (g *singleCommandGateway) Node(stream grpc.BidiStreamingServer[gatewaypb.FromNode, gatewaypb.ToNode]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(
		&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Welcome{Welcome: &gatewaypb.Welcome{AuthorityKeys: g.keys}}},
	); err != nil {
		return err
	}
	err := stream.Send(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Command{Command: &gatewaypb.Command{
		Id:   "1",
		Kind: string(CommandSnapshot), DeadlineMs: 100,
	}}})
	g.streams <- 1
	return err
}

// blockingHandler blocks forever and ignores its deadline.
type blockingHandler struct{ started chan struct{} }

func (e blockingHandler) Handle(context.Context, CommandKind, []byte, attestation.Keyring) (any, []Attachment, error) {
	select {
	case e.started <- struct{}{}:
	default:
	}
	select {}
}

func TestBlockedCommandDoesNotPreventReconnect(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"gateway"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	key, err := attestation.NewSigningKey(make([]byte, 32))
	require.NoError(t, err)

	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	require.NoError(t, err)
	server := grpc.NewServer(
		grpc.Creds(
			credentials.NewTLS(
				&tls.Config{
					Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}},
					MinVersion:   tls.VersionTLS13,
				},
			),
		),
	)
	gateway := &singleCommandGateway{
		keys:    attestation.NewKeyring(key.PublicKey()).EncodeLines(),
		streams: make(chan int, 16),
	}
	gatewaypb.RegisterGatewayServer(server, gateway)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	spool, err := OpenSpool(t.TempDir(), SpoolLimits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, spool.Close()) })
	client := &Client{
		Address: listener.Addr().String(), TLS: &tls.Config{
			RootCAs: roots, ServerName: "gateway",
			MinVersion: tls.VersionTLS13,
		}, Node: "node-1",
		Spool: spool, Handler: blockingHandler{make(chan struct{}, 1)}, StatusFunc: func() any { return nil },
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	for range 2 {
		select {
		case <-gateway.streams:
		case <-time.After(10 * time.Second):
			require.Fail(t, "the node does not dial again")
		}
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		require.Fail(t, "the client does not stop")
	}
}
