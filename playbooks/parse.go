package playbooks

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"stanch/sensors/diagnostic"

	"go.yaml.in/yaml/v3"
)

// Limits of a file: past any of them it is refused before it is read further.
const (
	MaxFileBytes = 256 << 10
	MaxNodes     = 20_000
	MaxDepth     = 24
)

// Parse reads one playbook. It never returns a playbook without having read the whole of it; the diagnostics hold
// every problem of syntax, unknown key and malformed value.
func Parse(file string, source []byte) (*Playbook, diagnostic.Diagnostics) {
	p := &parser{file: file, source: source}
	book := &Playbook{File: file, Source: source, Hash: HashOf(source, nil), MaxPhase: 3}
	root := p.document(source)
	if root != nil {
		p.playbook(root, book)
	}
	return book, p.problems.Sorted()
}

type parser struct {
	file     string
	problems diagnostic.Diagnostics
	count    int // of steps
	source   []byte
	lines    []string // of the source, once they are needed
}

func (p *parser) errorf(pos Pos, code, hint, format string, args ...any) {
	if len(p.problems) < 100 {
		p.problems = append(p.problems, diagnostic.Diagnostic{
			File: p.file, Line: max(pos.Line, 1), Column: max(pos.Column, 1),
			Severity: "error", Code: code, Message: fmt.Sprintf(format, args...), Hint: hint,
		})
	}
}

var yamlErrorLine = regexp.MustCompile(`line (\d+):\s*`)

// document decodes the one YAML document of a file and refuses what is too large, too deep or aliased.
func (p *parser) document(source []byte) *yaml.Node {
	if len(source) > MaxFileBytes {
		p.errorf(Pos{1, 1}, "too-large", "split the file", "the file has %d bytes, at most %d are read", len(source), MaxFileBytes)
		return nil
	}
	if !utf8.Valid(source) {
		p.errorf(Pos{1, 1}, "encoding", "save the file as UTF-8", "the file is not UTF-8 text")
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			p.errorf(Pos{1, 1}, "empty", "begin with `playbook: NAME`", "the file is empty")
			return nil
		}
		line, text := 1, strings.TrimPrefix(err.Error(), "yaml: ")
		if m := yamlErrorLine.FindStringSubmatch(text); m != nil {
			line, _ = strconv.Atoi(m[1])
			text = strings.Replace(text, m[0], "", 1)
		}
		p.errorf(Pos{line, 1}, "yaml", "", "not YAML: %s", text)
		return nil
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		p.errorf(posOf(&second), "documents", "put each playbook into a file of its own", "a second document in one file")
	}
	nodes := 0
	if !p.bounded(&doc, 0, &nodes) {
		return nil
	}
	if len(doc.Content) != 1 {
		p.errorf(Pos{1, 1}, "empty", "begin with `playbook: NAME`", "the file holds nothing")
		return nil
	}
	return doc.Content[0]
}

func (p *parser) bounded(n *yaml.Node, depth int, nodes *int) bool {
	*nodes++
	switch {
	case depth > MaxDepth:
		p.errorf(posOf(n), "too-deep", "", "nested more than %d levels deep", MaxDepth)
		return false
	case *nodes > MaxNodes:
		p.errorf(posOf(n), "too-large", "split the file", "more than %d values in one file", MaxNodes)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		p.errorf(posOf(n), "alias", "write the value out", "anchors and aliases are not allowed in a playbook")
		return false
	}
	for _, child := range n.Content {
		if !p.bounded(child, depth+1, nodes) {
			return false
		}
	}
	return true
}

// entries walks a mapping and hands over each key with its value. A duplicate key is an error at the key.
func (p *parser) entries(n *yaml.Node, what string, read func(key, value *yaml.Node)) bool {
	if n.Kind != yaml.MappingNode {
		p.errorf(posOf(n), "type", "", "%s must be a mapping, not %s", what, kindName(n))
		return false
	}
	seen := map[string]Pos{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if first, ok := seen[key.Value]; ok {
			p.errorf(posOf(key), "duplicate-key", "remove one of them", "`%s` is given twice; the first is at line %d", clip(key.Value, 40), first.Line)
			continue
		}
		seen[key.Value] = posOf(key)
		read(key, value)
	}
	return true
}

// fields walks a mapping and hands each value to the reader of its key. Unknown and duplicate keys are errors at
// the key.
func (p *parser) fields(n *yaml.Node, what string, readers map[string]func(key, value *yaml.Node)) bool {
	return p.entries(n, what, func(key, value *yaml.Node) {
		read, ok := readers[key.Value]
		if !ok {
			p.errorf(posOf(key), "unknown-key", diagnostic.DidYouMean(key.Value, slices.Collect(maps.Keys(readers))), "%s has no key `%s`", what, clip(key.Value, 40))
			return
		}
		read(key, value)
	})
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "empty"
		}
		return fmt.Sprintf("`%s`", clip(n.Value, 40))
	default:
		return "this"
	}
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}
