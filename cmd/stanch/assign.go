package main

import (
	"github.com/spf13/cobra"

	"stanch/worker/decisions"
	"stanch/workflows/incident"
)

func assignCommand(g *globalFlags) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "assign INCIDENT", Short: "Assign an incident to yourself", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Assign an open incident to yourself when you want to handle it without further automation.
No further playbook starts in it, running playbooks start no further containments, and
pending requests are denied. Active leases stay until they expire; release or extend them
yourself. Use resolve once you know what it was.`,
		Example: `  stanch assign INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch assign INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --reason "I know this service"`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			return submitTriage(cmd, g, decisions.TriageRequest{
				IncidentID: ids[0], Kind: incident.TriageAssigned,
				Reason: reason,
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "the reason, for the audit record")
	return c
}
