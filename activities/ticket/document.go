package ticket

import "strings"

// Node is a part of a document in Atlassian's format.
type Node struct {
	Type    string         `json:"type"`
	Version int            `json:"version,omitempty"`
	Text    string         `json:"text,omitempty"`
	Attrs   map[string]any `json:"attrs,omitempty"`
	Marks   []Node         `json:"marks,omitempty"`
	Content []Node         `json:"content,omitempty"`
}

// Document writes a draft for Jira. A mention, a link and a macro are nodes of their own there, and none is made.
func Document(d Draft) Node {
	out := Node{Type: "doc", Version: 1, Content: []Node{paragraph("Opened by Stanch."), block(d.literal()), {Type: "heading", Attrs: map[string]any{"level": 3}, Content: []Node{text("Evidence")}}}}
	add := func(n ...Node) { out.Content = append(out.Content, n...) }
	if len(d.Evidence) > 0 {
		table := Node{Type: "table", Content: []Node{tableRow("tableHeader", Columns)}}
		for _, r := range d.Evidence[:min(len(d.Evidence), maxRows)] {
			table.Content = append(table.Content, tableRow("tableCell", r))
		}
		add(table)
	}
	sentences, wrong := d.chain()
	for i, s := range sentences {
		add(paragraph(strings.ReplaceAll(s, "`", "")))
		if i == 0 && d.Head != "" {
			add(block(d.Head))
		}
	}
	if wrong != "" {
		add(block(wrong))
	}
	return out
}

func text(s string) Node { return Node{Type: "text", Text: s} }

func paragraph(s string) Node {
	if s == "" { // a text may not be empty
		return Node{Type: "paragraph"}
	}
	return Node{Type: "paragraph", Content: []Node{text(s)}}
}

func block(s string) Node { return Node{Type: "codeBlock", Content: []Node{text(s)}} }

func tableRow(kind string, cells Row) Node {
	row := Node{Type: "tableRow"}
	for _, c := range cells {
		p := paragraph(c)
		for i := range p.Content {
			if kind == "tableCell" {
				p.Content[i].Marks = []Node{{Type: "code"}}
			}
		}
		row.Content = append(row.Content, Node{Type: kind, Content: []Node{p}})
	}
	return row
}
