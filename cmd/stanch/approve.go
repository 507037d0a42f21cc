package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"stanch/worker/decisions"
)

func approvalCommand(g *globalFlags, approve bool) *cobra.Command {
	word, short := "approve", "Approve a pending request in an incident"
	if !approve {
		word, short = "deny", "Deny a pending request in an incident"
	}
	var reason string
	var breakGlass bool
	c := &cobra.Command{
		Use: word + " INCIDENT [STEP]", Short: short, Args: validateArgs(cobra.RangeArgs(1, 2)),
		Long: short + `, when stanch status or the chat shows that it is waiting for you.

STEP is the title of the approval request, the ID or path of its step, or an action that it
covers. It can be omitted if only one request is pending. If STEP matches several requests,
use the unique name that ` + "`stanch incidents INCIDENT`" + ` shows, such as 2/contain#1.

You are identified by the kernel, or with --server by the cluster; the configuration says what
you may approve. The output says whether your answer was counted. Exit code 1 means that it
was not.`,
		Example: fmt.Sprintf(`  stanch %[1]s INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch %[1]s INC-01JABCDEFGHJKMNPQRSTVWXYZ0 'stop the workload' --reason "confirmed with the owner"
  stanch %[1]s INC-01JABCDEFGHJKMNPQRSTVWXYZ0 pod.isolate`, word),
		RunE: func(cmd *cobra.Command, a []string) error {
			v := decisions.VoteRequest{
				IncidentID: a[0], Approve: approve, Reason: reason, BreakGlass: breakGlass,
				WaitForResult: true,
			}
			if breakGlass && strings.TrimSpace(reason) == "" {
				return usageError{errors.New("--break-glass requires --reason, for the audit record")}
			}
			if len(a) == 2 {
				v.RequestID = a[1]
			}
			var answer decisions.VoteResult
			err := g.newAPIClient().post(cmd.Context(), "/v1/vote", v, &answer)
			if r, ok := errors.AsType[*apiError](err); ok && r.statusCode == http.StatusForbidden {
				return fmt.Errorf("%s %s: not allowed: %w", word, a[0], err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", a[0], escapeForTerminal(answer.Message))
			if answer.Result == decisions.ResultNotCounted {
				return errReported
			}
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "the reason, for the audit record")
	if approve {
		c.Flags().BoolVar(&breakGlass, "break-glass", false,
			"approve alone in place of the full quorum, if the configuration allows it; this is recorded")
	}
	return c
}
