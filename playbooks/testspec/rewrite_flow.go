package testspec

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// cutExpectValue removes a value in brackets, or a value on the line of its key, from the lines. ok is false if the end
// of the value is not found.
func cutExpectValue(lines []string, key, list *yaml.Node) (head, rest []string, ok bool) {
	line := lines[key.Line-1]
	head = []string{line[:strings.Index(line, "expect:")+len("expect:")]}
	last, tail := key.Line-1, line[len(head[0]):]
	if list.Kind == yaml.SequenceNode {
		if list.Line > key.Line { // only comments can be between them
			head = append([]string{strings.TrimRight(line, "\r\n")}, lines[key.Line:list.Line-1]...)
		}
		if last, tail, ok = findFlowListEnd(lines, list); !ok {
			return nil, nil, false
		}
	}
	if i := strings.IndexByte(tail, '#'); i >= 0 && list.Line == key.Line {
		head[0] += " " + strings.TrimRight(tail[i:], "\r\n")
	} else if i >= 0 {
		head = append(head, strings.Repeat(" ", key.Column+1)+strings.TrimRight(tail[i:], "\r\n")+"\n")
	}
	head[0] += "\n"
	return head, lines[min(last+1, len(lines)):], true
}

// findFlowListEnd returns the line of the bracket that closes a list, and the text after it. It starts after the last
// scalar, whose position and quoting the parser knows, so that only brackets, commas and comments remain.
func findFlowListEnd(lines []string, list *yaml.Node) (last int, tail string, ok bool) {
	open, n := 0, list
	at := func(n *yaml.Node) []rune {
		if n.Line < 1 || n.Line > len(lines) {
			return nil
		}
		text := []rune(lines[n.Line-1])
		return text[max(0, min(n.Column-1, len(text))):]
	}
	for ; len(n.Content) > 0; n = n.Content[len(n.Content)-1] {
		if text := at(n); len(text) > 0 && (text[0] == '[' || text[0] == '{') {
			open++ // a single-pair mapping in a list needs no brackets
		}
	}
	text, last := at(n), n.Line-1
	next := func() bool {
		if last++; last >= len(lines) {
			return false
		}
		text = []rune(lines[last])
		return true
	}
	var quote rune
	switch {
	case n.Kind != yaml.ScalarNode: // empty list or mapping: its brackets are read below
	case n.Style&yaml.DoubleQuotedStyle != 0:
		quote = '"'
	case n.Style&yaml.SingleQuotedStyle != 0:
		quote = '\''
	}
	if quote != 0 {
		if len(text) == 0 || text[0] != quote {
			return 0, "", false // a tag precedes it
		}
		for i := 1; ; i++ {
			for i >= len(text) {
				if i = 0; !next() {
					return 0, "", false
				}
			}
			if quote == '"' && text[i] == '\\' || quote == '\'' && text[i] == quote && i+1 < len(text) && text[i+1] == quote {
				i++
				continue
			}
			if text[i] == quote {
				text = text[i+1:]
				break
			}
		}
	}
	before := ' '
	if n.Kind == yaml.ScalarNode && quote == 0 {
		before = 'x' // a # inside a plain scalar does not start a comment
	}
	for {
		for i, r := range text {
			if r == '#' && (before == ' ' || before == '\t' || before == '\n') {
				break
			}
			switch r {
			case '[', '{':
				open++
			case ']', '}':
				open--
			}
			if before = r; open == 0 {
				return last, string(text[i+1:]), true
			}
		}
		if before = '\n'; !next() {
			return 0, "", false
		}
	}
}

// findDifferenceOutsideExpect returns the first node of a that differs from b outside the `expect` of tests, or nil.
func findDifferenceOutsideExpect(a, b *yaml.Node, path ...string) *yaml.Node {
	if a.Kind != b.Kind || a.Tag != b.Tag || a.Value != b.Value || len(a.Content) != len(b.Content) {
		return a
	}
	for i, child := range a.Content {
		step := ""
		switch {
		case a.Kind == yaml.MappingNode && i%2 == 0:
			step = "key"
		case a.Kind == yaml.MappingNode:
			step = a.Content[i-1].Value
		case a.Kind == yaml.SequenceNode:
			step = "-"
		}
		inner := append(slices.Clone(path), step)
		if slices.Equal(inner, []string{"", "tests", "-", "expect"}) {
			continue
		}
		if n := findDifferenceOutsideExpect(child, b.Content[i], inner...); n != nil {
			if n == child && a.Kind == yaml.MappingNode && i%2 == 1 {
				return a.Content[i-1]
			}
			return n
		}
	}
	return nil
}
