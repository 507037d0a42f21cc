package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
)

func certCommand(g *globalFlags) *cobra.Command {
	var pki, keys, out string
	c := &cobra.Command{
		Use: "cert", Short: "Create an installation's keys and node certificates",
		Long: `Create and rotate the keys of an installation that runs stanch worker, and issue
certificates for its nodes. stanch up creates its own keys.`,
		Example: "  stanch cert authority --out ./secrets\n  stanch cert node worker-7 --pki ./secrets/pki --out ./worker-7",
	}
	node := &cobra.Command{
		Use: "node NAME", Short: "Issue a certificate for the sensor of a node", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Issue node.crt, node.key, ca.crt and authority.json for one node, when its sensor does not
get a certificate from the gateway automatically (stanch-sensor --enroll). NAME is the
node's name in Kubernetes: the gateway accepts detections about a pod only from the node
that the pod runs on. authority.json has the public keys that sign commands to the node;
each later key must be signed by an earlier one. Copy the directory only to that node.`,
		Example: "  stanch cert node worker-7 --pki ./secrets/pki --out ./worker-7",
		RunE: func(cmd *cobra.Command, names []string) error {
			if out == "" {
				return usageError{errors.New("missing --out; name the directory to write to")}
			}
			if !nodeNamePattern.MatchString(names[0]) {
				return usageError{fmt.Errorf("invalid node name %q; `kubectl get nodes` lists the names", names[0])}
			}
			if pki == "" {
				pki = filepath.Join(g.dataDir, "pki")
			}
			if !fileExists(filepath.Join(pki, "ca.key")) {
				return fmt.Errorf("open the certificate authority: no ca.key in %s; set --pki, or create one with "+
					"`stanch cert authority`", pki)
			}
			if keys == "" {
				keys = filepath.Join(filepath.Dir(filepath.Clean(pki)), "keys")
			}
			auth, err := authority.OpenExisting(keys)
			if err != nil {
				return fmt.Errorf("read the authority's keys: %w; set --keys to their directory", err)
			}
			ca, err := authority.OpenOrCreatePKI(pki)
			if err != nil {
				return err
			}
			if _, _, err := ca.WriteCertificateFiles(out, "node", authority.RoleNode, names[0]); err != nil {
				return err
			}
			if err := writeKeySet(filepath.Join(out, gatewayrpc.AuthorityKeysFile), auth.KeySet()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s contains the certificate for node %s, valid for 90 days\n", out, names[0])
			return nil
		},
	}
	node.Flags().StringVar(&pki, "pki", "", "the `DIR` of the certificate authority (default: DATA/pki)")
	node.Flags().StringVar(&keys, "keys", "", "the `DIR` with authority.seed (default: keys next to --pki)")
	node.Flags().StringVar(&out, "out", "", "the `DIR` to write (required)")
	authorityCmd := &cobra.Command{
		Use: "authority", Short: "Create the keys that all workers of an installation share",
		Args: validateArgs(cobra.NoArgs),
		Long: `Create DIR/keys (the keys that sign grants and encrypt payloads) and DIR/pki (the certificate
authority) before the first start of stanch worker. Existing keys are kept.`,
		Example: "  stanch cert authority --out ./secrets",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usageError{errors.New("missing --out; name the directory to write to")}
			}
			if err := createAuthority(out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(),
				"%s contains the keys; `stanch manifests` shows how to create Kubernetes secrets from them. Keep a copy "+
					"offline:\n"+
					"without codec.key incidents cannot be read; without authority.seed leases cannot be released "+
					"before they end.\n", out)
			return err
		},
	}
	authorityCmd.Flags().StringVar(&out, "out", "", "the `DIR` to write (required)")
	c.AddCommand(authorityCmd, node, publicKeyCommand(g), rotateKeyCommand(g))
	requireSubcommand(c)
	return c
}

// addKeysFlag adds --keys and returns a function that returns the directory of the authority's keys.
func addKeysFlag(c *cobra.Command, g *globalFlags) func() string {
	dir := c.Flags().String("keys", "", "the `DIR` with authority.seed (default: DATA/keys)")
	return func() string {
		if *dir != "" {
			return *dir
		}
		return filepath.Join(g.dataDir, "keys")
	}
}

var nodeNamePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
