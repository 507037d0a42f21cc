package main

import (
	"errors"

	"github.com/spf13/cobra"

	"stanch/sensors/duration"
)

func containCommand(g *globalFlags) *cobra.Command {
	o := requestOptions{}
	c := &cobra.Command{
		Use: "contain TARGET --for 1h --reason TEXT", Short: "Contain a pod or container manually",
		Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Contain an attack that no rule detected. Evidence is captured first, then the containment is
applied through the same guards, approvals, lease and audit as after a detection. The lease
ends automatically after the duration in --for.

` + targetHelp + `

Approvers of the target's scope may contain it, and so may the user who runs Stanch on this machine.
In a phase 1 scope, the containment is only proposed. Nobody approves their own request.

Exit code 0: contained. 1: refused, proposed, denied, or waiting for approval.`,
		Example: `  stanch contain pod/shop/web-7d9f --for 1h --reason "beacons to 203.0.113.9"
  stanch contain shop/web-7d9f --for 1h --reason "beacons" --dry-run
  stanch contain INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --for 90s --action pod.freeze --reason "capture memory"`,
		RunE: func(cmd *cobra.Command, targets []string) error {
			if o.Duration <= 0 {
				return usageError{errors.New("missing --for; use a duration such as --for 1h")}
			}
			return submitRequest(cmd, g, &o, targets[0])
		},
	}
	c.Flags().StringVar(&o.Action, "action", "pod.isolate", "the reversible containment to apply, such as pod.freeze")
	c.Flags().Var(duration.NewFlag(&o.Duration, 0), "for", "how long the containment lasts (required)")
	o.addFlags(c)
	return c
}
