// Command histories writes the histories of a running `stanch up` to files for the replay tests: every closed workflow
// of the replayed types, and the payload key that decrypts them.
//
// It must only run on a data directory that was created for this purpose: the key is committed to the repository.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: histories DATA OUT")
		os.Exit(2)
	}
	if err := writeHistories(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "histories:", err)
		os.Exit(1)
	}
}

func writeHistories(ctx context.Context, data, out string) error {
	pki, err := authority.OpenOrCreatePKI(filepath.Join(data, "pki", "temporal"))
	if err != nil {
		return err
	}
	tlsConfig, err := pki.MutualTLSConfig(authority.RoleTemporal, "histories")
	if err != nil {
		return err
	}
	address, err := os.ReadFile(filepath.Join(data, "temporal", "address"))
	if err != nil {
		return fmt.Errorf("find Temporal: %w", err)
	}
	c, err := client.DialContext(ctx, client.Options{
		HostPort:  strings.TrimSpace(string(address)),
		Namespace: embeddedtemporal.Namespace, ConnectionOptions: client.ConnectionOptions{TLS: tlsConfig},
	})
	if err != nil {
		return fmt.Errorf("connect to Temporal: %w", err)
	}
	defer c.Close()
	if err := os.MkdirAll(out, 0o750); err != nil {
		return fmt.Errorf("write histories: %w", err)
	}
	key, err := os.ReadFile(filepath.Join(data, "keys", "codec.key"))
	if err != nil {
		return fmt.Errorf("write histories: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, "codec.key"), key, 0o600); err != nil {
		return fmt.Errorf("write histories: %w", err)
	}
	list, err := c.ListWorkflow(
		ctx,
		&workflowservice.ListWorkflowExecutionsRequest{Query: "WorkflowType IN ('Incident', 'Playbook', 'Lease')"},
	)
	if err != nil {
		return fmt.Errorf("list workflows: %w", err)
	}
	ids := map[string]string{}
	for i, w := range list.GetExecutions() {
		history := &historypb.History{}
		for it := c.GetWorkflowHistory(ctx, w.GetExecution().GetWorkflowId(), w.GetExecution().GetRunId(), false,
			enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); it.HasNext(); {
			event, err := it.Next()
			if err != nil {
				return fmt.Errorf("read a history: %w", err)
			}
			history.Events = append(history.Events, event)
		}
		raw, err := temporalproto.CustomJSONMarshalOptions{}.Marshal(history)
		if err != nil {
			return fmt.Errorf("write a history: %w", err)
		}
		name := fmt.Sprintf("%s-%02d.json", strings.ToLower(w.GetType().GetName()), i)
		if err := os.WriteFile(filepath.Join(out, name), append(raw, '\n'), 0o600); err != nil {
			return fmt.Errorf("write a history: %w", err)
		}
		ids[name] = w.GetExecution().GetWorkflowId()
		fmt.Println(name, w.GetExecution().GetWorkflowId(), w.GetStatus())
	}
	raw, err := json.MarshalIndent(ids, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(out, "ids"), append(raw, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the workflows' ids: %w", err)
	}
	return nil
}
