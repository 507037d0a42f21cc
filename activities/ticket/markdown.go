package ticket

import (
	"strings"
)

// Markdown renders a draft for GitHub and GitLab. Everything that is not Stanch's own text is in code blocks, in which
// mentions, references, links and quick actions have no effect, with a fence that the text cannot close.
func Markdown(d Draft) string {
	var b strings.Builder
	b.WriteString("Opened by Stanch.\n\n" + fencedBlock(d.plainText()) + "\n\n### Evidence\n\n")
	if len(d.EvidenceRows) > 0 {
		b.WriteString("| " + strings.Join(EvidenceColumns[:], " | ") + " |\n|" + strings.Repeat(" --- |",
			len(EvidenceColumns)) + "\n")
		for _, r := range d.EvidenceRows[:min(len(d.EvidenceRows), maxRows)] {
			for _, c := range r {
				b.WriteString("| " + inlineCode(c) + " ")
			}
			b.WriteString("|\n")
		}
		b.WriteString("\n")
	}
	sentences, wrong := d.describeManifest()
	for i, s := range sentences {
		b.WriteString(s + "\n\n")
		if i == 0 && d.ManifestHead != "" {
			b.WriteString(fencedBlock(d.ManifestHead) + "\n\n")
		}
	}
	if wrong != "" {
		b.WriteString(fencedBlock(wrong) + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// fencedBlock returns a code block whose fence is longer than any run of backticks in the text.
func fencedBlock(text string) string {
	longest, run := 2, 0
	for _, r := range text {
		if run++; r != '`' {
			run = 0
		}
		longest = max(longest, run)
	}
	fence := strings.Repeat("`", longest+1)
	return fence + "text\n" + text + "\n" + fence
}

// tableCellReplacer keeps text inside a table cell: a backtick ends code, and a bar ends the cell.
var tableCellReplacer = strings.NewReplacer("`", "'", "|", "¦", "\\", "/", "\n", " ")

func inlineCode(s string) string {
	if s = strings.TrimSpace(tableCellReplacer.Replace(s)); s == "" {
		return "-"
	}
	return "`" + s + "`"
}
