package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"stanch/activities"
)

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
