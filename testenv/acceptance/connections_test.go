package acceptance

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/harness"
)

// Silent connections to the node port are closed, and do not block other clients.
func TestSilentConnectionsAreClosed(t *testing.T) {
	address := harness.FreePort(t)
	s := harness.New(t, stanchBinary, harness.Options{Args: []string{"--no-sensor", "--listen-nodes", address}})
	s.StartProcess(t)
	require.Eventually(t, func() bool { var nodes map[string]any; return s.Get("/v1/nodes", &nodes) == nil }, time.Minute,
		50*time.Millisecond)
	var open []net.Conn
	for range 500 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		open = append(open, c)
	}
	deadline := time.Now().Add(20 * time.Second)
	for n, c := range open {
		require.NoError(t, c.SetReadDeadline(deadline))
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err)
		require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "connection %d is still open", n)
	}
}
