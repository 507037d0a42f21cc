package worker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/worker/api"
	"stanch/worker/auditevents"
	"stanch/worker/authority"
	"stanch/worker/connlimit"
	"stanch/worker/nodeserver"
	"stanch/worker/sourceserver"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Limits of the nodes' port. A node has one connection with one stream, and a second one while it reconnects.
const (
	maxNodeConnections = 8192
	maxNodeStreams     = 4
	handshakeTimeout   = 5 * time.Second
)

func (w *Worker) listenNodes() error {
	if w.NodeListen == "" {
		return nil
	}
	tlsConfig, err := w.PKI.RenewingTLSConfig(authority.RoleGateway, "gateway",
		append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", w.NodeListen) //nolint:noctx // returns at once
	if err != nil {
		return fmt.Errorf("listen for nodes: %w", err)
	}
	w.NodeAddr = l.Addr().String()
	l = connlimit.NewLimitedListener(l, connlimit.Limits{MaxTotal: maxNodeConnections})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.MaxRecvMsgSize(gatewayrpc.MaxMessageBytes+4096), grpc.MaxSendMsgSize(gatewayrpc.MaxMessageBytes+4096),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 20 * time.Second, Timeout: 5 * time.Second,
			MaxConnectionIdle: time.Minute,
		}),
		// Connections without a handshake or, see above, without a stream are closed.
		grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxConcurrentStreams(maxNodeStreams), grpc.MaxHeaderListSize(16<<10))
	gatewaypb.RegisterGatewayServer(server, w.NodeServer)
	go func() {
		if err := server.Serve(l); err != nil {
			w.Log.Error("the node gateway stopped", "error", err)
		}
	}()
	w.closers = append(w.closers, server.Stop)
	return nil
}

func (w *Worker) listenSources(context.Context) error {
	if w.SourceListen == "" {
		return nil
	}
	foreign, err := sourceserver.New(w.Ingester, w.Config.Sources, w.Log)
	if err != nil {
		return err
	}
	foreign.HealthSink = w.HealthMonitor
	if w.ruleEvaluator != nil {
		foreign.AuditEvents = &auditevents.ClusterEvents{RuleEvaluator: w.ruleEvaluator, Ingester: w.Ingester, Log: w.Log}
	}
	l, err := net.Listen("tcp", w.SourceListen) //nolint:noctx // returns at once
	if err != nil {
		return fmt.Errorf("listen for detections from other sources: %w", err)
	}
	w.SourceAddr = l.Addr().String()
	l = connlimit.NewLimitedListener(l, connlimit.Limits{})
	if w.PKI != nil {
		tlsConfig, err := w.PKI.MutualTLSConfig(authority.RoleGateway, "gateway",
			append(w.NodeHosts, gatewayrpc.ServerName)...)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		l = sourceserver.NewTLSMux(l, tlsConfig)
	}
	if w.slack != nil && w.slack.SigningSecret != "" {
		foreign.Slack = w.slack
	}
	w.SourceServer = foreign
	w.serveHTTPServer(foreign.HTTPServer(), l)
	return nil
}

func (w *Worker) listenLocal(context.Context) error {
	if w.SocketPath == "" {
		return nil
	}
	group, err := api.LookUpSocketGroup(cmp.Or(w.SocketGroup, w.Config.SocketGroup))
	if err != nil {
		return err
	}
	l, err := api.ListenLocalSocket(w.SocketPath, group)
	if err != nil {
		return err
	}
	local := &api.Local{API: api.API{
		Service: w.Decisions, NodeServer: w.NodeServer, InstallationInfo: w.installationInfo(),
		ExtraRoutes: w.readRoutes(api.AuditRoutes(w.newAuditor())),
	}, DrillRegistry: w.drills}
	w.serveHTTPServer(local.HTTPServer(), connlimit.NewLimitedListener(l, connlimit.Limits{MaxTotal: 256, MaxPerPeer: 32}))
	return nil
}

// listenAPI starts the API for people in a cluster, who authenticate with a Kubernetes token.
func (w *Worker) listenAPI(context.Context) error {
	if w.APIListen == "" {
		return nil
	}
	if w.KubeClient == nil {
		return errors.New("listen for API requests: their tokens cannot be reviewed without a cluster")
	}
	tlsConfig, err := w.PKI.RenewingTLSConfig(authority.RoleGateway, "gateway",
		append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	tlsConfig.ClientAuth, tlsConfig.ClientCAs = tls.NoClientCert, nil // people authenticate with a token
	l, err := net.Listen("tcp", w.APIListen)                          //nolint:noctx // returns at once
	if err != nil {
		return fmt.Errorf("listen for API requests: %w", err)
	}
	w.APIAddr = l.Addr().String()
	l = tls.NewListener(connlimit.NewLimitedListener(l, connlimit.Limits{}), tlsConfig)
	remote := &api.Cluster{API: api.API{
		Service: w.Decisions, NodeServer: w.NodeServer, InstallationInfo: w.installationInfo(),
		ExtraRoutes: w.readRoutes(api.AuditRoutes(w.newAuditor())),
	}, Kube: w.KubeClient}
	if w.Namespace != "" && w.NodeServer.SignCSR != nil {
		remote.Enroller = &nodeserver.Enroller{
			Kube: w.KubeClient, Namespace: w.Namespace, ServiceAccount: sensorAccount,
			SignCSR: w.NodeServer.SignCSR, Log: w.Log, KeySet: w.Authority.KeySet(),
		}
	}
	w.serveHTTPServer(remote.HTTPServer(), l)
	return nil
}

func (w *Worker) serveHTTPServer(server *http.Server, l net.Listener) {
	go func() {
		if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			w.Log.Error("a server stopped", "address", l.Addr().String(), "error", err)
		}
	}()
	w.closers = append(w.closers, func() { _ = server.Close() })
}
