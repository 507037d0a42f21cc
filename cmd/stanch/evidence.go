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

// evidenceOptions say where evidence and the keys that verify it are: by default those of the data directory, or
// copies of them on a machine that runs no Stanch.
type evidenceOptions struct {
	storeDir string
	keysDir  string
	output   string
}

func evidenceCommand(g *globalFlags) *cobra.Command {
	o := &evidenceOptions{}
	c := &cobra.Command{
		Use: "evidence", Short: "List, take out and verify evidence, also without a running Stanch",
		Long: `Evidence lies in a directory by its content, with a manifest for each incident: a
line for each piece and each act, each naming the line before it by its hash, and
signed by the authority's key. All of it can be copied and verified elsewhere.`,
		Example: `  stanch evidence list
  stanch evidence list INC-01JABC…
  stanch evidence verify INC-01JABC… --head 3f9a…
  stanch evidence get INC-01JABC… processes.json > processes.json`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.PersistentFlags().StringVar(&o.storeDir, "dir", "", "the evidence directory (default: evidence below --data)")
	c.PersistentFlags().StringVar(&o.keysDir, "keys", "", "a `FILE` with the authority's public keys, of stanch cert public (default: those of --data)")
	c.AddCommand(evidenceListCommand(g, o), evidenceGetCommand(g, o), evidenceVerifyCommand(g, o))
	return c
}

func (o *evidenceOptions) openStore(g *globalFlags) (*activities.EvidenceStore, error) {
	dir := o.storeDir
	if dir == "" {
		dir = filepath.Join(g.dataDir, "evidence")
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("there is no evidence at %s; name its --dir or the --data of the Stanch that keeps it", dir)
	}
	return &activities.EvidenceStore{Dir: dir}, nil
}

// loadKeyring reads the keys that verify. It makes none: a key made now would verify nothing.
func (o *evidenceOptions) loadKeyring(g *globalFlags) (attestation.Keyring, error) {
	if o.keysDir != "" {
		raw, err := os.ReadFile(o.keysDir)
		if err != nil {
			return nil, fmt.Errorf("read the authority's keys: %w", err)
		}
		ring, err := attestation.ParseKeyring(strings.Split(strings.TrimSpace(string(raw)), "\n"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.keysDir, err)
		}
		return ring, nil
	}
	a, err := authority.OpenExisting(filepath.Join(g.dataDir, "keys"))
	if err != nil {
		return nil, fmt.Errorf("%w; name the public keys with --keys (`stanch cert public` prints them)", err)
	}
	return a.Keyring(), nil
}

func evidenceListCommand(g *globalFlags, o *evidenceOptions) *cobra.Command {
	c := &cobra.Command{
		Use: "list [INCIDENT]", Short: "List incidents with evidence, or one incident's manifest", Args: validateArgs(cobra.MaximumNArgs(1)),
		Example: "  stanch evidence list\n  stanch evidence list INC-01JABC… -o json",
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
			return fmt.Errorf("there is no manifest of %s; `stanch evidence list` lists those there are", ids[0])
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
	incidents = slices.DeleteFunc(incidents, func(name string) bool { return name == activities.JournalManifest }) // of no incident
	if output == "json" {
		return printJSON(out, append([]string{}, incidents...))
	}
	for _, id := range incidents {
		fmt.Fprintln(out, id)
	}
	return nil
}

// warnFindings says on the standard error what is not as it was: what is printed beside it may be a lie.
func warnFindings(findings []activities.IntegrityFinding) {
	for _, f := range findings {
		logProgress("NOT AS IT WAS  %s", escapeForTerminal(f.String()))
	}
}

// listedEntry is a line as `evidence list -o json` prints it.
type listedEntry struct {
	activities.ManifestEntry
	Verified bool `json:"verified"` // false: somebody else than the authority wrote it
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
	fmt.Fprintln(t, "NO\tAT\tKIND\tWHAT\tTARGET\tSHA256")
	for _, l := range lines {
		what, target, sum := "", "", ""
		switch e := l.Entry; {
		case e.Evidence != nil:
			what, target, sum = fmt.Sprintf("%s %s, %d bytes, from %s", e.Evidence.Action, e.Evidence.Name, e.Evidence.SizeBytes, e.Evidence.CapturedFrom), e.Evidence.Target, e.Evidence.SHA256
		case e.AuditRecord != nil:
			what, target, sum = strings.Join(strings.Fields(strings.Join([]string{e.AuditRecord.Action, string(e.AuditRecord.Outcome), e.AuditRecord.LeaseID, strings.Join(e.AuditRecord.People, ", "), e.AuditRecord.Note}, " ")), " "), e.AuditRecord.Target, e.AuditRecord.SHA256
		}
		if !l.SignatureValid {
			what = "NOT PROVED: " + what
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", l.Entry.Sequence, l.Entry.At.Local().Format(time.DateTime), escapeForTerminal(string(l.Entry.Kind)), escapeForTerminal(what), escapeForTerminal(target), escapeForTerminal(sum))
	}
	fmt.Fprintf(t, "\nhead %s\n", activities.LastLineHash(lines))
	return t.Flush()
}

func evidenceGetCommand(g *globalFlags, o *evidenceOptions) *cobra.Command {
	return &cobra.Command{
		Use: "get INCIDENT NAME|SHA256", Short: "Write one piece to the standard output; the manifest notes that you took it", Args: validateArgs(cobra.ExactArgs(2)),
		Long: `Write one piece to the standard output, after checking that it is what was stored.
It is an attacker's: do not run it, and look at it where that does no harm. Where
the authority's key is at hand the manifest notes who took the piece out.`,
		Example: "  stanch evidence get INC-01JABC… processes.json | jq .",
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
				return fmt.Errorf("%s of %s: %w", ref.Name, a[0], err)
			}
			if o.keysDir == "" { // a copy elsewhere is not ours to write to
				if store.Authority, err = authority.OpenExisting(filepath.Join(g.dataDir, "keys")); err != nil {
					return err
				}
				who := fmt.Sprintf("uid %d on the machine of the store", os.Getuid())
				if _, err := store.Append(a[0], activities.EntryKindAccess, activities.AuditRecord{Action: "evidence get", SHA256: ref.SHA256, People: []string{who}, Note: ref.Name + " at " + time.Now().UTC().Format(time.RFC3339)}); err != nil {
					logProgress("the manifest does not note that you took it: %v", err)
				}
			}
			_, err = io.Copy(cmd.OutOrStdout(), bytes.NewReader(data))
			return err
		},
	}
}

// selectArtifact finds the one piece that is meant, on lines that the authority signed: bytes that somebody put beside the store
// are given out as nobody's evidence, and of two pieces with one name none is guessed.
func selectArtifact(incident, wanted string, lines []activities.ManifestLine) (playbooks.EvidenceRef, error) {
	byName, byHash, unproved := []playbooks.EvidenceRef{}, []playbooks.EvidenceRef{}, 0
	for _, l := range lines {
		ref := l.Entry.Evidence
		switch {
		case ref == nil || ref.Name != wanted && ref.SHA256 != wanted:
		case !l.SignatureValid || l.Entry.Kind != activities.EntryKindEvidence:
			unproved = l.Number
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
			fmt.Fprintf(&each, "\n  %s  %s of %s, %s", r.SHA256, escapeForTerminal(r.Action), escapeForTerminal(r.Target), r.CapturedAt.UTC().Format(time.DateTime))
		}
		return playbooks.EvidenceRef{}, fmt.Errorf("%s has %d pieces called %q; name one by its SHA-256:%s", incident, len(found), wanted, each.String())
	case unproved > 0:
		return playbooks.EvidenceRef{}, fmt.Errorf("only line %d of the manifest of %s names %q, and the authority did not sign it: it is nobody's evidence; `stanch evidence verify %s` says what is wrong", unproved, incident, wanted, incident)
	}
	return playbooks.EvidenceRef{}, fmt.Errorf("the manifest of %s has no piece %q; `stanch evidence list %s` lists them", incident, wanted, incident)
}

// evidenceResult is what `evidence verify -o json` prints.
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
		Use: "verify INCIDENT", Short: "Check the manifest's chain and signatures, and every stored byte", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Check an incident's manifest and what it names: the chain of hashes, the signature
of every line, and every byte of every piece. Exit 1 if anything is not as it was.

What was cut off at the manifest's end shows only against a head that was kept
elsewhere (a ticket, a chat message): give it with --head.`,
		Example: "  stanch evidence verify INC-01JABC…\n  stanch evidence verify INC-01JABC… --dir /mnt/copy --keys authority.pub --head 3f9a…",
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
				return fmt.Errorf("there is no manifest of %s; `stanch evidence list` lists those there are", ids[0])
			}
			if o.output == "json" {
				err = printJSON(cmd.OutOrStdout(), evidenceResult{ids[0], len(findings) == 0, len(lines), activities.LastLineHash(lines), append([]activities.IntegrityFinding{}, findings...)})
			} else {
				for _, f := range findings {
					fmt.Fprintln(cmd.OutOrStdout(), "NOT AS IT WAS  "+escapeForTerminal(f.String()))
				}
				if len(findings) == 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %d entries, chain, signatures and bytes hold; head %s\n", ids[0], len(lines), activities.LastLineHash(lines))
				}
			}
			if err == nil && len(findings) > 0 {
				return errReported
			}
			return err
		},
	}
	c.Flags().StringVar(&head, "head", "", "a head of the manifest that was kept elsewhere")
	addOutputFlag(c, &o.output)
	return c
}
