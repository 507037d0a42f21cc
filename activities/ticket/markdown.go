package ticket

import (
	"strings"
)

// Markdown writes a draft for GitHub and GitLab. Whatever is not Stanch's own stands in code, where neither resolves
// mentions, references, links or quick actions, behind a fence that it cannot close.
func Markdown(d Draft) string {
	var b strings.Builder
	b.WriteString("Opened by Stanch.\n\n" + fenced(d.literal()) + "\n\n### Evidence\n\n")
	if len(d.Evidence) > 0 {
		b.WriteString("| " + strings.Join(Columns[:], " | ") + " |\n|" + strings.Repeat(" --- |", len(Columns)) + "\n")
		for _, r := range d.Evidence[:min(len(d.Evidence), maxRows)] {
			for _, c := range r {
				b.WriteString("| " + code(c) + " ")
			}
			b.WriteString("|\n")
		}
		b.WriteString("\n")
	}
	sentences, wrong := d.chain()
	for i, s := range sentences {
		b.WriteString(s + "\n\n")
		if i == 0 && d.Head != "" {
			b.WriteString(fenced(d.Head) + "\n\n")
		}
	}
	if wrong != "" {
		b.WriteString(fenced(wrong) + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// fenced puts a text into a code block with a fence that is longer than any run of backticks in it.
func fenced(text string) string {
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

// cell keeps a table's cell one: code in a table ends at a backtick, and the cell at a bar.
var cell = strings.NewReplacer("`", "'", "|", "¦", "\\", "/", "\n", " ")

func code(s string) string {
	if s = strings.TrimSpace(cell.Replace(s)); s == "" {
		return "-"
	}
	return "`" + s + "`"
}
