package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"stanch/worker"
)

func recordCommand(g *globalFlags) *cobra.Command {
	var anonymize bool
	c := &cobra.Command{
		Use: "record ID > FILE", Short: "Turn an incident into a recording, for `stanch simulate`", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Turn an incident into a recording: what was detected and when, what every action
answered, what was decided and by whom, and what became of each step. It holds no
signature, and what looks like a secret is taken out. People's names stay, unless
--anonymize takes them out with those of pods, containers, workloads and hosts. What
nobody chose stays: ids that a runtime made, addresses, paths of programs; and so do
words of a reason that name nobody. Read it before you hand it on.`,
		Example: "  stanch record INC-01JABC… > miner.json\n  stanch record INC-01JABC… --anonymize > miner.json",
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
	c.Flags().BoolVar(&anonymize, "anonymize", false, "numbers in place of the names of pods, containers, workloads, hosts and people")
	return c
}

// loadRecording asks the running Stanch; without one the archive of the data directory is read.
func (g *globalFlags) loadRecording(ctx context.Context, id string, anonymise bool) ([]byte, error) {
	if _, err := os.Stat(g.socketPath()); !errors.Is(err, fs.ErrNotExist) {
		path := "/v1/recording/" + id
		if anonymise {
			path += "?anonymise=1"
		}
		var out struct {
			Recording []byte `json:"recording"`
		}
		err := g.newAPIClient().get(ctx, path, &out)
		return out.Recording, err
	}
	auditor, err := worker.OpenAuditor(g.dataDir)
	if err != nil {
		return nil, fmt.Errorf("no Stanch runs here (there is no %s), and the archive cannot be read: %w; start `stanch up`, or name its --data", g.socketPath(), err)
	}
	raw, err := auditor.BuildRecording(ctx, id, anonymise)
	return raw, explainOffline(err, g)
}
