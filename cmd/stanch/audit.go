package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks/recording"
	"stanch/sensors/duration"
	"stanch/worker/audit"
	"stanch/worker/auditor"
	"stanch/worker/auditpage"
)

func auditCommand(g *globalFlags) *cobra.Command {
	var output string
	var verify bool
	var recorded string
	c := &cobra.Command{
		Use: "audit ID", Short: "Show an incident's audit timeline, and verify it",
		Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Show what happened in an incident, from the first event to the last undone lease, for
reviewing or reporting it. The timeline is reconstructed from the workflow histories in
Temporal or, once Temporal has deleted them, from the archive in the data directory. Every
line ends with the history event that records it.

With --verify also check that every payload decrypts, that every signature is valid, and
that the stored incident, the archive and the evidence agree with the histories. All
differences are listed; exit code 1 means that there was at least one.`,
		Example: `  stanch audit INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch audit INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --verify
  stanch audit INC-01JABCDEFGHJKMNPQRSTVWXYZ0 --verify --recording miner.json
  stanch audit INC-01JABCDEFGHJKMNPQRSTVWXYZ0 -o html > timeline.html`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if recorded != "" && !verify {
				return usageError{errors.New("--recording requires --verify")}
			}
			timeline, err := g.loadTimeline(cmd.Context(), ids[0], verify)
			if err != nil {
				return err
			}
			if recorded != "" {
				if err := checkRecordingMatches(recorded, &timeline); err != nil {
					return err
				}
			}
			switch output {
			case "json":
				err = printJSON(cmd.OutOrStdout(), timeline)
			case "html":
				err = auditpage.WriteHTML(cmd.OutOrStdout(), timeline)
			default:
				printTimeline(cmd.OutOrStdout(), timeline)
			}
			if err == nil && timeline.Verification != nil && !timeline.Verification.OK {
				return errReported
			}
			return err
		},
	}
	c.Flags().BoolVar(&verify, "verify", false,
		"check every signature, the archive and the evidence, and list every difference")
	c.Flags().StringVar(&recorded, "recording", "", "with --verify: also check this recording `FILE` of the incident")
	addFormatFlag(c, &output, "text", "json", "html")
	return c
}

// checkRecordingMatches adds to the verification how a recording differs from its own hash and from the timeline of
// its incident.
func checkRecordingMatches(file string, s *audit.Timeline) error {
	raw, err := readBounded(file, recording.MaxBytes)
	if err != nil {
		return err
	}
	v := s.Verification
	differ := func(format string, args ...any) {
		v.OK = false
		v.Differences = append(v.Differences, audit.Difference{Description: file + ": " + fmt.Sprintf(format, args...)})
	}
	v.Checked = append(v.Checked, "the recording "+file+" against its own SHA-256, and its steps against the histories")
	r, err := recording.Decode(raw)
	if err != nil {
		differ("%v", err)
		return nil
	}
	if r.Incident.ID != s.IncidentID {
		differ("the recording is for incident %s", r.Incident.ID)
		return nil
	}
	var steps []string
	for _, p := range s.Playbooks {
		for _, step := range p.Steps {
			steps = append(steps, fmt.Sprintf("%s: %s on %s was %s", p.Name, step.Action, step.Target, step.Outcome))
		}
	}
	for _, step := range r.Steps {
		recorded := fmt.Sprintf("%s: %s on %s was %s", step.Playbook, step.Action, step.Target, step.Outcome)
		if i := slices.Index(steps, recorded); i >= 0 {
			steps = slices.Delete(steps, i, i+1)
		} else {
			differ("in the recording and not in the histories: %s", recorded)
		}
	}
	for _, missing := range steps {
		differ("in the histories and not in the recording: %s", missing)
	}
	return nil
}

// loadTimeline reads an incident's timeline from the running Stanch or, without one, from the archive in the data
// directory.
func (g *globalFlags) loadTimeline(ctx context.Context, id string, verify bool) (audit.Timeline, error) {
	var timeline audit.Timeline
	path := "/v1/audit/" + id
	if verify {
		path += "?verify=1"
	}
	if g.hasRunningStanch() {
		err := g.newAPIClient().get(ctx, path, &timeline)
		return timeline, err
	}
	auditor, err := auditor.Open(g.dataDir)
	if err != nil {
		return timeline, fmt.Errorf("read incident %s: Stanch is not running (no socket at %s) and the archive "+
			"cannot be read: %w; start `stanch up`, or set --data", id, g.socketPath(), err)
	}
	timeline, err = auditor.Audit(ctx, id, verify)
	return timeline, explainOffline(err, g)
}

// explainOffline adds to an unknown incident that the archive has closed incidents only, and that no Stanch is running.
func explainOffline(err error, g *globalFlags) error {
	if errors.Is(err, auditor.ErrUnknownIncident) {
		return fmt.Errorf("%w; the archive has closed incidents only, and Stanch is not running (no socket at %s); "+
			"start `stanch up`, or set --data", err, g.socketPath())
	}
	return err
}

// addFormatFlag adds -o with the given formats, the first being the default, and makes any other format a usage error.
func addFormatFlag(c *cobra.Command, out *string, formats ...string) {
	c.Flags().StringVarP(out, "output", "o", formats[0], "the output `FORMAT`: "+joinOr(formats))
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if slices.Contains(formats, *out) {
			return run(cmd, args)
		}
		return usageError{fmt.Errorf("invalid --output %q; use %s", *out, joinOr(formats))}
	}
}

// joinOr lists alternatives in a sentence: "text, json or html".
func joinOr(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

func printTimeline(out io.Writer, s audit.Timeline) {
	p := func(format string, a ...any) { fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf(format, a...))) }
	p("%s  %s  %s, confidence %.2f  [%s]", s.IncidentID, s.Severity, s.Objective, s.Confidence, s.StatusText())
	p("workload   %s in cluster %s, node %s", s.Workload, s.Cluster, s.Node)
	drill := ""
	if s.Drill {
		drill = ", a drill"
	}
	p("scope      %s, phase %d%s", s.Scope, s.Phase, drill)
	if len(s.ConfigHashes) > 0 {
		p("config     %s", strings.Join(s.ConfigHashes, ", "))
	}
	for _, f := range s.Playbooks {
		p("playbook   %s, %s, SHA-256 %s", f.Name, f.File, f.SourceHash)
	}
	p("source     reconstructed from %s; times are UTC", formatHistoryCount(len(s.Histories), s.Source))
	p("")
	day := ""
	chains := countRuns(s)
	for _, l := range s.Entries {
		if d := l.At.UTC().Format(time.DateOnly); d != day {
			p("%s", d)
			day = d
		}
		p("%s  %-16s %s  [%s]", l.At.UTC().Format("15:04:05.000"), l.Kind, l.Text, formatReference(l.EventRef, chains))
	}
	p("")
	for _, e := range s.Effects {
		p("effect     %s on %s: %s", e.Action, e.Target, formatEffect(e))
	}
	for _, person := range s.People {
		p("person     %s (%s): %s", person.Name, strings.Join(person.AuthenticatedBy, "; "),
			strings.Join(person.Actions, ", "))
	}
	printDifferences(p, s, chains)
}

// formatHistoryCount names the histories that a timeline is reconstructed from: "3 Temporal workflow histories".
func formatHistoryCount(n int, source string) string {
	kind := map[string]string{"temporal": "Temporal", "archive": "archived"}[source]
	return formatCount(n, kind+" workflow history", kind+" workflow histories")
}

func formatEffect(e audit.ContainmentEffect) string {
	switch {
	case e.UndoneEvent != nil:
		return fmt.Sprintf("in force from %s to %s (%s), verified %s; undone: %s", e.AppliedAt.UTC().Format("15:04:05"),
			e.UndoneAt.UTC().Format("15:04:05"), duration.FormatApprox(e.UndoneAt.Sub(e.AppliedAt)),
			formatCount(e.VerificationCount, "time", "times"), e.UndoReason)
	case e.State == "in force":
		return fmt.Sprintf("in force since %s, until %s", e.AppliedAt.UTC().Format("15:04:05"),
			e.ExpiresAt.UTC().Format(time.DateTime))
	}
	return e.State + ": " + e.Reason
}

func printDifferences(p func(string, ...any), s audit.Timeline, chains map[string]int) {
	if s.Verification == nil {
		for _, d := range s.Problems {
			p("PROBLEM    %s  [%s]", d.Description, formatReference(d.EventRef, chains))
		}
		return
	}
	p("")
	for _, c := range s.Verification.Checked {
		p("checked    %s", c)
	}
	for _, d := range s.Verification.Differences {
		p("DIFFERENT  %s  [%s]", d.Description, formatReference(d.EventRef, chains))
	}
	if s.Verification.OK {
		p("verified: no differences")
	} else {
		p("NOT verified: %s", formatCount(len(s.Verification.Differences), "difference", "differences"))
	}
}

// countRuns returns the number of runs by workflow id. A reference to a workflow with several runs names the run.
func countRuns(s audit.Timeline) map[string]int {
	n := map[string]int{}
	for _, h := range s.Histories {
		n[h.WorkflowID]++
	}
	return n
}

func formatReference(r audit.EventRef, runs map[string]int) string {
	switch {
	case r.WorkflowID == "":
		return "no history"
	case r.EventID == 0:
		return r.WorkflowID
	case runs[r.WorkflowID] > 1:
		return fmt.Sprintf("%s run %s #%d", r.WorkflowID, r.RunID, r.EventID)
	}
	return fmt.Sprintf("%s #%d", r.WorkflowID, r.EventID)
}
