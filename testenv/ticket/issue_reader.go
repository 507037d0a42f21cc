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

// RenderedIssue is an issue as a reader sees it.
type RenderedIssue struct {
	// CodeBlocks are the literal code blocks; Prose is the remaining text.
	CodeBlocks []string
	Prose      string
	// TableRows are the rows of its tables.
	TableRows [][]string
	// ActiveContent is everything that would notify, link, embed or run something.
	ActiveContent []string
}

var (
	codePattern = regexp.MustCompile(`(?s)<code[^>]*>(.*?)</code>`)
	rowPattern  = regexp.MustCompile(`(?s)<tr>(.*?)</tr>`)
	cellPattern = regexp.MustCompile(`(?s)<t[dh][^>]*>(.*?)</t[dh]>`)
	tagPattern  = regexp.MustCompile(`<[^>]+>`)
	// activeContentPattern matches mentions, references of GitHub and GitLab, quick actions, links, images and raw HTML.
	activeContentPattern = regexp.MustCompile(
		`(?m)(?:^|[^\w])[@#!$~%&][\w-]+|^/[a-z]+|https?://\S+|www\.\S+|<(?:a|img|input|script)\b[^>]*>|<!-- raw HTML omitted -->`,
	)
)

// Render renders the body as GitHub and GitLab do, or as Jira does for a document.
func (i Issue) Render() (RenderedIssue, error) {
	if i.Document != nil {
		return i.renderDocument()
	}
	var out bytes.Buffer
	if err := goldmark.New(goldmark.WithExtensions(extension.GFM)).Convert([]byte(i.Body), &out); err != nil {
		return RenderedIssue{}, fmt.Errorf("read the Markdown: %w", err)
	}
	var seen RenderedIssue
	page := out.String()
	for _, m := range codePattern.FindAllStringSubmatch(page, -1) {
		seen.CodeBlocks = append(seen.CodeBlocks, html.UnescapeString(m[1]))
	}
	for _, r := range rowPattern.FindAllStringSubmatch(page, -1) {
		var row []string
		for _, c := range cellPattern.FindAllStringSubmatch(r[1], -1) {
			row = append(row, html.UnescapeString(tagPattern.ReplaceAllString(c[1], "")))
		}
		seen.TableRows = append(seen.TableRows, row)
	}
	prose := codePattern.ReplaceAllString(page, " ")
	seen.ActiveContent = activeContentPattern.FindAllString(html.UnescapeString(prose), -1)
	seen.Prose = html.UnescapeString(tagPattern.ReplaceAllString(prose, ""))
	return seen, nil
}

// ActiveContentInTitle returns what a title would notify or link.
func (i Issue) ActiveContentInTitle() []string {
	return activeContentPattern.FindAllString(i.Title, -1)
}

// DocumentNode is a node of an Atlassian document.
type DocumentNode struct {
	Type    string          `json:"type"`
	Version int             `json:"version"`
	Text    *string         `json:"text"`
	Attrs   json.RawMessage `json:"attrs"`
	Marks   []DocumentNode  `json:"marks"`
	Content []DocumentNode  `json:"content"`
}

// allowedChildren are the node types that each known node type can contain.
var allowedChildren = map[string][]string{
	"doc": {"paragraph", "heading", "codeBlock", "table"}, "paragraph": {
		"text", "mention", "inlineCard", "emoji",
		"hardBreak",
	},
	"heading": {"text"}, "codeBlock": {"text"}, "table": {"tableRow"}, "tableRow": {"tableHeader", "tableCell"},
	"tableHeader": {"paragraph"}, "tableCell": {"paragraph"},
}

// validationError returns why Jira would reject the document; "" if it would accept it.
func (n DocumentNode) validationError() string {
	if n.Type == "text" && (n.Text == nil || *n.Text == "") {
		return "a text is empty"
	}
	if len(n.Content) == 0 && (strings.HasPrefix(n.Type, "table") || n.Type == "doc") {
		return n.Type + " is empty"
	}
	for _, c := range n.Content {
		known := false
		for _, k := range allowedChildren[n.Type] {
			known = known || k == c.Type
		}
		if !known {
			return c.Type + " stands in " + n.Type
		}
		if p := c.validationError(); p != "" {
			return p
		}
	}
	return ""
}

func (n DocumentNode) plainText() string {
	if n.Text != nil {
		return *n.Text
	}
	var b strings.Builder
	for _, c := range n.Content {
		b.WriteString(c.plainText())
	}
	return b.String()
}

func (i Issue) renderDocument() (RenderedIssue, error) {
	var doc DocumentNode
	if err := json.Unmarshal(i.Document, &doc); err != nil {
		return RenderedIssue{}, fmt.Errorf("read the document: %w", err)
	}
	var seen RenderedIssue
	var walk func(n DocumentNode)
	walk = func(n DocumentNode) {
		switch {
		case len(n.Marks) == 1 && n.Marks[0].Type == "code":
			seen.CodeBlocks = append(seen.CodeBlocks, n.plainText())
			return
		case n.Type == "mention" || n.Type == "inlineCard" || n.Type == "emoji" || len(n.Marks) > 0:
			seen.ActiveContent = append(seen.ActiveContent, n.Type)
		case n.Type == "codeBlock":
			seen.CodeBlocks = append(seen.CodeBlocks, n.plainText())
			return
		case n.Type == "tableRow":
			var row []string
			for _, c := range n.Content {
				row = append(row, c.plainText())
			}
			seen.TableRows = append(seen.TableRows, row)
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
