package freeport

import (
	"fmt"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPortsAreDifferentAndFree(t *testing.T) {
	ports, err := Find("127.0.0.1", 50)
	require.NoError(t, err)
	require.Len(t, ports, 50)
	for _, port := range ports {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		require.NoError(t, err)
		defer func() { _ = l.Close() }()
	}
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(ports))), 50)
}

func TestPortsAreNotThoseOfOutgoingConnections(t *testing.T) {
	var low, high int
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	require.NoError(t, err)
	_, err = fmt.Sscan(string(raw), &low, &high)
	require.NoError(t, err)
	if low < 11_000 && high > 64_500 {
		t.Skip("this machine uses every port for outgoing connections")
	}
	ports, err := Find("127.0.0.1", 100)
	require.NoError(t, err)
	for _, port := range ports {
		require.True(t, port < low || port > high, "port %d is in %d to %d", port, low, high)
	}
}

func TestUnknownAddressIsAnError(t *testing.T) {
	_, err := Find("192.0.2.1", 1) // an address of no machine
	require.ErrorContains(t, err, "find a free port")
}
