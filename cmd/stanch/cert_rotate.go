package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"stanch/worker/authority"
	"stanch/worker/codec"
)

func rotateKeyCommand(g *globalFlags) *cobra.Command {
	var distrust, payload bool
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Rotate the signing key or the payload key",
		Args:  validateArgs(cobra.NoArgs),
		Long: `Create a new key that signs grants, attestations and tokens, on your rotation schedule or
after a key leak. Signatures made with the old key stay valid: leases continue, and evidence
still verifies. With --distrust they become invalid; use it when an attacker may have the old
key. Active leases then end automatically.

With --payload, create a new key to encrypt what Temporal stores; the old key still decrypts.
Restart every worker after either rotation.`,
		Example: "  stanch cert rotate\n  stanch cert rotate --payload\n  stanch cert rotate --distrust --keys ./secrets/keys",
	}
	dir := addKeysFlag(c, g)
	c.Flags().BoolVar(&distrust, "distrust", false, "invalidate every signature made with the old key")
	c.Flags().BoolVar(&payload, "payload", false, "rotate the key that encrypts payloads, instead of the signing key")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		rotate := func() (string, string, error) { return authority.RotateSigningKey(dir(), distrust) }
		if payload {
			if distrust {
				return usageError{errors.New("--distrust does not apply to --payload: existing payloads could not " +
					"be read without the old key")}
			}
			rotate = func() (string, string, error) { return codec.RotateKey(dir()) }
		}
		before, after, err := rotate()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(),
			"key %s replaces %s. Restart every worker (in a cluster: update the secret first).\n", after, before)
		return err
	}
	return c
}
