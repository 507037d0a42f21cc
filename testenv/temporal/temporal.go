// Package temporal starts a real Temporal with the workflows of a test.
//
// It refuses to fake Temporal: lists, queries and terminations are its own.
package temporal

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
	"stanch/workflows"
)

// Server is a Temporal server with a worker for the given workflows.
type Server struct {
	client.Client
	t testing.TB
}

// Start starts a server and stops it when the test ends. kinds are workflow functions by type name.
func Start(t testing.TB, kinds map[string]any) *Server {
	t.Helper()
	dir := t.TempDir()
	pki, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
	require.NoError(t, err)
	server, err := embeddedtemporal.Start(context.Background(), embeddedtemporal.Options{
		DataDir: dir,
		PKI:     pki,
		Log:     slog.New(slog.DiscardHandler),
		SearchAttributes: map[string]enumspb.IndexedValueType{
			workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	c, err := client.Dial(client.Options{
		HostPort: server.Address, Namespace: embeddedtemporal.Namespace,
		ConnectionOptions: client.ConnectionOptions{TLS: server.TLS},
		Logger:            sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler)),
	})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	w := sdkworker.New(c, workflows.TaskQueue, sdkworker.Options{})
	for name, f := range kinds {
		w.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)
	return &Server{Client: c, t: t}
}

// StartWorkflow starts a workflow of an incident.
func (s *Server) StartWorkflow(kind, id, incident string, in ...any) client.WorkflowRun {
	s.t.Helper()
	o := client.StartWorkflowOptions{ID: id, TaskQueue: workflows.TaskQueue}
	if incident != "" {
		o.TypedSearchAttributes = temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword(workflows.IncidentSearchAttribute).ValueSet(incident),
		)
	}
	run, err := s.ExecuteWorkflow(context.Background(), o, kind, in...)
	require.NoError(s.t, err)
	return run
}

// WaitUntilListed waits until n workflows of a type and status are listed, because lists lag behind.
func (s *Server) WaitUntilListed(kind, status string, n int) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		page, err := s.ListWorkflow(context.Background(),
			&workflowservice.ListWorkflowExecutionsRequest{Query: fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus = '%s'",
				kind, status)})
		return err == nil && len(page.GetExecutions()) == n
	}, 20*time.Second, 50*time.Millisecond, "%d %s are listed as %s", n, kind, status)
}
