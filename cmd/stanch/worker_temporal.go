package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"stanch/worker"
	"stanch/workflows"
)

// temporalTLSConfig returns the TLS configuration for Temporal; nil, for a connection without TLS, if no TLS flag is
// set.
func (o *workerOptions) temporalTLSConfig() (*tls.Config, error) {
	if o.tlsDir != "" {
		o.tlsCert, o.tlsKey = filepath.Join(o.tlsDir, "tls.crt"), filepath.Join(o.tlsDir, "tls.key")
		if ca := filepath.Join(o.tlsDir, "ca.crt"); o.tlsCA == "" && fileExists(ca) {
			o.tlsCA = ca
		}
	}
	if o.tlsCert == "" && o.tlsCA == "" {
		if o.apiKeyFile != "" { // a key must not travel in clear
			return &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.tlsServer}, nil
		}
		return nil, nil //nolint:nilnil // nil is a connection without TLS
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.tlsServer}
	if o.tlsCert != "" {
		pair, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for Temporal: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if o.tlsCA != "" {
		raw, err := os.ReadFile(o.tlsCA)
		if err != nil {
			return nil, fmt.Errorf("read Temporal's CA certificate: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("read Temporal's CA certificate: %s has no valid PEM certificate", o.tlsCA)
		}
	}
	return c, nil
}

// apiKeyCredentials returns credentials that read the API key for each request; nil without a key.
func (o *workerOptions) apiKeyCredentials() (client.Credentials, error) {
	if o.apiKeyFile == "" {
		return nil, nil //nolint:nilnil // nil is a connection without an API key
	}
	read := func(context.Context) (string, error) {
		raw, err := os.ReadFile(o.apiKeyFile)
		if err != nil {
			return "", fmt.Errorf("read the API key for Temporal: %w", err)
		}
		key := strings.TrimSpace(string(raw))
		if key == "" {
			return "", fmt.Errorf("read the API key for Temporal: %s is empty", o.apiKeyFile)
		}
		return key, nil
	}
	if _, err := read(context.Background()); err != nil {
		return nil, err
	}
	return client.NewAPIKeyDynamicCredentials(read), nil
}

// dialTemporal connects to Temporal with encrypted payloads, and registers the search attribute of incidents.
func (o *workerOptions) dialTemporal(ctx context.Context, log *slog.Logger,
	instrument func(client.Options) client.Options,
) (client.Client, error) {
	tlsConfig, err := o.temporalTLSConfig()
	if err != nil {
		return nil, err
	}
	credentials, err := o.apiKeyCredentials()
	if err != nil {
		return nil, err
	}
	options, err := worker.SecureClientOptions(client.Options{
		HostPort: o.temporalAddress, Namespace: o.namespace, Logger: temporalLogger{log}, Credentials: credentials,
		ConnectionOptions: client.ConnectionOptions{TLS: tlsConfig},
	}, o.keysDir)
	if err != nil {
		return nil, err
	}
	temporal, err := o.waitForTemporal(ctx, log, instrument(options))
	if err != nil {
		return nil, fmt.Errorf("connect to Temporal at %s: %w", o.temporalAddress, err)
	}
	if err := registerSearchAttribute(ctx, temporal, o.namespace); err != nil {
		temporal.Close()
		return nil, err
	}
	return temporal, nil
}

// waitForTemporal connects, and tries again until --temporal-wait has passed: in a cluster, Temporal may start after
// the worker.
func (o *workerOptions) waitForTemporal(ctx context.Context, log *slog.Logger, options client.Options) (client.Client,
	error,
) {
	waiting := o.temporalWait > 0
	var failure error // of the last attempt; that of the context would hide it
	temporal, err := backoff.Retry(ctx, func() (client.Client, error) {
		var temporal client.Client
		temporal, failure = client.DialContext(ctx, options)
		if failure != nil && !waiting {
			return nil, backoff.Permanent(failure)
		}
		return temporal, failure
	}, backoff.WithBackOff(backoff.NewConstantBackOff(time.Second)), backoff.WithMaxElapsedTime(o.temporalWait),
		backoff.WithNotify(func(err error, _ time.Duration) {
			log.Info("Temporal does not respond yet", "address", o.temporalAddress, "error", err)
		}))
	if err != nil {
		return nil, failure
	}
	return temporal, nil
}

// registerSearchAttribute creates the search attribute that finds incidents, unless it exists.
func registerSearchAttribute(ctx context.Context, temporal client.Client, namespace string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	hint := fmt.Sprintf("; an administrator of Temporal can create it with `temporal operator search-attribute "+
		"create --namespace %s --name %s --type Keyword`", namespace, workflows.IncidentSearchAttribute)
	have, err := temporal.OperatorService().ListSearchAttributes(ctx,
		&operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	var noNamespace *serviceerror.NamespaceNotFound
	if errors.As(err, &noNamespace) {
		return fmt.Errorf("find the namespace %s in Temporal: %w; create it with `temporal operator namespace "+
			"create --namespace %s --retention 90d`",
			namespace, err, namespace)
	}
	if err == nil {
		if _, ok := have.GetCustomAttributes()[workflows.IncidentSearchAttribute]; ok {
			return nil
		}
		_, err = temporal.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
			Namespace: namespace,
			SearchAttributes: map[string]enumspb.IndexedValueType{
				workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
			},
		})
		var there *serviceerror.AlreadyExists
		if errors.As(err, &there) {
			return nil // another replica created it
		}
	}
	if err != nil {
		return fmt.Errorf("create the search attribute %s: %w%s", workflows.IncidentSearchAttribute, err, hint)
	}
	return nil
}
