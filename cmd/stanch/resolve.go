package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"stanch/playbooks/display"
	"stanch/worker/decisions"
	"stanch/workflows/incident"
)

func resolveCommand(g *globalFlags) *cobra.Command {
	var disposition, reason string
	c := &cobra.Command{
		Use: "resolve INCIDENT --as DISPOSITION", Short: "Resolve an incident with a disposition",
		Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Resolve an open incident once you know what it was. The disposition is recorded with your
name in the incident, the audit log and the chat, and no further playbook starts in it. --as
is one of:

  false-positive   it did not happen: leases are released, and pending requests are denied
  benign           it happened and is permitted, such as a penetration test: leases are released,
                   and pending requests are denied
  true-positive    it was an attack: nothing is released or denied; leases stay in force until they
                   end, and running playbooks finish`,
		Example: `  stanch resolve INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --as benign --reason "the nightly build"
  stanch resolve INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --as false-positive
  stanch resolve INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --as true-positive --reason "image replaced, credentials rotated"`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			kind := incident.TriageKind(disposition)
			switch {
			case disposition == "":
				return usageError{fmt.Errorf("missing --as; use %s", formatDispositions())}
			case !kind.IsDisposition():
				return usageError{fmt.Errorf("invalid --as %q; use %s", disposition, formatDispositions())}
			}
			return submitTriage(cmd, g, decisions.TriageRequest{IncidentID: ids[0], Kind: kind, Reason: reason})
		},
	}
	c.Flags().StringVar(&disposition, "as", "", "the `DISPOSITION`: "+formatDispositions()+" (required)")
	c.Flags().StringVar(&reason, "reason", "", "the reason, for the audit record")
	completeDispositions := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return strings.Split(formatDispositions(), ", "), cobra.ShellCompDirectiveNoFileComp
	}
	if err := c.RegisterFlagCompletionFunc("as", completeDispositions); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

// formatDispositions lists the dispositions as help texts and errors name them.
func formatDispositions() string {
	var names []string
	for _, k := range incident.Dispositions() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

func submitTriage(cmd *cobra.Command, g *globalFlags, q decisions.TriageRequest) error {
	var done decisions.TriageResult
	err := g.newAPIClient().post(cmd.Context(), "/v1/triage", q, &done)
	if err == nil {
		printTriageResult(cmd.OutOrStdout(), q.IncidentID, q.Kind, done)
	}
	return err
}

// printTriageResult prints the decision, and which leases and questions it ended.
func printTriageResult(out io.Writer, id string, kind incident.TriageKind, done decisions.TriageResult) {
	p := func(format string, args ...any) { fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf(format, args...))) }
	if kind.IsDisposition() {
		p("%s: resolved as %s", id, kind)
	} else {
		p("%s: assigned to you", id)
	}
	for _, l := range done.ReleasedLeases {
		p("  released: %s on %s, lease %s", l.Action, display.TargetName(done.Incident, l.Target), l.ID)
	}
	for _, title := range done.DeniedRequests {
		p("  denied: %s", title)
	}
	if kind.ReleasesLeases() && len(done.ReleasedLeases)+len(done.DeniedRequests) == 0 {
		p("  there were no active leases and no pending approval requests")
	}
}
