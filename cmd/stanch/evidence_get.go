package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/worker/authority"
)

func evidenceGetCommand(g *globalFlags, o *evidenceOptions) *cobra.Command {
	return &cobra.Command{
		Use: "get INCIDENT NAME|SHA256", Short: "Write one artifact to standard output",
		Args: validateArgs(cobra.ExactArgs(2)),
		Long: `Write one artifact to standard output, after verifying its hash and signature. Artifacts may
be malicious: do not run them, and analyze them in a sandbox. If the data directory has the
signing keys, the access is recorded in the manifest.`,
		Example: "  stanch evidence get INC-01JABCDEFGHJKMNPQRSTVWXYZ0 processes.json > processes.json",
		RunE: func(cmd *cobra.Command, a []string) error {
			store, err := o.openStore(g)
			if err != nil {
				return err
			}
			keys, err := o.loadKeyring(g)
			if err != nil {
				return err
			}
			lines, findings, err := store.Manifest(a[0], keys)
			if err != nil {
				return err
			}
			warnFindings(findings)
			ref, err := selectArtifact(a[0], a[1], lines)
			if err != nil {
				return err
			}
			data, err := store.ReadArtifact(ref.SHA256)
			if err != nil {
				return fmt.Errorf("read %s of %s: %w", ref.Name, a[0], err)
			}
			if o.keysDir == "" { // a copy is not written to
				if store.Authority, err = authority.OpenExisting(filepath.Join(g.dataDir, "keys")); err != nil {
					return err
				}
				who := fmt.Sprintf("uid %d on the machine that holds the evidence store", os.Getuid())
				if _, err := store.Append(a[0], activities.EntryKindAccess, activities.AuditRecord{
					Action: "evidence get",
					SHA256: ref.SHA256, People: []string{who}, Note: ref.Name + " at " +
						time.Now().UTC().Format(time.RFC3339),
				}); err != nil {
					logProgress("record the access in the manifest: %v", err)
				}
			}
			_, err = io.Copy(cmd.OutOrStdout(), bytes.NewReader(data))
			return err
		},
	}
}

// selectArtifact returns the artifact with a name or SHA-256, from lines that the authority signed. It returns an
// error if only unsigned lines name it, and if several artifacts have the name.
func selectArtifact(incident, wanted string, lines []activities.ManifestLine) (playbooks.EvidenceRef, error) {
	byName, byHash, unsigned := []playbooks.EvidenceRef{}, []playbooks.EvidenceRef{}, 0
	for _, l := range lines {
		ref := l.Entry.Evidence
		switch {
		case ref == nil || ref.Name != wanted && ref.SHA256 != wanted:
		case !l.SignatureValid || l.Entry.Kind != activities.EntryKindEvidence:
			unsigned = l.Number
		case ref.SHA256 == wanted:
			byHash = append(byHash, *ref)
		case !slices.ContainsFunc(byName, func(r playbooks.EvidenceRef) bool { return r.SHA256 == ref.SHA256 }):
			byName = append(byName, *ref)
		}
	}
	found := append(byHash, byName...)
	switch {
	case len(byHash) > 0 || len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var each strings.Builder
		for _, r := range found {
			fmt.Fprintf(&each, "\n  %s  %s of %s, %s", r.SHA256, escapeForTerminal(r.Action), escapeForTerminal(r.Target),
				r.CapturedAt.UTC().Format(time.DateTime))
		}
		return playbooks.EvidenceRef{},
			fmt.Errorf("find artifact %q: %s has %d artifacts with that name; use the SHA-256 of one:%s", wanted, incident,
				len(found), each.String())
	case unsigned > 0:
		return playbooks.EvidenceRef{},
			fmt.Errorf("find artifact %q: line %d of the manifest of %s is not signed by the authority; run "+
				"`stanch evidence verify %s`", wanted, unsigned, incident, incident)
	}
	return playbooks.EvidenceRef{},
		fmt.Errorf("find artifact %q: unknown in %s; `stanch evidence list %s` lists the artifacts", wanted, incident,
			incident)
}
