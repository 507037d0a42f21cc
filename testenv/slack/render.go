package slack

import (
	_ "embed" // the style
	"encoding/json"
	"fmt"
	"html/template"
	"strings"
)

// RenderHTML renders messages approximately as Slack shows them, for a person to review.
func RenderHTML(messages ...Message) (string, error) {
	var b strings.Builder
	b.WriteString(`<!doctype html><html><head><meta charset="utf-8"><style>` + "\n" + pageStyle + `</style></head><body>`)
	for _, m := range messages {
		var blocks []map[string]any
		if err := json.Unmarshal(m.Blocks, &blocks); err != nil {
			return "", fmt.Errorf("blocks of %s: %w", m.TS, err)
		}
		class := "message"
		if m.ThreadTS != "" {
			class += " reply"
		}
		fmt.Fprintf(
			&b,
			`<div class=%q><div class="avatar">S</div><div class="body"><div class="who">Stanch <span>APP</span></div>`,
			class,
		)
		for _, block := range blocks {
			renderBlock(&b, block)
		}
		b.WriteString("</div></div>")
	}
	b.WriteString("</body></html>")
	return b.String(), nil
}

//go:embed page.css
var pageStyle string

func renderBlock(b *strings.Builder, block map[string]any) {
	switch block["type"] {
	case "header":
		fmt.Fprintf(b, `<div class="header">%s</div>`, plainTextOf(block["text"]))
	case "divider":
		b.WriteString("<hr>")
	case "context":
		b.WriteString(`<div class="context">`)
		for _, e := range toObjectList(block["elements"]) {
			b.WriteString(plainTextOf(e))
		}
		b.WriteString("</div>")
	case "actions":
		b.WriteString(`<div class="actions">`)
		for _, e := range toObjectList(block["elements"]) {
			style, _ := e["style"].(string)
			fmt.Fprintf(b, `<b class=%q>%s</b>`, style, plainTextOf(e["text"]))
		}
		b.WriteString("</div>")
	case "rich_text":
		for _, e := range toObjectList(block["elements"]) {
			renderRichText(b, e)
		}
	default:
		fmt.Fprintf(b, "<p>[%v]</p>", block["type"])
	}
}

func renderRichText(b *strings.Builder, e map[string]any) {
	open, end := "<div>", "</div>"
	if e["type"] == "rich_text_list" {
		b.WriteString("<ul>")
		for _, item := range toObjectList(e["elements"]) {
			b.WriteString("<li>")
			renderRichText(b, item)
			b.WriteString("</li>")
		}
		b.WriteString("</ul>")
		return
	}
	b.WriteString(open)
	for _, part := range toObjectList(e["elements"]) {
		text, _ := part["text"].(string)
		switch part["type"] {
		case "user":
			fmt.Fprintf(b, `<span class="mention">@%v</span>`, template.HTMLEscapeString(fmt.Sprint(part["user_id"])))
			continue
		case "usergroup":
			fmt.Fprintf(b, `<span class="mention">@%v</span>`, template.HTMLEscapeString(fmt.Sprint(part["usergroup_id"])))
			continue
		}
		text = template.HTMLEscapeString(text)
		style, _ := part["style"].(map[string]any)
		if style["bold"] == true {
			text = "<strong>" + text + "</strong>"
		}
		if style["code"] == true {
			text = "<code>" + text + "</code>"
		}
		b.WriteString(text)
	}
	b.WriteString(end)
}

func plainTextOf(v any) string {
	m, _ := v.(map[string]any)
	text, _ := m["text"].(string)
	return template.HTMLEscapeString(text)
}

func toObjectList(v any) []map[string]any {
	all, _ := v.([]any)
	var out []map[string]any
	for _, one := range all {
		if m, ok := one.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}
