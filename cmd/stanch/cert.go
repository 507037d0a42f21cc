package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
	"stanch/worker/codec"
)

// listenTCP listens on a TCP address.
func listenTCP(
	address string,
) (net.Listener, error) {
	return net.Listen("tcp", address)
} //nolint:noctx,wrapcheck // at once

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

func writeKeySet(path string, set attestation.KeySet) error {
	raw, err := json.MarshalIndent(set, "", " ")
	if err != nil {
		return fmt.Errorf("write the authority's keys: %w", err)
	}
	if err := durablefile.Write(path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the authority's keys: %w", err)
	}
	return nil
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

var nodeNamePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

func createAuthority(dir string) error {
	if err := durablefile.MakeDirectory(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	if _, err := authority.OpenOrCreate(filepath.Join(dir, "keys")); err != nil {
		return err
	}
	if _, err := codec.Open(filepath.Join(dir, "keys")); err != nil {
		return err
	}
	_, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
	return err
}
