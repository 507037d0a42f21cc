package ticket

import "strings"

// DocumentNode is a node of a document in the Atlassian Document Format.
type DocumentNode struct {
	Type    string         `json:"type"`
	Version int            `json:"version,omitempty"`
	Text    string         `json:"text,omitempty"`
	Attrs   map[string]any `json:"attrs,omitempty"`
	Marks   []DocumentNode `json:"marks,omitempty"`
	Content []DocumentNode `json:"content,omitempty"`
}

// JiraDocument renders a draft for Jira. Mentions, links and macros are separate node types there, and none is created.
func JiraDocument(d Draft) DocumentNode {
	out := DocumentNode{Type: "doc", Version: 1, Content: []DocumentNode{
		paragraphNode("Opened by Stanch."),
		codeBlockNode(d.plainText()),
		{
			Type: "heading", Attrs: map[string]any{"level": 3},
			Content: []DocumentNode{textNode("Evidence")},
		},
	}}
	add := func(n ...DocumentNode) { out.Content = append(out.Content, n...) }
	if len(d.EvidenceRows) > 0 {
		table := DocumentNode{Type: "table", Content: []DocumentNode{tableRowNode("tableHeader", EvidenceColumns)}}
		for _, r := range d.EvidenceRows[:min(len(d.EvidenceRows), maxRows)] {
			table.Content = append(table.Content, tableRowNode("tableCell", r))
		}
		add(table)
	}
	sentences, wrong := d.describeManifest()
	for i, s := range sentences {
		add(paragraphNode(strings.ReplaceAll(s, "`", "")))
		if i == 0 && d.ManifestHead != "" {
			add(codeBlockNode(d.ManifestHead))
		}
	}
	if wrong != "" {
		add(codeBlockNode(wrong))
	}
	return out
}

func textNode(s string) DocumentNode { return DocumentNode{Type: "text", Text: s} }

func paragraphNode(s string) DocumentNode {
	if s == "" { // empty text nodes are invalid
		return DocumentNode{Type: "paragraph"}
	}
	return DocumentNode{Type: "paragraph", Content: []DocumentNode{textNode(s)}}
}

func codeBlockNode(s string) DocumentNode {
	return DocumentNode{Type: "codeBlock", Content: []DocumentNode{textNode(s)}}
}

func tableRowNode(kind string, cells EvidenceRow) DocumentNode {
	row := DocumentNode{Type: "tableRow"}
	for _, c := range cells {
		p := paragraphNode(c)
		for i := range p.Content {
			if kind == "tableCell" {
				p.Content[i].Marks = []DocumentNode{{Type: "code"}}
			}
		}
		row.Content = append(row.Content, DocumentNode{Type: kind, Content: []DocumentNode{p}})
	}
	return row
}
