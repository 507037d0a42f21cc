package rules

import (
	"unicode"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/yamlnode"
)

// positionInScalar returns the position in the file of a character in a scalar value. YAML folds, strips and unescapes
// the source, so this follows the value through the source. If that fails, it returns the beginning of the scalar.
func (f *packFile) positionInScalar(n *yaml.Node, offset int) yamlnode.Position {
	begin := yamlnode.PositionOf(n)
	if n == nil || n.Line > len(f.lines) {
		return begin
	}
	s := &scalarScanner{
		lines: f.lines, line: begin.Line - 1, text: []rune(f.lines[begin.Line-1]),
		column: begin.Column - 1, style: n.Style,
	}
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		s.advance() // skip the header line
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		s.column++
	}
	value := []rune(n.Value)
	for i := 0; ; i++ {
		end := i >= len(value)
		if !end && unicode.IsSpace(value[i]) {
			if i == offset {
				return s.pos()
			}
			s.skipEscapedSpace()
			continue
		}
		if end {
			return s.pos() // after the last character
		}
		if !s.skipTo(value[i]) {
			return begin
		}
		if i == offset {
			return s.pos()
		}
		s.column++
	}
}

type scalarScanner struct {
	lines  []string
	line   int
	text   []rune
	column int
	style  yaml.Style
}

func (s *scalarScanner) pos() yamlnode.Position {
	return yamlnode.Position{Line: s.line + 1, Column: s.column + 1}
}

func (s *scalarScanner) advance() bool {
	if s.line+1 >= len(s.lines) {
		return false
	}
	s.line, s.column = s.line+1, 0
	s.text = []rune(s.lines[s.line])
	return true
}

// skipTo advances to the next character that is not a space. It returns false if that is not the wanted one.
func (s *scalarScanner) skipTo(want rune) bool {
	for {
		switch {
		case s.column >= len(s.text):
			if !s.advance() {
				return false
			}
			continue
		case unicode.IsSpace(s.text[s.column]):
			s.column++
			continue
		}
		break
	}
	got := s.text[s.column]
	after := rune(0)
	if s.column+1 < len(s.text) {
		after = s.text[s.column+1]
	}
	switch {
	case s.style&yaml.DoubleQuotedStyle != 0 && got == '\\' && (after == '"' || after == '\\' || after == '/') &&
		after == want:
		s.column++
	case s.style&yaml.DoubleQuotedStyle != 0 && got == '\\' && after == 0: // an escaped line break
		return s.advance() && s.skipTo(want)
	case s.style&yaml.SingleQuotedStyle != 0 && got == '\'' && after == '\'' && want == '\'':
		s.column++
	case got != want:
		return false
	}
	return true
}

// skipEscapedSpace skips a space that is written as an escape sequence.
func (s *scalarScanner) skipEscapedSpace() {
	if s.style&yaml.DoubleQuotedStyle != 0 && s.column+1 < len(s.text) && s.text[s.column] == '\\' {
		switch s.text[s.column+1] {
		case 'n', 't', 'r', ' ':
			s.column += 2
		}
	}
}
