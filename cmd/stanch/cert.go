package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/worker"
	"stanch/worker/authority"
)

func listenTCP(address string) (net.Listener, error) { return net.Listen("tcp", address) } //nolint:noctx,wrapcheck // at once

func certCommand(g *globalFlags) *cobra.Command {
	var pki, keys, out string
	c := &cobra.Command{
		Use: "cert", Short: "Make an installation's keys, and certificates for its nodes",
		Example: "  stanch cert authority --out ./secrets\n  stanch cert node worker-7 --pki ./secrets/pki --out ./worker-7",
		Args:    validateArgs(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	node := &cobra.Command{
		Use: "node NAME", Short: "Issue the certificate with which a node's sensor dials in", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Issue node.crt, node.key, ca.crt and authority.json for one node. NAME is the node's
name in Kubernetes: the gateway accepts detections about a pod only from the node
that it runs on. authority.json holds the public keys whose commands the node obeys;
later keys must be signed by the ones before. Put the folder on that node, and
nowhere else.`,
		Example: "  stanch cert node worker-7 --pki ./secrets/pki --out ./worker-7",
		RunE: func(cmd *cobra.Command, names []string) error {
			if out == "" {
				return usageError{errors.New("say where to with --out DIR")}
			}
			if !nodeNamePattern.MatchString(names[0]) {
				return usageError{fmt.Errorf("%q is not a node's name; `kubectl get nodes` lists them", names[0])}
			}
			if pki == "" {
				pki = filepath.Join(g.dataDir, "pki")
			}
			if !fileExists(filepath.Join(pki, "ca.key")) {
				return fmt.Errorf("there is no certificate authority in %s; name it with --pki, or make one with `stanch cert authority`", pki)
			}
			if keys == "" {
				keys = filepath.Join(filepath.Dir(filepath.Clean(pki)), "keys")
			}
			auth, err := authority.OpenExisting(keys)
			if err != nil {
				return fmt.Errorf("read the authority's keys: %w; name their folder with --keys", err)
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
			fmt.Fprintf(cmd.OutOrStdout(), "%s holds the certificate of node %s for 90 days\n", out, names[0])
			return nil
		},
	}
	node.Flags().StringVar(&pki, "pki", "", "the folder of the certificate authority (default: DATA/pki)")
	node.Flags().StringVar(&keys, "keys", "", "the folder with authority.seed (default: keys beside --pki)")
	node.Flags().StringVar(&out, "out", "", "the folder to write (required)")
	all := &cobra.Command{
		Use: "authority", Short: "Make the keys that all workers of an installation share", Args: validateArgs(cobra.NoArgs),
		Long: `Make DIR/keys (what signs grants and what encrypts payloads) and DIR/pki (the
certificate authority). What is there is kept.`,
		Example: "  stanch cert authority --out ./secrets",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usageError{errors.New("say where to with --out DIR")}
			}
			if err := createAuthority(out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s holds the keys; `stanch manifests` says how they become secrets. Keep a copy offline:\nwithout codec.key nobody reads the incidents, without authority.seed nobody releases a lease before its end.\n", out)
			return err
		},
	}
	all.Flags().StringVar(&out, "out", "", "the folder to write (required)")
	c.AddCommand(all, node, publicKeyCommand(g), rotateKeyCommand(g))
	return c
}

func writeKeySet(path string, set attestation.KeySet) error {
	raw, err := json.MarshalIndent(set, "", " ")
	if err != nil {
		return fmt.Errorf("write the authority's keys: %w", err)
	}
	if err := os.WriteFile(path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the authority's keys: %w", err)
	}
	return nil
}

// addKeysFlag names the folder with the authority's key.
func addKeysFlag(c *cobra.Command, g *globalFlags) func() string {
	dir := c.Flags().String("keys", "", "the folder with authority.seed (default: DATA/keys)")
	return func() string {
		if *dir != "" {
			return *dir
		}
		return filepath.Join(g.dataDir, "keys")
	}
}

func publicKeyCommand(g *globalFlags) *cobra.Command {
	c := &cobra.Command{
		Use: "public", Short: "Print the authority's public keys, with which evidence is verified elsewhere", Args: validateArgs(cobra.NoArgs),
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
		Use: "rotate", Short: "Make a new signing key, or payload key; what holds under the old one goes on", Args: validateArgs(cobra.NoArgs),
		Long: `Make a new key that signs grants, attestations and tokens. What the old one signed is
still believed: leases go on, evidence still verifies. With --distrust it is not:
use that for a key that somebody else may have; what holds then ends by itself.

With --payload make a new key that encrypts what Temporal stores; the old one still
reads. Restart every worker after either.`,
		Example: "  stanch cert rotate\n  stanch cert rotate --payload\n  stanch cert rotate --distrust --keys ./secrets/keys",
	}
	dir := addKeysFlag(c, g)
	c.Flags().BoolVar(&distrust, "distrust", false, "believe nothing any more that the old key signed")
	c.Flags().BoolVar(&payload, "payload", false, "rotate the key that encrypts payloads instead")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		rotate := func() (string, string, error) { return authority.RotateSigningKey(dir(), distrust) }
		if payload {
			if distrust {
				return usageError{errors.New("a payload key is not distrusted: without it nobody reads what it encrypted")}
			}
			rotate = func() (string, string, error) { return worker.RotateCodecKey(dir()) }
		}
		before, after, err := rotate()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s took the place of %s. Restart every worker (in a cluster: update the secret first).\n", after, before)
		return err
	}
	return c
}

var nodeNamePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

func createAuthority(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if _, err := authority.OpenOrCreate(filepath.Join(dir, "keys")); err != nil {
		return err
	}
	if _, err := worker.OpenPayloadCodec(filepath.Join(dir, "keys")); err != nil {
		return err
	}
	_, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
	return err
}
