package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks/recording"
	"stanch/sensors/duration"
	"stanch/worker"
	"stanch/worker/audit"
)

func auditCommand(g *globalFlags) *cobra.Command {
	var output string
	var verify bool
	var recorded string
	c := &cobra.Command{
		Use: "audit ID", Short: "Tell an incident's story from its history, and verify it", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Tell an incident from the first event to the last lease undone, recomputed from the
histories that Temporal holds (or, once it no longer does, from the archive in the
data directory). Every line ends with the event of history that says so.

With --verify it is checked besides: that every payload decrypts, that every proof
holds, that the stored incident, the archive and the evidence say the same. Every
difference is named, and the exit code is 1 if there is one.`,
		Example: "  stanch audit INC-01JABC…\n  stanch audit INC-01JABC… --verify\n  stanch audit INC-01JABC… -o html > story.html",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if recorded != "" && !verify {
				return usageError{errors.New("--recording is checked with --verify")}
			}
			story, err := g.loadTimeline(cmd.Context(), ids[0], verify)
			if err != nil {
				return err
			}
			if recorded != "" {
				if err := checkRecordingMatches(recorded, &story); err != nil {
					return err
				}
			}
			switch output {
			case "json":
				err = printJSON(cmd.OutOrStdout(), story)
			case "html":
				err = audit.WriteHTML(cmd.OutOrStdout(), story)
			default:
				printTimeline(cmd.OutOrStdout(), story)
			}
			if err == nil && story.Verification != nil && !story.Verification.OK {
				return errReported
			}
			return err
		},
	}
	c.Flags().BoolVar(&verify, "verify", false, "check every proof, the archive and the evidence, and name every difference")
	c.Flags().StringVar(&recorded, "recording", "", "with --verify: check this recording of the incident too")
	addFormatFlag(c, &output, "text", "json", "html")
	return c
}

// checkRecordingMatches compares a recording with its own hash, and with the story of its incident.
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
	v.Checked = append(v.Checked, "the recording "+file+" against its own SHA-256, and its steps against the history")
	r, err := recording.Decode(raw)
	if err != nil {
		differ("%v", err)
		return nil
	}
	if r.Incident.ID != s.IncidentID {
		differ("it is of %s", r.Incident.ID)
		return nil
	}
	var steps []string
	for _, p := range s.Playbooks {
		for _, step := range p.Steps {
			steps = append(steps, fmt.Sprintf("%s: %s on %s was %s", p.Name, step.Action, step.Target, step.Outcome))
		}
	}
	for _, step := range r.Steps {
		said := fmt.Sprintf("%s: %s on %s was %s", step.Playbook, step.Action, step.Target, step.Outcome)
		if i := slices.Index(steps, said); i >= 0 {
			steps = slices.Delete(steps, i, i+1)
		} else {
			differ("it says that %s, and the history does not", said)
		}
	}
	for _, said := range steps {
		differ("it leaves out that %s", said)
	}
	return nil
}

// loadTimeline asks the running Stanch; without one the archive of the data directory is read.
func (g *globalFlags) loadTimeline(ctx context.Context, id string, verify bool) (audit.Timeline, error) {
	var story audit.Timeline
	path := "/v1/audit/" + id
	if verify {
		path += "?verify=1"
	}
	if _, err := os.Stat(g.socketPath()); !errors.Is(err, fs.ErrNotExist) {
		err := g.newAPIClient().get(ctx, path, &story)
		return story, err
	}
	auditor, err := worker.OpenAuditor(g.dataDir)
	if err != nil {
		return story, fmt.Errorf("no Stanch runs here (there is no %s), and the archive cannot be read: %w; start `stanch up`, or name its --data", g.socketPath(), err)
	}
	story, err = auditor.Audit(ctx, id, verify)
	return story, explainOffline(err, g)
}

// explainOffline says of an incident that only a running Stanch could know that none runs.
func explainOffline(err error, g *globalFlags) error {
	if errors.Is(err, worker.ErrUnknownIncident) {
		return fmt.Errorf("no Stanch runs here (there is no %s), and the archive holds closed incidents only: %w", g.socketPath(), err)
	}
	return err
}

// addFormatFlag adds -o with the formats given, the first being the default.
func addFormatFlag(c *cobra.Command, out *string, formats ...string) {
	c.Flags().StringVarP(out, "output", "o", formats[0], strings.Join(formats, ", "))
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if slices.Contains(formats, *out) {
			return run(cmd, args)
		}
		return usageError{fmt.Errorf("-o is one of %s, not %q", strings.Join(formats, ", "), *out)}
	}
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
	p("told from  %d histories in %s; times are UTC", len(s.Histories), map[string]string{"temporal": "Temporal", "archive": "the archive"}[s.Source])
	p("")
	day := ""
	chains := countRuns(s)
	for _, l := range s.Entries {
		if d := l.At.UTC().Format(time.DateOnly); d != day {
			p("%s", d)
			day = d
		}
		p("%s  %-12s %s  [%s]", l.At.UTC().Format("15:04:05.000"), l.Kind, l.Text, formatReference(l.EventRef, chains))
	}
	p("")
	for _, e := range s.Effects {
		p("effect     %s on %s: %s", e.Action, e.Target, formatEffect(e))
	}
	for _, person := range s.People {
		p("person     %s (%s): %s", person.Name, strings.Join(person.AuthenticatedBy, "; "), strings.Join(person.Actions, ", "))
	}
	printDifferences(p, s, chains)
}

func formatEffect(e audit.ContainmentEffect) string {
	switch {
	case e.UndoneEvent != nil:
		return fmt.Sprintf("in force from %s to %s (%s), observed %d times between; undone: %s", e.AppliedAt.UTC().Format("15:04:05"), e.UndoneAt.UTC().Format("15:04:05"), duration.FormatApprox(e.UndoneAt.Sub(e.AppliedAt)), e.VerificationCount, e.UndoReason)
	case e.State == "in force":
		return fmt.Sprintf("in force since %s, until %s", e.AppliedAt.UTC().Format("15:04:05"), e.ExpiresAt.UTC().Format(time.DateTime))
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
		p("verified: nothing differs")
	} else {
		p("NOT verified: %d differences", len(s.Verification.Differences))
	}
}

// countRuns counts the runs of each workflow: where there are several, a reference names the run.
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
