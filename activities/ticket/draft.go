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

// TicketDraft is what a ticket says, before it is written in a tracker's markup. Its strings are cleaned, and still data.
type TicketDraft struct {
	Title      string
	Labels     []string
	IncidentID string
	Facts      [][2]string
	Summary    string
	// EvidenceRows are the manifest's pieces: name, action, target, sha256, bytes.
	EvidenceRows     []EvidenceRow
	ManifestEntries  int
	ManifestHead     string
	ManifestProblems []string // where the manifest does not hold
}

// EvidenceRow is a piece of evidence as the table shows it.
type EvidenceRow [5]string

// EvidenceColumns are the table's heads.
var EvidenceColumns = EvidenceRow{"name", "action", "target", "sha256", "bytes"}

// The bounds of what is written. All together stay below what the smallest tracker takes (Jira's 32,767 characters).
const (
	maxSummaryRunes     = 4000
	maxCellRunes        = 100
	maxTitleRunes       = 200
	maxRows             = 60
	maxManifestProblems = 5
)

// incidentFacts are the incident's, one to a line.
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

// plainText writes the facts and the summary as lines of text.
func (d TicketDraft) plainText() string {
	var b strings.Builder
	for _, f := range d.Facts {
		fmt.Fprintf(&b, "%-16s %s\n", f[0], f[1])
	}
	if d.Summary != "" {
		fmt.Fprintf(&b, "\n%s\n", d.Summary)
	}
	return strings.TrimRight(b.String(), "\n")
}

// describeManifest says in sentences what the manifest is, and what is wrong with it.
func (d TicketDraft) describeManifest() (sentences []string, wrong string) {
	switch d.ManifestHead {
	case "":
		sentences = append(sentences, "There was no evidence when this ticket was opened.")
	default:
		sentences = append(sentences,
			fmt.Sprintf("The manifest had %d entries when this ticket was opened. Its head:", d.ManifestEntries),
			fmt.Sprintf("`stanch evidence verify %s --head HEAD` tells whether what came up to it is still so.", d.IncidentID))
	}
	if n := len(d.EvidenceRows); n > maxRows {
		sentences = append(sentences, fmt.Sprintf("%d more pieces are in the manifest.", n-maxRows))
	}
	if len(d.ManifestProblems) > 0 {
		wrong = "The manifest does not hold:\n" + strings.Join(d.ManifestProblems[:min(len(d.ManifestProblems), maxManifestProblems)], "\n")
	}
	return sentences, wrong
}

// markupChars are the characters that make a reference in a title, each with one that looks alike and makes none: GitLab
// pings and links from titles too.
var markupChars = strings.NewReplacer("@", "＠", "#", "＃", "!", "！", "$", "＄", "%", "％", "&", "＆", "~", "～", "`", "'", "://", ":／／", "www.", "www．", "<", "‹", ">", "›", "[", "［", "]", "］", "*", "＊")

// SanitizeTitle makes a string fit for a title.
func SanitizeTitle(s string) string {
	if r := []rune(s); len(r) > 4*maxTitleRunes {
		s = string(r[:4*maxTitleRunes])
	}
	return httpclient.SanitizeLine(markupChars.Replace(redact.Text(s)), maxTitleRunes)
}
