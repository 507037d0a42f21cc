package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"stanch/worker/authority"
)

func publicKeyCommand(g *globalFlags) *cobra.Command {
	c := &cobra.Command{
		Use: "public", Short: "Print the authority's public keys", Args: validateArgs(cobra.NoArgs),
		Long: `Print the authority's public keys, one per line, to verify evidence on another machine with
stanch evidence verify --keys.`,
		Example: "  stanch cert public > authority.pub",
	}
	dir := addKeysFlag(c, g)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := authority.OpenExisting(dir())
		if err != nil {
			return err
		}
		for _, line := range a.Keyring().EncodeLines() {
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
		return nil
	}
	return c
}
