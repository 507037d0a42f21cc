package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/sensors/attestation"
	"stanch/worker/authority"
)

// evidenceOptions holds the paths of the evidence and of the keys that verify it. The defaults are those of the data
// directory; copies can be used on a machine without Stanch.
type evidenceOptions struct {
	storeDir string
	keysDir  string
	output   string
}

func evidenceCommand(g *globalFlags) *cobra.Command {
	o := &evidenceOptions{}
	c := &cobra.Command{
		Use: "evidence", Short: "List, read and verify evidence",
		Long: `Work with the evidence of incidents, even while Stanch is not running. Artifacts are stored
under their SHA-256 hash, and each incident has a manifest: one signed line for each
artifact and each action, with the hash of the line before it. The directory can be copied,
and verified on another machine with the public keys.`,
		Example: `  stanch evidence list
  stanch evidence list INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch evidence verify INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --head "$HEAD"
  stanch evidence get INC-01JABCDEFGHJKMNPQRSTVWXYZ0 processes.json > processes.json`,
	}
	c.PersistentFlags().StringVar(&o.storeDir, "dir", "", "the evidence `DIR` (default: DATA/evidence)")
	c.PersistentFlags().StringVar(&o.keysDir, "keys", "",
		"a `FILE` with the authority's public keys, as stanch cert public prints them (default: those of DATA/keys)")
	c.AddCommand(evidenceListCommand(g, o), evidenceGetCommand(g, o), evidenceVerifyCommand(g, o))
	requireSubcommand(c)
	return c
}

func (o *evidenceOptions) openStore(g *globalFlags) (*activities.EvidenceStore, error) {
	dir := o.storeDir
	if dir == "" {
		dir = filepath.Join(g.dataDir, "evidence")
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("open the evidence: no directory %s; set --dir, or set --data to the data directory of the Stanch instance that "+
			"stores it", dir)
	}
	return &activities.EvidenceStore{Dir: dir}, nil
}

// loadKeyring reads the keys that verify evidence. It never creates keys: a new key would verify nothing.
func (o *evidenceOptions) loadKeyring(g *globalFlags) (attestation.Keyring, error) {
	if o.keysDir != "" {
		raw, err := os.ReadFile(o.keysDir)
		if err != nil {
			return nil, fmt.Errorf("read the authority's keys: %w", err)
		}
		ring, err := attestation.ParseKeyring(strings.Split(strings.TrimSpace(string(raw)), "\n"))
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", o.keysDir, err)
		}
		return ring, nil
	}
	a, err := authority.OpenExisting(filepath.Join(g.dataDir, "keys"))
	if err != nil {
		return nil, fmt.Errorf("%w; set --keys to a file with the public keys (`stanch cert public` prints them)", err)
	}
	return a.Keyring(), nil
}
