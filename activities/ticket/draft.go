package ticket

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"stanch/activities"
	"stanch/activities/outside"
	"stanch/playbooks"
	"stanch/sensors/redact"
)

// Draft is what a ticket says, before it is written in a tracker's markup. Its strings are cleaned, and still data.
type Draft struct {
	Title    string
	Labels   []string
	Incident string
	Facts    [][2]string
	Summary  string
	// Evidence are the manifest's pieces: name, action, target, sha256, bytes.
	Evidence []Row
	Entries  int
	Head     string
	Wrong    []string // where the manifest does not hold
}

// Row is a piece of evidence as the table shows it.
type Row [5]string

// Columns are the table's heads.
var Columns = Row{"name", "action", "target", "sha256", "bytes"}

// The bounds of what is written. All together stay below what the smallest tracker takes (Jira's 32,767 characters).
const (
	maxSummary = 4000
	maxCell    = 100
	maxTitle   = 200
	maxRows    = 60
	maxWrong   = 5
)

// facts are the incident's, one to a line.
func facts(in activities.Brief) (out [][2]string) {
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
		{"grouped by", in.Key},
	} {
		if f[1] != "" {
			out = append(out, [2]string{f[0], outside.Line(f[1], 300)})
		}
	}
	return out
}

func row(e playbooks.EvidenceRef) Row {
	cells := Row{e.Name, e.Action, e.Target, e.SHA256, strconv.FormatInt(e.SizeBytes, 10)}
	for i, c := range cells {
		cells[i] = outside.Line(c, maxCell)
	}
	return cells
}

// literal writes the facts and the summary as lines of text.
func (d Draft) literal() string {
	var b strings.Builder
	for _, f := range d.Facts {
		fmt.Fprintf(&b, "%-16s %s\n", f[0], f[1])
	}
	if d.Summary != "" {
		fmt.Fprintf(&b, "\n%s\n", d.Summary)
	}
	return strings.TrimRight(b.String(), "\n")
}

// chain says in sentences what the manifest is, and what is wrong with it.
func (d Draft) chain() (sentences []string, wrong string) {
	switch d.Head {
	case "":
		sentences = append(sentences, "There was no evidence when this ticket was opened.")
	default:
		sentences = append(sentences,
			fmt.Sprintf("The manifest had %d entries when this ticket was opened. Its head:", d.Entries),
			fmt.Sprintf("`stanch evidence verify %s --head HEAD` tells whether what came up to it is still so.", d.Incident))
	}
	if n := len(d.Evidence); n > maxRows {
		sentences = append(sentences, fmt.Sprintf("%d more pieces are in the manifest.", n-maxRows))
	}
	if len(d.Wrong) > 0 {
		wrong = "The manifest does not hold:\n" + strings.Join(d.Wrong[:min(len(d.Wrong), maxWrong)], "\n")
	}
	return sentences, wrong
}

// sigils are the characters that make a reference in a title, each with one that looks alike and makes none: GitLab
// pings and links from titles too.
var sigils = strings.NewReplacer("@", "＠", "#", "＃", "!", "！", "$", "＄", "%", "％", "&", "＆", "~", "～", "`", "'", "://", ":／／", "www.", "www．", "<", "‹", ">", "›", "[", "［", "]", "］", "*", "＊")

// Title makes a string fit for a title.
func Title(s string) string {
	if r := []rune(s); len(r) > 4*maxTitle {
		s = string(r[:4*maxTitle])
	}
	return outside.Line(sigils.Replace(redact.Text(s)), maxTitle)
}
