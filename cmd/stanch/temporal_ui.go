package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"github.com/temporalio/ui-server/v2/server"
	uiconfig "github.com/temporalio/ui-server/v2/server/config"
	"github.com/temporalio/ui-server/v2/server/server_options"

	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
	"stanch/worker/freeport"
)

// temporalUIConfig provides the configuration of Temporal's web UI.
type temporalUIConfig struct{ uiconfig.Config }

// GetConfig returns the configuration.
func (c temporalUIConfig) GetConfig() (*uiconfig.Config, error) { return &c.Config, nil }

// startTemporalUI serves Temporal's web UI, read-only, until ctx ends, and returns its address. "" starts none.
// Payloads are encrypted: the UI shows what ran and when.
func startTemporalUI(ctx context.Context, address string, temporal *embeddedtemporal.Server, pki *authority.PKI,
	dir string,
) (string, error) {
	if address == "" {
		return "", nil
	}
	host, port, err := splitHostPort(address)
	if err != nil {
		return "", err
	}
	if port == 0 {
		ports, err := freeport.Find(host, 1)
		if err != nil {
			return "", err
		}
		port = ports[0]
	}
	cert, key, err := pki.WriteCertificateFiles(dir, "ui", authority.RoleTemporal, "ui")
	if err != nil {
		return "", err
	}
	s := server.NewServer(server_options.WithConfigProvider(temporalUIConfig{uiconfig.Config{
		TemporalGRPCAddress: temporal.Address, Host: host, Port: port, EnableUI: true,
		DefaultNamespace:    embeddedtemporal.Namespace,
		DisableWriteActions: true, WorkflowTerminateDisabled: true, WorkflowCancelDisabled: true,
		WorkflowSignalDisabled: true, WorkflowUpdateDisabled: true,
		WorkflowResetDisabled: true, WorkflowPauseDisabled: true, BatchActionsDisabled: true, StartWorkflowDisabled: true,
		ActivityCommandsDisabled: true,
		HideLogs:                 true, DisableNewsFetch: true,
		CORS: uiconfig.CORS{CookieInsecure: true},
		TLS: uiconfig.TLS{
			CaFile: filepath.Join(dir, "ca.crt"), CertFile: cert, KeyFile: key, EnableHostVerification: true,
			ServerName: gatewayrpc.ServerName,
		},
	}}))
	go func() { _ = s.Start() }()
	context.AfterFunc(ctx, s.Stop)
	return net.JoinHostPort(host, fmt.Sprint(port)), nil
}
