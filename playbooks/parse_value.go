package playbooks

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/duration"
	"stanch/sensors/truncate"
)

func (p *parser) parseString(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		p.errorf(nodePos(n), "type", "", "`%s` must be a string, not %s", what, nodeKindName(n))
		return ""
	}
	return n.Value
}

func (p *parser) parseStrings(n *yaml.Node, what string) []string {
	if n.Kind == yaml.ScalarNode {
		return []string{p.parseString(n, what)}
	}
	if n.Kind != yaml.SequenceNode {
		p.errorf(nodePos(n), "type", "", "`%s` must be a string or a list of strings, not %s", what, nodeKindName(n))
		return nil
	}
	var out []string
	for _, item := range n.Content {
		out = append(out, p.parseString(item, what))
	}
	return out
}

func (p *parser) parseInt(n *yaml.Node, what string) int {
	var i int
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || n.Decode(&i) != nil {
		p.errorf(nodePos(n), "type", "", "`%s` must be an integer, not %s", what, nodeKindName(n))
	}
	return i
}

// parseIntInRange parses an integer between low and high.
func (p *parser) parseIntInRange(n *yaml.Node, what string, low, high int) int {
	before := len(p.Problems)
	i := p.parseInt(n, what)
	if len(p.Problems) == before && (i < low || i > high) {
		p.errorf(nodePos(n), "range", "", "`%s` must be from %d to %d", what, low, high)
	}
	return min(max(i, low), high)
}

func (p *parser) parseBool(n *yaml.Node, what string) bool {
	var b bool
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Decode(&b) != nil {
		p.errorf(nodePos(n), "type", "", "`%s` must be `true` or `false`, not %s", what, nodeKindName(n))
	}
	return b
}

func (p *parser) parseNumber(n *yaml.Node, what string) *float64 {
	var f float64
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" && n.Tag != "!!float" || n.Decode(&f) != nil {
		p.errorf(nodePos(n), "type", "", "`%s` must be a number, not %s", what, nodeKindName(n))
		return nil
	}
	return &f
}

// parseIdentifiers parses a list of strings and keeps their positions.
func (p *parser) parseIdentifiers(n *yaml.Node, what string) []Identifier {
	nodes := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		nodes = n.Content
	}
	texts := p.parseStrings(n, what)
	out := make([]Identifier, 0, len(texts))
	for i, text := range texts {
		out = append(out, Identifier{text, nodePos(nodes[i])})
	}
	return out
}

func (p *parser) parseDuration(n *yaml.Node, what string) time.Duration {
	d, err := duration.Parse(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || d <= 0 {
		p.errorf(nodePos(n), "duration", "for example, write `90s`, `15m` or `1d`", "`%s` must be a duration, not %s", what,
			nodeKindName(n))
		return 0
	}
	if d > 30*24*time.Hour {
		p.errorf(nodePos(n), "range", "", "`%s` is longer than 30 days", what)
	}
	return d
}

// scalarContentPos returns the position of the first character of a scalar's text, after its quote.
func (p *parser) scalarContentPos(n *yaml.Node) Pos {
	pos := nodePos(n)
	switch n.Style {
	case yaml.DoubleQuotedStyle, yaml.SingleQuotedStyle:
		pos.Column++
	case yaml.LiteralStyle, yaml.FoldedStyle:
		pos.Line++
		pos.Column = p.indentColumn(pos.Line)
	default: // plain scalar: the text starts at the node
	}
	return pos
}

// indentColumn returns the column in which the text of a line starts.
func (p *parser) indentColumn(line int) int {
	if p.sourceLines == nil {
		p.sourceLines = strings.Split(string(p.fileContent), "\n")
	}
	if line < 1 || line > len(p.sourceLines) {
		return 1
	}
	return len(p.sourceLines[line-1]) - len(strings.TrimLeft(p.sourceLines[line-1], " ")) + 1
}

// parseExpr parses a value that is one expression, with or without `${…}` around it.
func (p *parser) parseExpr(n *yaml.Node, what string) *Expr {
	if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
		p.errorf(nodePos(n), "type", "put the expression in quotes", "`%s` starts with `!`, which YAML reads as a tag", what)
		return nil
	}
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		p.errorf(nodePos(n), "type", "", "`%s` must be an expression, not %s", what, nodeKindName(n))
		return nil
	}
	pos, source := p.scalarContentPos(n), n.Value
	if trimmed := strings.TrimSpace(source); strings.HasPrefix(trimmed, "${") && strings.HasSuffix(trimmed, "}") {
		pos.Column += strings.Index(source, "${") + 2
		source = trimmed[2 : len(trimmed)-1]
	}
	if strings.TrimSpace(source) == "" {
		p.errorf(nodePos(n), "type", "", "`%s` is an empty expression", what)
		return nil
	}
	return &Expr{Source: source, Pos: pos}
}

// parseTemplate splits a string at its `${…}`. `$${` is an escaped `${`.
func (p *parser) parseTemplate(n *yaml.Node) *Template {
	s := p.parseString(n, "a string")
	t := &Template{Pos: p.scalarContentPos(n)}
	literal := strings.Builder{}
	for i := 0; i < len(s); {
		switch {
		case strings.HasPrefix(s[i:], "$${"):
			literal.WriteString("${")
			i += 3
		case strings.HasPrefix(s[i:], "${"):
			end := findClosingBrace(s[i+2:])
			if end < 0 {
				p.errorf(posAtByte(t.Pos, s, i), "expression", "close it with `}`", "`${` is not closed")
				return t
			}
			if literal.Len() > 0 {
				t.Parts = append(t.Parts, TemplatePart{Literal: literal.String()})
				literal.Reset()
			}
			t.Parts = append(t.Parts, TemplatePart{Expr: &Expr{Source: s[i+2 : i+2+end], Pos: posAtByte(t.Pos, s, i+2)}})
			i += 2 + end + 1
		default:
			literal.WriteByte(s[i])
			i++
		}
	}
	if literal.Len() > 0 {
		t.Parts = append(t.Parts, TemplatePart{Literal: literal.String()})
	}
	return t
}

// posAtByte returns the position of byte i of a text that starts at pos.
func posAtByte(pos Pos, s string, i int) Pos {
	before := s[:i]
	if nl := strings.LastIndexByte(before, '\n'); nl >= 0 {
		// all lines of a block scalar start in the same column
		return Pos{Line: pos.Line + strings.Count(before, "\n"), Column: pos.Column + len([]rune(before[nl+1:]))}
	}
	return Pos{Line: pos.Line, Column: pos.Column + len([]rune(before))}
}

// findClosingBrace returns the index of the brace that ends an expression. It skips nested braces and strings.
func findClosingBrace(s string) int {
	depth := 0
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == '\\' && quote != '`' {
				i++
			} else if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'' || c == '`':
			quote = c
		case c == '{':
			depth++
		case c == '}':
			if depth == 0 {
				return i
			}
			depth--
		}
	}
	return -1
}

func (p *parser) parseArguments(n *yaml.Node, what string) []Argument {
	var args []Argument
	p.parseEntries(n, what, func(key, value *yaml.Node) {
		args = append(args, Argument{Name: key.Value, Pos: nodePos(key), Value: p.parseValue(value)})
	})
	return args
}

func (p *parser) parseValue(n *yaml.Node) Value {
	v := Value{Pos: nodePos(n)}
	switch n.Kind {
	case yaml.SequenceNode:
		v.IsList = true
		for _, item := range n.Content {
			v.List = append(v.List, p.parseValue(item))
		}
	case yaml.MappingNode:
		v.IsMap = true
		v.Map = p.parseArguments(n, "this")
	default:
		switch n.Tag {
		case "!!str":
			if !strings.Contains(n.Value, "${") {
				v.Literal = n.Value
				break
			}
			t := p.parseTemplate(n)
			if len(t.Parts) == 1 && t.Parts[0].Expr != nil {
				v.Expr = t.Parts[0].Expr
			} else {
				v.Template = t
			}
		case "!!int":
			var i int
			if n.Decode(&i) != nil {
				p.errorf(v.Pos, "range", "", "the number %s is out of range", truncate.Text(n.Value, 40))
			}
			v.Literal = i
		case "!!float":
			var f float64
			if n.Decode(&f) == nil {
				v.Literal = f
			}
		case "!!bool":
			var b bool
			if n.Decode(&b) == nil {
				v.Literal = b
			}
		case "!!null":
		default:
			p.errorf(v.Pos, "type", "put it in quotes", "unknown YAML type %s", n.Tag)
		}
	}
	return v
}
