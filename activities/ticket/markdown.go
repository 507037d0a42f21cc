package ticket

import (
	"strings"
)

// Markdown writes a draft for GitHub and GitLab. Whatever is not Stanch's own stands in code, where neither resolves
// mentions, references, links or quick actions, behind a fence that it cannot close.
func Markdown(d TicketDraft) string {
	var b strings.Builder
	b.WriteString("Opened by Stanch.\n\n" + fencedBlock(d.plainText()) + "\n\n### Evidence\n\n")
	if len(d.EvidenceRows) > 0 {
		b.WriteString("| " + strings.Join(EvidenceColumns[:], " | ") + " |\n|" + strings.Repeat(" --- |", len(EvidenceColumns)) + "\n")
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

// fencedBlock puts a text into a code block with a fence that is longer than any run of backticks in it.
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

// tableCellReplacer keeps a table's cell one: code in a table ends at a backtick, and the cell at a bar.
var tableCellReplacer = strings.NewReplacer("`", "'", "|", "¦", "\\", "/", "\n", " ")

func inlineCode(s string) string {
	if s = strings.TrimSpace(tableCellReplacer.Replace(s)); s == "" {
		return "-"
	}
	return "`" + s + "`"
}
