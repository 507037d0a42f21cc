package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"

	"stanch/worker/connlimit"
	"stanch/worker/datadir"
	"stanch/worker/embeddedtemporal"
	"stanch/workflows"
)

// temporalOptions are the flags of `stanch temporal`.
type temporalOptions struct {
	listen, tlsDir, healthAddress string
}

func temporalCommand(g *globalFlags) *cobra.Command {
	o := &temporalOptions{}
	c := &cobra.Command{
		Use: "temporal", Short: "Run a small Temporal for a first installation in a cluster",
		Args: validateArgs(cobra.NoArgs),
		Long: `Run the embedded Temporal of stanch up as a server for stanch worker: one process with one SQLite
file in the data directory, and mutual TLS. It is not highly available: while it restarts,
workers decide nothing, and leases continue when it is back. For more than a first
installation use your own Temporal, on PostgreSQL or in Temporal Cloud.`,
		Example: `  stanch temporal --data /var/lib/stanch --tls /etc/stanch/temporal --listen :7233`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), g.dataDir, cmd.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:7233", "the `ADDRESS` of the frontend")
	f.StringVar(&o.tlsDir, "tls", "",
		"the `DIR` with tls.crt, tls.key and ca.crt; clients need a certificate of this authority (required)")
	f.StringVar(&o.healthAddress, "health", "",
		"the `ADDRESS` of /healthz, which fails while Temporal does not respond; \"\" for none")
	return c
}

func (o *temporalOptions) run(ctx context.Context, dataDir string, out io.Writer) (err error) {
	if o.tlsDir == "" {
		return usageError{errors.New("missing --tls; name the directory with the certificate")}
	}
	host, port, err := splitHostPort(o.listen)
	if err != nil {
		return usageError{fmt.Errorf("invalid --listen: %w", err)}
	}
	if host == "" {
		host = "0.0.0.0"
	}
	unlock, err := datadir.Lock(dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	server, err := embeddedtemporal.Start(ctx, embeddedtemporal.Options{
		DataDir: dataDir, CertificateDir: o.tlsDir, ListenIP: host, Port: port, SyncCommits: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		SearchAttributes: map[string]enumspb.IndexedValueType{
			workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	stopHealth, err := serveTemporalHealth(o.healthAddress, server)
	if err != nil {
		return err
	}
	defer stopHealth()
	fmt.Fprintf(out, "Temporal is running at %s with the namespace %s; it is not highly available\n", o.listen,
		embeddedtemporal.Namespace)
	<-ctx.Done()
	fmt.Fprintln(out, "stopping; workflows continue after the next start")
	return nil
}

// serveTemporalHealth serves /healthz. "" serves nothing. stop ends it.
func serveTemporalHealth(address string, server *embeddedtemporal.Server) (stop func(), err error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := server.CheckHealth(ctx); err != nil {
			http.Error(w, "Temporal does not respond: "+strings.TrimSpace(err.Error()), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	return serveHealthHandler(address, mux)
}

// serveHealthHandler serves a handler at the health address. "" serves nothing. stop ends it.
func serveHealthHandler(address string, handler http.Handler) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	server := &http.Server{
		Addr: address, Handler: handler, ReadHeaderTimeout: 2 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	l, err := listenTCP(address)
	if err != nil {
		return nil, fmt.Errorf("listen on the health address: %w", err)
	}
	l = connlimit.NewLimitedListener(l, connlimit.Limits{MaxTotal: 128, MaxPerPeer: 32})
	go func() { _ = server.Serve(l) }()
	return func() { _ = server.Close() }, nil
}
