package link

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

	"stanch/sensors/link/linkpb"
	"stanch/sensors/proof"
)

// shortGateway sends one command on each stream and ends it.
type shortGateway struct {
	linkpb.UnimplementedGatewayServer
	keys    []string
	streams chan int
}

func (g *shortGateway) Node(stream grpc.BidiStreamingServer[linkpb.FromNode, linkpb.ToNode]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&linkpb.ToNode{Body: &linkpb.ToNode_Welcome{Welcome: &linkpb.Welcome{AuthorityKeys: g.keys}}}); err != nil {
		return err
	}
	err := stream.Send(&linkpb.ToNode{Body: &linkpb.ToNode_Command{Command: &linkpb.Command{Id: "1", Kind: string(CommandSnapshot), DeadlineMs: 100}}})
	g.streams <- 1
	return err
}

// endless is a handler that waits for something that never comes, and for no deadline.
type endless struct{ began chan struct{} }

func (e endless) Handle(context.Context, CommandKind, []byte, proof.Keyring) (any, []Blob, error) {
	select {
	case e.began <- struct{}{}:
	default:
	}
	select {}
}

func TestACommandThatNeverEndsDoesNotKeepTheNodeFromDialing(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"gateway"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	key, err := proof.NewKey(make([]byte, 32))
	require.NoError(t, err)

	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	require.NoError(t, err)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}, MinVersion: tls.VersionTLS13})))
	gateway := &shortGateway{keys: proof.NewKeyring(key.Public()).Lines(), streams: make(chan int, 16)}
	linkpb.RegisterGatewayServer(server, gateway)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	spool, err := OpenSpool(t.TempDir(), SpoolLimit{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, spool.Close()) })
	client := &Client{
		Address: listener.Addr().String(), TLS: &tls.Config{RootCAs: roots, ServerName: "gateway", MinVersion: tls.VersionTLS13}, Node: "node-1",
		Spool: spool, Handler: endless{make(chan struct{}, 1)}, Status: func() any { return nil },
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
		require.Fail(t, "the node does not end")
	}
}
