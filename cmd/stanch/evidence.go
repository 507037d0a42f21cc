package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/playbooks"
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

func evidenceListCommand(g *globalFlags, o *evidenceOptions) *cobra.Command {
	c := &cobra.Command{
		Use: "list [INCIDENT]", Short: "List incidents with evidence, or one incident's manifest",
		Args: validateArgs(cobra.MaximumNArgs(1)),
		Long: `List the incidents that have evidence or, given an incident, the lines of its manifest: what
was captured and from where, who read it, and what was contained. The last line prints the
head of the manifest; store it elsewhere to prove later that no line was removed.`,
		Example: "  stanch evidence list\n  stanch evidence list INC-01JABCDEFGHJKMNPQRSTVWXYZ0 -o json",
	}
	c.RunE = func(cmd *cobra.Command, ids []string) error {
		store, err := o.openStore(g)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			return listIncidentsWithEvidence(cmd.OutOrStdout(), store, o.output)
		}
		keys, err := o.loadKeyring(g)
		if err != nil {
			return err
		}
		lines, findings, err := store.Manifest(ids[0], keys)
		if err != nil {
			return err
		}
		warnFindings(findings)
		if len(lines) == 0 {
			return fmt.Errorf("read the manifest: incident %s has none; `stanch evidence list` lists the incidents "+
				"with evidence", ids[0])
		}
		if o.output == "json" {
			return printJSON(cmd.OutOrStdout(), toListedEntries(lines))
		}
		return printManifestEntries(cmd.OutOrStdout(), lines)
	}
	addOutputFlag(c, &o.output)
	return c
}

func listIncidentsWithEvidence(out io.Writer, store *activities.EvidenceStore, output string) error {
	incidents, err := store.ListIncidents()
	if err != nil {
		return err
	}
	// The journal is not an incident.
	incidents = slices.DeleteFunc(incidents, func(name string) bool { return name == activities.JournalManifest })
	if output == "json" {
		return printJSON(out, append([]string{}, incidents...))
	}
	for _, id := range incidents {
		fmt.Fprintln(out, id)
	}
	return nil
}

// warnFindings prints integrity findings to standard error, since output beside them may be falsified.
func warnFindings(findings []activities.IntegrityFinding) {
	for _, f := range findings {
		logProgress("INVALID  %s", escapeForTerminal(f.String()))
	}
}

// listedEntry is one manifest line in the output of `evidence list -o json`.
type listedEntry struct {
	activities.ManifestEntry
	Verified bool `json:"verified"` // false if the authority did not sign the line
}

func toListedEntries(lines []activities.ManifestLine) []listedEntry {
	out := []listedEntry{}
	for _, l := range lines {
		out = append(out, listedEntry{l.Entry, l.SignatureValid})
	}
	return out
}

func printManifestEntries(out io.Writer, lines []activities.ManifestLine) error {
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "NO\tTIME\tKIND\tDESCRIPTION\tTARGET\tSHA256")
	for _, l := range lines {
		what, target, sum := "", "", ""
		switch e := l.Entry; {
		case e.Evidence != nil:
			what, target, sum = fmt.Sprintf("%s %s, %d bytes, from %s", e.Evidence.Action, e.Evidence.Name, e.Evidence.SizeBytes,
				e.Evidence.CapturedFrom), e.Evidence.Target, e.Evidence.SHA256
		case e.AuditRecord != nil:
			what, target, sum = strings.Join(strings.Fields(strings.Join([]string{
				e.AuditRecord.Action,
				string(e.AuditRecord.Outcome), e.AuditRecord.LeaseID, strings.Join(e.AuditRecord.People, ", "), e.AuditRecord.Note,
			},
				" ")), " "), e.AuditRecord.Target, e.AuditRecord.SHA256
		}
		if !l.SignatureValid {
			what = "NOT SIGNED: " + what
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", l.Entry.Sequence, l.Entry.At.Local().Format(time.DateTime),
			escapeForTerminal(string(l.Entry.Kind)), escapeForTerminal(what), escapeForTerminal(target), escapeForTerminal(sum))
	}
	fmt.Fprintf(t, "\nhead %s\n", activities.LastLineHash(lines))
	return t.Flush()
}

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

// evidenceResult is the output of `evidence verify -o json`.
type evidenceResult struct {
	Incident string                        `json:"incident"`
	OK       bool                          `json:"ok"`
	Entries  int                           `json:"entries"`
	Head     string                        `json:"head"`
	Findings []activities.IntegrityFinding `json:"findings"`
}

func evidenceVerifyCommand(g *globalFlags, o *evidenceOptions) *cobra.Command {
	head := ""
	c := &cobra.Command{
		Use: "verify INCIDENT", Short: "Verify an incident's evidence and chain of custody",
		Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Verify an incident's manifest before you rely on its evidence: the hash chain, the signature of
every line, and the content of every artifact. Exit code 1 means that something was changed.

Lines that were removed from the end of the manifest are detected only with a head that was
stored elsewhere, such as in a ticket or a chat message: pass it with --head.`,
		Example: `  stanch evidence verify INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch evidence verify INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --dir ./copy --keys authority.pub --head "$HEAD"`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			store, err := o.openStore(g)
			if err != nil {
				return err
			}
			keys, err := o.loadKeyring(g)
			if err != nil {
				return err
			}
			lines, findings, err := store.Verify(ids[0], keys, head)
			if err != nil {
				return err
			}
			if len(lines) == 0 && len(findings) == 0 {
				return fmt.Errorf("read the manifest: incident %s has none; `stanch evidence list` lists the "+
					"incidents with evidence", ids[0])
			}
			if o.output == "json" {
				err = printJSON(cmd.OutOrStdout(), evidenceResult{
					ids[0], len(findings) == 0, len(lines),
					activities.LastLineHash(lines), append([]activities.IntegrityFinding{}, findings...),
				})
			} else {
				for _, f := range findings {
					fmt.Fprintln(cmd.OutOrStdout(), "INVALID  "+escapeForTerminal(f.String()))
				}
				if len(findings) == 0 {
					fmt.Fprintf(cmd.OutOrStdout(),
						"%s: %d entries verified: chain, signatures and contents; head %s\n", ids[0], len(lines),
						activities.LastLineHash(lines))
				}
			}
			if err == nil && len(findings) > 0 {
				return errReported
			}
			return err
		},
	}
	c.Flags().StringVar(&head, "head", "", "the `HASH`, stored elsewhere, of a line that must be in the manifest")
	addOutputFlag(c, &o.output)
	return c
}
