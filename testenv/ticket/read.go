package ticket

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"regexp"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
)

// Seen is an issue as a reader has it before them.
type Seen struct {
	// Code is what stands in code, literally; Prose is the rest.
	Code  []string
	Prose string
	// Table are the rows of its tables.
	Table [][]string
	// Alive is what would have pinged, linked, embedded or done something.
	Alive []string
}

var (
	inCode = regexp.MustCompile(`(?s)<code[^>]*>(.*?)</code>`)
	rows   = regexp.MustCompile(`(?s)<tr>(.*?)</tr>`)
	cells  = regexp.MustCompile(`(?s)<t[dh][^>]*>(.*?)</t[dh]>`)
	tags   = regexp.MustCompile(`<[^>]+>`)
	// alive: mentions, references of GitHub and GitLab, quick actions, links, images, raw HTML.
	alive = regexp.MustCompile(`(?m)(?:^|[^\w])[@#!$~%&][\w-]+|^/[a-z]+|https?://\S+|www\.\S+|<(?:a|img|input|script)\b[^>]*>|<!-- raw HTML omitted -->`)
)

// Read shows the body as GitHub and GitLab do, or Jira for a document.
func (i Issue) Read() (Seen, error) {
	if i.Doc != nil {
		return i.readDocument()
	}
	var out bytes.Buffer
	if err := goldmark.New(goldmark.WithExtensions(extension.GFM)).Convert([]byte(i.Body), &out); err != nil {
		return Seen{}, fmt.Errorf("read the Markdown: %w", err)
	}
	var seen Seen
	page := out.String()
	for _, m := range inCode.FindAllStringSubmatch(page, -1) {
		seen.Code = append(seen.Code, html.UnescapeString(m[1]))
	}
	for _, r := range rows.FindAllStringSubmatch(page, -1) {
		var row []string
		for _, c := range cells.FindAllStringSubmatch(r[1], -1) {
			row = append(row, html.UnescapeString(tags.ReplaceAllString(c[1], "")))
		}
		seen.Table = append(seen.Table, row)
	}
	prose := inCode.ReplaceAllString(page, " ")
	seen.Alive = alive.FindAllString(html.UnescapeString(prose), -1)
	seen.Prose = html.UnescapeString(tags.ReplaceAllString(prose, ""))
	return seen, nil
}

// InTitle is what a title would have pinged or linked.
func (i Issue) InTitle() []string { return alive.FindAllString(i.Title, -1) }

// Node is a part of an Atlassian document.
type Node struct {
	Type    string          `json:"type"`
	Version int             `json:"version"`
	Text    *string         `json:"text"`
	Attrs   json.RawMessage `json:"attrs"`
	Marks   []Node          `json:"marks"`
	Content []Node          `json:"content"`
}

// children are the nodes that may stand in a node, of those that are known here.
var children = map[string][]string{
	"doc": {"paragraph", "heading", "codeBlock", "table"}, "paragraph": {"text", "mention", "inlineCard", "emoji", "hardBreak"},
	"heading": {"text"}, "codeBlock": {"text"}, "table": {"tableRow"}, "tableRow": {"tableHeader", "tableCell"}, "tableHeader": {"paragraph"}, "tableCell": {"paragraph"},
}

// problem says why Jira would not take the document.
func (n Node) problem() string {
	if n.Type == "text" && (n.Text == nil || *n.Text == "") {
		return "a text is empty"
	}
	if len(n.Content) == 0 && (strings.HasPrefix(n.Type, "table") || n.Type == "doc") {
		return n.Type + " is empty"
	}
	for _, c := range n.Content {
		known := false
		for _, k := range children[n.Type] {
			known = known || k == c.Type
		}
		if !known {
			return c.Type + " stands in " + n.Type
		}
		if p := c.problem(); p != "" {
			return p
		}
	}
	return ""
}

func (n Node) plain() string {
	if n.Text != nil {
		return *n.Text
	}
	var b strings.Builder
	for _, c := range n.Content {
		b.WriteString(c.plain())
	}
	return b.String()
}

func (i Issue) readDocument() (Seen, error) {
	var doc Node
	if err := json.Unmarshal(i.Doc, &doc); err != nil {
		return Seen{}, fmt.Errorf("read the document: %w", err)
	}
	var seen Seen
	var walk func(n Node)
	walk = func(n Node) {
		switch {
		case len(n.Marks) == 1 && n.Marks[0].Type == "code":
			seen.Code = append(seen.Code, n.plain())
			return
		case n.Type == "mention" || n.Type == "inlineCard" || n.Type == "emoji" || len(n.Marks) > 0:
			seen.Alive = append(seen.Alive, n.Type)
		case n.Type == "codeBlock":
			seen.Code = append(seen.Code, n.plain())
			return
		case n.Type == "tableRow":
			var row []string
			for _, c := range n.Content {
				row = append(row, c.plain())
			}
			seen.Table = append(seen.Table, row)
		case n.Text != nil:
			seen.Prose += *n.Text + "\n"
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(doc)
	return seen, nil
}
