// Package embeddedtemporal runs the Temporal server inside `stanch up` and `stanch temporal`: one process, one SQLite
// file, mutual TLS. It is the only package that links Temporal's server. It refuses clients without a certificate, and
// to listen on other addresses than loopback unless the caller names them.
package embeddedtemporal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v5"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"
	"google.golang.org/protobuf/types/known/durationpb"

	"stanch/sensors/durablefile"
	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
	"stanch/worker/freeport"
)

// Namespace is the Temporal namespace of `stanch up`.
const Namespace = "stanch"

// HistoryRetention is how long Temporal keeps a closed workflow's history, and its audit can be read from there.
const HistoryRetention = 90 * 24 * time.Hour

// databaseFile is the name of the SQLite file.
const databaseFile = "temporal.db"

// Server is a running Temporal.
type Server struct {
	server  temporal.Server
	polls   *longPolls
	dataDir string
	Address string // of the frontend, on loopback
	TLS     *tls.Config
}

// Options configures the server.
type Options struct {
	DataDir string // directory of the SQLite file and its certificates
	// PKI issues the certificates; CertificateDir has those that others issued, in the files of a Kubernetes secret:
	// tls.crt, tls.key, ca.crt. Exactly one of the two is set. A certificate must be valid for gatewayrpc.ServerName.
	PKI            *authority.PKI
	CertificateDir string
	Log            *slog.Logger
	// SearchAttributes are the search attributes by name.
	SearchAttributes map[string]enumspb.IndexedValueType
	// Port is the port of the frontend; 0 picks a free one.
	Port int
	// ListenIP is the address that the frontend listens on; "" means loopback only. The other services of Temporal
	// listen on loopback in any case.
	ListenIP string
	// SyncCommits syncs the database at every commit, for callers that cannot call Persist.
	SyncCommits bool
}

// certificateFiles are the files of a certificate, its key and its authority.
type certificateFiles struct{ cert, key, ca string }

// certificates returns the files of the server's certificate.
func (o Options) certificates() (f certificateFiles, err error) {
	if o.CertificateDir != "" {
		return certificateFiles{
			cert: filepath.Join(o.CertificateDir, "tls.crt"), key: filepath.Join(o.CertificateDir, "tls.key"),
			ca: filepath.Join(o.CertificateDir, "ca.crt"),
		}, nil
	}
	f.ca = filepath.Join(o.DataDir, "tls", "ca.crt")
	f.cert, f.key, err = o.PKI.WriteCertificateFiles(filepath.Join(o.DataDir, "tls"), "temporal", authority.RoleTemporal,
		"temporal", "127.0.0.1", gatewayrpc.ServerName)
	return f, err
}

// clientTLSConfig returns the configuration of a client of this server.
func (o Options) clientTLSConfig() (*tls.Config, error) {
	if o.CertificateDir == "" {
		return o.PKI.MutualTLSConfig(authority.RoleTemporal, "stanch")
	}
	return gatewayrpc.LoadTLS(o.CertificateDir, "tls")
}

// Start starts Temporal and waits until it answers.
func Start(ctx context.Context, o Options) (*Server, error) {
	if err := durablefile.MakeDirectory(o.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	files, err := o.certificates()
	if err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	clientTLS, err := o.clientTLSConfig()
	if err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	cfg, err := newServerConfig(o, files)
	if err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	if err := prepareDatabase(o, cfg); err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	logger := errorOnlyLogger{o.Log}
	claims, err := authorization.GetClaimMapperFromConfig(&cfg.Global.Authorization, logger)
	if err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	polls := newLongPolls()
	server, err := temporal.NewServer(
		temporal.WithChainedFrontendGrpcInterceptors(polls.intercept),
		temporal.WithConfig(cfg), temporal.ForServices(temporal.DefaultServices), temporal.WithLogger(logger),
		temporal.WithStaticHosts(staticServiceHosts(cfg)),
		temporal.WithAuthorizer(authorization.NewNoopAuthorizer()),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return claims }),
		temporal.WithDynamicConfigClient(newDynamicConfig()))
	if err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	s := &Server{
		server: server, polls: polls, dataDir: o.DataDir, Address: cfg.PublicClient.HostPort, TLS: clientTLS,
	}
	return s, s.waitUntilReady(ctx)
}

// waitUntilReady polls until the frontend answers.
func (s *Server) waitUntilReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var failure error // of the last attempt; that of the context would hide it
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		failure = s.CheckHealth(ctx)
		return struct{}{}, failure
	}, backoff.WithBackOff(backoff.NewConstantBackOff(20*time.Millisecond)))
	if err != nil {
		return fmt.Errorf("Temporal does not respond at %s: %w", s.Address, failure) //nolint:staticcheck // a name
	}
	return nil
}

// CheckHealth returns an error if the frontend does not answer.
func (s *Server) CheckHealth(ctx context.Context) error {
	c, err := client.DialContext(ctx, client.Options{
		HostPort: s.Address, Namespace: Namespace,
		ConnectionOptions: client.ConnectionOptions{TLS: s.TLS}, Logger: nopLogger{},
	})
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	defer c.Close()
	_, err = c.CheckHealth(ctx, &client.CheckHealthRequest{})
	return err //nolint:wrapcheck // the caller adds context
}

// Persist makes everything durable that the server has acknowledged. SQLite syncs its write-ahead log only when it
// moves the log's content into the database: without this call, a power loss takes the newest workflows and signals.
func (s *Server) Persist() error {
	return PersistDatabase(s.dataDir)
}

// PersistDatabase syncs the database in a server's data directory.
func PersistDatabase(dir string) error {
	if err := durablefile.Sync(filepath.Join(dir, databaseFile+"-wal")); err != nil {
		return fmt.Errorf("sync Temporal's database: %w", err)
	}
	return nil
}

// Stop stops the server. Running requests are completed; waiting ones end at once.
func (s *Server) Stop() error {
	s.polls.end()
	if err := s.server.Stop(); err != nil {
		return fmt.Errorf("stop Temporal: %w", err)
	}
	return nil
}

// prepareDatabase creates the schema of a new file, and the namespace in a new schema.
func prepareDatabase(o Options, cfg *config.Config) error {
	sql := cfg.Persistence.DataStores[sqliteplugin.PluginName].SQL
	if _, err := os.Stat(sql.DatabaseName); errors.Is(err, fs.ErrNotExist) {
		// A partly created schema could not be repaired: it is created in a temporary file without a log, which is then
		// written to disk and renamed.
		fresh := *sql
		fresh.DatabaseName = sql.DatabaseName + ".new"
		fresh.ConnectAttributes = map[string]string{"mode": "rwc", "journal_mode": "memory", "synchronous": "off"}
		_ = os.Remove(fresh.DatabaseName)
		err := sqlite.SetupSchema(&fresh)
		if err == nil {
			err = durablefile.Sync(fresh.DatabaseName)
		}
		if err == nil {
			err = durablefile.Rename(fresh.DatabaseName, sql.DatabaseName)
		}
		if err != nil {
			return fmt.Errorf("create the schema: %w", err)
		}
	}
	namespace, err := sqlite.NewNamespaceConfig("active", Namespace, false, o.SearchAttributes)
	if err != nil {
		return fmt.Errorf("create the namespace: %w", err)
	}
	namespace.Detail.Config.Retention = durationpb.New(HistoryRetention)
	if err := sqlite.CreateNamespaces(sql, namespace); err != nil {
		return fmt.Errorf("create the namespace: %w", err)
	}
	return nil
}

func newServerConfig(o Options, files certificateFiles) (*config.Config, error) {
	ports, err := freeport.Find("127.0.0.1", 9)
	if err != nil {
		return nil, err
	}
	if o.Port != 0 {
		ports[0] = o.Port
	}
	service := func(i int) config.Service {
		return config.Service{RPC: config.RPC{GRPCPort: ports[i], MembershipPort: ports[i+4], BindOnLocalHost: true}}
	}
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	group := config.GroupTLS{
		Server: config.ServerTLS{
			CertFile: files.cert, KeyFile: files.key, ClientCAFiles: []string{files.ca}, RequireClientAuth: true,
		},
		Client: config.ClientTLS{ServerName: gatewayrpc.ServerName, RootCAFiles: []string{files.ca}},
	}
	frontend := service(0)
	if o.ListenIP != "" {
		frontend.RPC.BindOnLocalHost, frontend.RPC.BindOnIP = false, o.ListenIP
	}
	synchronous := "normal"
	if o.SyncCommits {
		synchronous = "full"
	}
	cfg := &config.Config{}
	cfg.Global.Membership = config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: "127.0.0.1"}
	cfg.Global.TLS = config.RootTLS{Internode: group, Frontend: group, SystemWorker: config.WorkerTLS{
		CertFile: files.cert,
		KeyFile:  files.key, Client: group.Client,
	}}
	cfg.Persistence = config.Persistence{
		DefaultStore: sqliteplugin.PluginName, VisibilityStore: sqliteplugin.PluginName, NumHistoryShards: 1,
		DataStores: map[string]config.DataStore{sqliteplugin.PluginName: {SQL: &config.SQL{
			PluginName: sqliteplugin.PluginName, DatabaseName: filepath.Join(o.DataDir, databaseFile),
			// With a write-ahead log, a commit survives a crash of the process without waiting for the disk; a crash
			// of the machine may lose the last moments unless every commit is synced.
			ConnectAttributes: map[string]string{"mode": "rwc", "journal_mode": "wal", "synchronous": synchronous},
		}}},
	}
	cfg.ClusterMetadata = &cluster.Config{
		FailoverVersionIncrement: 10, MasterClusterName: "active", CurrentClusterName: "active",
		ClusterInformation: map[string]cluster.ClusterInformation{"active": {
			Enabled: true, InitialFailoverVersion: 1,
			RPCAddress: address,
		}},
	}
	cfg.DCRedirectionPolicy = config.DCRedirectionPolicy{Policy: "noop"}
	cfg.Services = map[string]config.Service{
		"frontend": frontend, "history": service(1), "matching": service(2),
		"worker": service(3),
	}
	cfg.Archival.History.State, cfg.Archival.Visibility.State = "disabled", "disabled"
	cfg.NamespaceDefaults.Archival.History.State, cfg.NamespaceDefaults.Archival.Visibility.State = "disabled", "disabled"
	cfg.PublicClient = config.PublicClient{HostPort: address}
	return cfg, nil
}

// newDynamicConfig raises limits that are meant for large clusters: with 20 polls per second, each step would take 50
// ms.
func newDynamicConfig() dynamicconfig.StaticClient {
	return dynamicconfig.StaticClient{
		dynamicconfig.TransferProcessorMaxPollRPS.Key():                  5000,
		dynamicconfig.TimerProcessorMaxPollRPS.Key():                     5000,
		dynamicconfig.VisibilityProcessorMaxPollRPS.Key():                5000,
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(): 200,
		dynamicconfig.ForceSearchAttributesCacheRefreshOnRead.Key():      true,
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():           1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key():          1,
	}
}

// staticServiceHosts returns the complete membership of the cluster. With gossip, a killed process would stay a member
// for most of a minute, and requests to it would wait.
func staticServiceHosts(cfg *config.Config) map[primitives.ServiceName]static.Hosts {
	all := map[primitives.ServiceName]static.Hosts{}
	for name, service := range cfg.Services {
		all[primitives.ServiceName(name)] = static.SingleLocalHost(fmt.Sprintf("127.0.0.1:%d", service.RPC.GRPCPort))
	}
	return all
}

var _ log.Logger = errorOnlyLogger{}
