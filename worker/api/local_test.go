package api_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/api"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/guards"
)

// While the configuration is invalid during an edit, the operator can still pause, and nobody can approve.
func TestOperatorCanPauseWithInvalidConfiguration(t *testing.T) {
	dir, err := os.MkdirTemp("", "local-") // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	a, err := authority.OpenOrCreate(dir)
	require.NoError(t, err)
	file := filepath.Join(dir, "stanch.yaml")
	require.NoError(t, os.WriteFile(file, []byte("phase: 2\n"), 0o600))
	cfg, _, err := config.Load(file)
	require.NoError(t, err)
	killSwitch := &guards.FileKillSwitch{FilePath: filepath.Join(dir, "switch"), Authority: a}
	local := &api.Local{API: api.API{Service: &decisions.Service{
		Authority: a,
		Roster:    config.NewRoster(cfg, file), KillSwitch: killSwitch, Log: slog.New(slog.DiscardHandler),
	}}}
	socket := filepath.Join(dir, "s")
	l, err := api.ListenLocalSocket(socket, api.NoSocketGroup)
	require.NoError(t, err)
	server := local.HTTPServer()
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	post := func(path, body string) (int, string) {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _,
			_ string,
		) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://stanch"+path, strings.NewReader(body))
		require.NoError(t, err)
		resp, err := c.Do(r)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(text)
	}
	require.NoError(t, os.WriteFile(file, []byte("phase: [2\n"), 0o600))
	code, text := post("/v1/pause", "")
	require.Equal(t, http.StatusOK, code, text)
	stopped, _, err := killSwitch.IsPaused(t.Context())
	require.NoError(t, err)
	require.True(t, stopped)
	code, text = post("/v1/vote", `{"incident":"INC-01ARZ3NDEKTSV4RRFFQ69G5FAV","approve":true}`)
	require.Equal(t, http.StatusForbidden, code)
	require.Contains(t, text, "read the approvers")
}
