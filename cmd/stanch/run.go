package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func runCommand(g *globalFlags) *cobra.Command {
	o := requestOptions{}
	c := &cobra.Command{
		Use: "run PLAYBOOK --on TARGET --reason TEXT", Short: "Run a playbook on a pod, container or incident",
		Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Run a playbook of the running Stanch instance on a target of your choice, when the playbook
did not match automatically. It runs through the same guards, approvals, leases and audit as a
playbook that matched.

` + targetHelp + `

--dry-run plans the containments of the playbook, and lists those that cannot be planned because they depend on earlier
steps. ` + "`stanch explain PLAYBOOK`" + ` shows every step.

Exit code 0: contained, or evidence captured by a playbook without containments. 1: any other result.`,
		Example: `  stanch run cryptominer --on pod/shop/web-7d9f --reason "high load with no recent deployment"
  stanch run cryptominer --on INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --reason "more pods affected" --dry-run`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if o.Target == "" {
				return usageError{errors.New("missing --on; use a target such as --on pod/NAMESPACE/NAME")}
			}
			o.Playbook = names[0]
			return submitRequest(cmd, g, &o, o.Target)
		},
	}
	c.Flags().StringVar(&o.Target, "on", "", "the `TARGET`: a pod, a container or an incident (required)")
	o.addFlags(c)
	return c
}
