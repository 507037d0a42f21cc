package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"go.temporal.io/sdk/client"

	"stanch/worker/installation"
)

// leaseSource counts the leases in force by action, and says which Temporal has them.
type leaseSource struct {
	count    func(ctx context.Context) (map[string]int, error)
	temporal string // HOST:PORT/NAMESPACE
}

// leaseCacheTime is how long a count is used again. A lease that starts in between is as one that starts after the
// check.
const leaseCacheTime = 2 * time.Second

// cachedLeases counts one at a time, and seldom: whoever can reach the address must not be able to flood Temporal.
type cachedLeases struct {
	source leaseSource
	free   chan struct{} // holds a value while a request counts

	actions map[string]int
	at      time.Time
}

func (c *cachedLeases) get(ctx context.Context) (map[string]int, error) {
	select {
	case c.free <- struct{}{}:
		defer func() { <-c.free }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if time.Since(c.at) < leaseCacheTime {
		return c.actions, nil
	}
	actions, err := c.source.count(ctx)
	if err == nil {
		c.actions, c.at = actions, time.Now()
	}
	return actions, err
}

// serveHealth serves /metrics; /healthz, which fails while Temporal does not respond: Stanch decides nothing without
// it; and the number of leases in force, which the chart asks before it takes permissions away. "" serves nothing.
// stop ends it.
func serveHealth(address string, temporal client.Client, leases leaseSource, metrics http.Handler) (stop func(),
	err error,
) {
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
	counted := &cachedLeases{source: leases, free: make(chan struct{}, 1)}
	mux.HandleFunc("GET "+installation.LeasesPath, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
		defer cancel()
		actions, err := counted.get(ctx)
		if err != nil {
			http.Error(w, "the leases cannot be read: "+strings.TrimSpace(err.Error()), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(installation.LeasesInForce{Actions: actions, Temporal: leases.temporal})
	})
	mux.Handle("GET /metrics", metrics)
	return serveHealthHandler(address, mux)
}
