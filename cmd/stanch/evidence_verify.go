package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"stanch/activities"
)

// evidenceResult is the output of `evidence verify -o json`.
type evidenceResult struct {
	Incident string                        `json:"incident"`
	OK       bool                          `json:"ok"`
	Entries  int                           `json:"entries"`
	Head     string                        `json:"head"`
	Findings []activities.IntegrityFinding `json:"findings"`
}

func evidenceVerifyCommand(g *globalFlags, o *evidenceOptions) *cobra.Command {
	head := ""
	c := &cobra.Command{
		Use: "verify INCIDENT", Short: "Verify an incident's evidence and chain of custody",
		Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Verify an incident's manifest before you rely on its evidence: the hash chain, the signature of
every line, and the content of every artifact. Exit code 1 means that something was changed.

Lines that were removed from the end of the manifest are detected only with a head that was
stored elsewhere, such as in a ticket or a chat message: pass it with --head.`,
		Example: `  stanch evidence verify INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch evidence verify INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --dir ./copy --keys authority.pub --head "$HEAD"`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			store, err := o.openStore(g)
			if err != nil {
				return err
			}
			keys, err := o.loadKeyring(g)
			if err != nil {
				return err
			}
			lines, findings, err := store.Verify(ids[0], keys, head)
			if err != nil {
				return err
			}
			if len(lines) == 0 && len(findings) == 0 {
				return fmt.Errorf("read the manifest: incident %s has none; `stanch evidence list` lists the "+
					"incidents with evidence", ids[0])
			}
			if o.output == "json" {
				err = printJSON(cmd.OutOrStdout(), evidenceResult{
					ids[0], len(findings) == 0, len(lines),
					activities.LastLineHash(lines), append([]activities.IntegrityFinding{}, findings...),
				})
			} else {
				for _, f := range findings {
					fmt.Fprintln(cmd.OutOrStdout(), "INVALID  "+escapeForTerminal(f.String()))
				}
				if len(findings) == 0 {
					fmt.Fprintf(cmd.OutOrStdout(),
						"%s: %d entries verified: chain, signatures and contents; head %s\n", ids[0], len(lines),
						activities.LastLineHash(lines))
				}
			}
			if err == nil && len(findings) > 0 {
				return errReported
			}
			return err
		},
	}
	c.Flags().StringVar(&head, "head", "", "the `HASH`, stored elsewhere, of a line that must be in the manifest")
	addOutputFlag(c, &o.output)
	return c
}
