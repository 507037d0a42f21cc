// Package freeport finds TCP ports for servers that can only be given a number.
//
// It never picks a port that the kernel could give to an outgoing connection before the server listens. A server that
// accepts a listener should get that instead.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

// Find returns count different ports of an IP address on which nothing listens.
func Find(ip string, count int) (ports []int, err error) {
	first, last := searchRange()
	// All stay in use until the last one is found, so that none is found twice.
	var open []net.Listener
	defer func() {
		for _, l := range open {
			err = errors.Join(err, l.Close())
		}
	}()
	const attempts = 100
	for failures := 0; len(ports) < count; {
		port := first + rand.IntN(last-first+1)                               //nolint:gosec // a collision is tried again
		l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port))) //nolint:noctx // returns at once
		if err != nil {
			if failures++; failures >= attempts {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
			continue
		}
		open, ports = append(open, l), append(ports, port)
	}
	return ports, nil
}

// searchRange returns the range of ports to choose from: below the ports of outgoing connections, and below those of
// Kubernetes services, or above both.
func searchRange() (first, last int) {
	const lowest, services, highest, enough = 12_000, 30_000, 65_535, 1000
	low, high := 32768, 60999 // the kernel's default
	if raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(raw), &low, &high)
	}
	if end := min(low, services) - 1; end-lowest >= enough {
		return lowest, end
	}
	if highest-high >= enough {
		return high + 1, highest
	}
	return lowest, highest // every port can be taken by a connection
}
