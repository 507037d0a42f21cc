package nodeserver

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
)

func TestTooLargeCommandIsRefused(t *testing.T) {
	sent := 0
	n := &nodeConnection{
		name: "n", pendingCalls: map[string]*pendingCall{}, done: make(chan struct{}),
		sendMessage: func(*gatewaypb.ToNode) error { sent++; return context.Canceled },
	}
	h := &Server{nodes: map[string]*nodeConnection{"n": n}}
	_, err := h.Call(t.Context(), "n", gatewayrpc.CommandLock,
		map[string]string{"params": strings.Repeat("x", gatewayrpc.MaxMessageBytes)}, nil)
	require.ErrorIs(t, err, gatewayrpc.ErrRefused)
	require.NotErrorIs(t, err, activities.ErrNodeNotConnected)
	require.Zero(t, sent)
	_, err = h.Call(t.Context(), "n", gatewayrpc.CommandLock, map[string]string{}, nil)
	require.ErrorIs(t, err, activities.ErrNodeNotConnected, "a broken stream is an outage")
}
