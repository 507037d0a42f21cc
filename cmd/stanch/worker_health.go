package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"go.temporal.io/sdk/client"

	"stanch/worker/connlimit"
)

// serveHealth serves /metrics, and /healthz, which fails while Temporal does not respond: Stanch decides nothing
// without it. "" serves nothing. stop ends it.
func serveHealth(address string, temporal client.Client, metrics http.Handler) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if _, err := temporal.CheckHealth(ctx, &client.CheckHealthRequest{}); err != nil {
			http.Error(w, "Temporal does not respond: "+strings.TrimSpace(err.Error()), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /metrics", metrics)
	server := &http.Server{
		Addr: address, Handler: mux, ReadHeaderTimeout: 2 * time.Second, ReadTimeout: 5 * time.Second,
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
