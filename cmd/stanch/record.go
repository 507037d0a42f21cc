package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"stanch/worker/auditor"
)

func recordCommand(g *globalFlags) *cobra.Command {
	var anonymize bool
	c := &cobra.Command{
		Use: "record ID", Short: "Export an incident as a recording", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Print an incident as a recording to replay with stanch simulate or stanch test: its
detections, the results of all actions, the decisions and who made them, and the outcome of
each step.

A recording has no signatures, and strings that look like secrets are removed. --anonymize
also replaces the names of people, pods, containers, workloads and hosts. Generated IDs,
addresses, program paths and the rest of each reason's text remain: review a recording
before you share it.`,
		Example: "  stanch record INC-01JABCDEFGHJKMNPQRSTVWXYZ0 > miner.json\n  stanch record " +
			"INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --anonymize > miner.json",
		RunE: func(cmd *cobra.Command, ids []string) error {
			raw, err := g.loadRecording(cmd.Context(), ids[0], anonymize)
			if err != nil {
				return err
			}
			if _, err := cmd.OutOrStdout().Write(raw); err != nil {
				return fmt.Errorf("write the recording: %w", err)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&anonymize, "anonymize", false,
		"replace the names of people, pods, containers, workloads and hosts with numbers")
	return c
}

// loadRecording reads a recording from the running Stanch or, without one, from the archive in the data directory.
func (g *globalFlags) loadRecording(ctx context.Context, id string, anonymize bool) ([]byte, error) {
	if g.hasRunningStanch() {
		path := "/v1/recording/" + id
		if anonymize {
			path += "?anonymise=1"
		}
		var out struct {
			Recording []byte `json:"recording"`
		}
		err := g.newAPIClient().get(ctx, path, &out)
		return out.Recording, err
	}
	auditor, err := auditor.Open(g.dataDir)
	if err != nil {
		return nil, fmt.Errorf("read incident %s: Stanch is not running (no socket at %s) and the archive cannot "+
			"be read: %w; start `stanch up`, or set --data", id, g.socketPath(), err)
	}
	raw, err := auditor.BuildRecording(ctx, id, anonymize)
	return raw, explainOffline(err, g)
}
