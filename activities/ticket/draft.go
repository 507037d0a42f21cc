package ticket

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"stanch/activities"
	"stanch/activities/httpclient"
	"stanch/playbooks"
	"stanch/sensors/redact"
)

// Draft is the content of a ticket before it is rendered in a tracker's markup. Its strings are sanitized but
// still attacker-controlled.
type Draft struct {
	Title      string
	Labels     []string
	IncidentID string
	Facts      [][2]string
	Summary    string
	// EvidenceRows are the artifacts in the manifest: name, action, target, sha256, bytes.
	EvidenceRows     []EvidenceRow
	ManifestEntries  int
	ManifestHead     string
	ManifestProblems []string // problems of the manifest's integrity
}

// EvidenceRow is one row of the table of evidence.
type EvidenceRow [5]string

// EvidenceColumns are the table's column headers.
var EvidenceColumns = EvidenceRow{"name", "action", "target", "sha256", "bytes"}

// Limits of a ticket. The total stays below the smallest limit of a tracker (Jira's 32,767 characters).
const (
	maxSummaryRunes     = 4000
	maxCellRunes        = 100
	maxTitleRunes       = 200
	maxRows             = 60
	maxManifestProblems = 5
)

// incidentFacts returns label and value of each fact about the incident.
func incidentFacts(in activities.IncidentRef) (out [][2]string) {
	w := in.Workload
	replicas := ""
	if in.Replicas > 0 {
		replicas = strconv.Itoa(in.Replicas)
	}
	for _, f := range [][2]string{
		{"incident", in.ID},
		{"opened", in.Opened.UTC().Format(time.RFC3339)},
		{"cluster", in.Cluster},
		{"scope", in.Scope},
		{"workload", w.String()},
		{"replicas", replicas},
		{"image", w.Image},
		{"digest", w.ImageDigest},
		{"service account", w.ServiceAccount},
		{"node", w.Node},
		{"confidence", fmt.Sprintf("%.2f", in.Confidence)},
		{"grouped by", in.GroupingKey},
	} {
		if f[1] != "" {
			out = append(out, [2]string{f[0], httpclient.SanitizeLine(f[1], 300)})
		}
	}
	return out
}

func newEvidenceRow(e playbooks.EvidenceRef) EvidenceRow {
	cells := EvidenceRow{e.Name, e.Action, e.Target, e.SHA256, strconv.FormatInt(e.SizeBytes, 10)}
	for i, c := range cells {
		cells[i] = httpclient.SanitizeLine(c, maxCellRunes)
	}
	return cells
}

// plainText returns the facts and the summary as lines of text.
func (d Draft) plainText() string {
	var b strings.Builder
	for _, f := range d.Facts {
		fmt.Fprintf(&b, "%-16s %s\n", f[0], f[1])
	}
	if d.Summary != "" {
		fmt.Fprintf(&b, "\n%s\n", d.Summary)
	}
	return strings.TrimRight(b.String(), "\n")
}

// describeManifest returns sentences about the manifest, and its problems.
func (d Draft) describeManifest() (sentences []string, wrong string) {
	switch d.ManifestHead {
	case "":
		sentences = append(sentences, "There was no evidence when this ticket was opened.")
	default:
		sentences = append(sentences,
			fmt.Sprintf("The manifest had %d entries when this ticket was opened. Its head:", d.ManifestEntries),
			fmt.Sprintf("Run `stanch evidence verify %s --head HEAD` to verify that the entries up to it are unchanged.",
				d.IncidentID))
	}
	if n := len(d.EvidenceRows); n > maxRows {
		sentences = append(sentences, fmt.Sprintf("The manifest has %d more artifacts.", n-maxRows))
	}
	if len(d.ManifestProblems) > 0 {
		wrong = "The manifest is invalid:\n" +
			strings.Join(d.ManifestProblems[:min(len(d.ManifestProblems), maxManifestProblems)], "\n")
	}
	return sentences, wrong
}

// markupChars replaces the characters that create references in a title with similar ones that do not: GitLab pings and
// links from titles too.
var markupChars = strings.NewReplacer("@", "＠", "#", "＃", "!", "！", "$", "＄", "%", "％", "&", "＆", "~", "～", "`", "'",
	"://", ":／／", "www.", "www．", "<", "‹", ">", "›", "[", "［", "]", "］", "*", "＊")

// SanitizeTitle returns a string that is safe as a title.
func SanitizeTitle(s string) string {
	if r := []rune(s); len(r) > 4*maxTitleRunes {
		s = string(r[:4*maxTitleRunes])
	}
	return httpclient.SanitizeLine(markupChars.Replace(redact.Text(s)), maxTitleRunes)
}
