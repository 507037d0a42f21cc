package main

import (
	"fmt"
	"net"
	"strconv"
)

// listenTCP listens on a TCP address.
func listenTCP(
	address string,
) (net.Listener, error) {
	return net.Listen("tcp", address)
} //nolint:noctx,wrapcheck // at once

// splitHostPort splits HOST:PORT with a numeric port.
func splitHostPort(address string) (string, int, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("invalid address %q: %w", address, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return "", 0, fmt.Errorf("invalid address %q: %w", address, err)
	}
	return host, port, nil
}
