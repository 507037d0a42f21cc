// Package yamlnode reads the YAML files that people write for Stanch from their nodes, so that every problem has its
// place: fields declared once give both the reader and the JSON Schema.
//
// It is pure. It refuses anchors, aliases, further documents, unknown and duplicate keys, and what is too large or too
// deep; it reports all problems of a file at once and never reads a part of it.
package yamlnode

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
)

// Limits of a file. The zero value of each means that of a playbook.
type Limits struct {
	Bytes, Nodes, Depth int
}

const (
	maxBytes    = 256 << 10
	maxNodes    = 20_000
	maxDepth    = 24
	maxProblems = 100
)

func (l Limits) orDefault() Limits {
	if l.Bytes == 0 {
		l.Bytes = maxBytes
	}
	if l.Nodes == 0 {
		l.Nodes = maxNodes
	}
	if l.Depth == 0 {
		l.Depth = maxDepth
	}
	return l
}

// Reader reads one file and collects what is wrong with it.
type Reader struct {
	File     string
	Begin    string // how the file begins, for who wrote an empty one
	Problems diagnostic.Diagnostics
}

// Pos is a place in a file, from 1.
type Pos struct{ Line, Column int }

// At is where a node begins.
func At(n *yaml.Node) Pos {
	if n == nil {
		return Pos{1, 1}
	}
	return Pos{max(n.Line, 1), max(n.Column, 1)}
}

// Errorf reports a problem at a place.
func (r *Reader) Errorf(at Pos, code, hint, format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, diagnostic.Diagnostic{
			File: r.File, Line: max(at.Line, 1), Column: max(at.Column, 1), Severity: "error", Code: code, Message: fmt.Sprintf(format, args...), Hint: hint,
		})
	}
}

// Document is the one document of a file, or nil where there is none to read.
func (r *Reader) Document(source []byte, limits Limits) *yaml.Node {
	limits = limits.orDefault()
	if len(source) > limits.Bytes {
		r.Errorf(Pos{1, 1}, "too-large", "split the file", "the file has %d bytes, at most %d are read", len(source), limits.Bytes)
		return nil
	}
	if !utf8.Valid(source) {
		r.Errorf(Pos{1, 1}, "encoding", "save the file as UTF-8", "the file is not UTF-8 text")
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			r.Errorf(Pos{1, 1}, "empty", r.Begin, "the file is empty")
			return nil
		}
		at, text, hint := misread(source, err)
		r.Errorf(at, "yaml", hint, "not YAML: %s", text)
		return nil
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		r.Errorf(At(&second), "documents", "put each into a file of its own", "a second document in one file")
	}
	nodes := 0
	if !r.bounded(&doc, limits, 0, &nodes) {
		return nil
	}
	if len(doc.Content) != 1 {
		r.Errorf(Pos{1, 1}, "empty", r.Begin, "the file holds nothing")
		return nil
	}
	return doc.Content[0]
}

func (r *Reader) bounded(n *yaml.Node, limits Limits, depth int, nodes *int) bool {
	*nodes++
	switch {
	case depth > limits.Depth:
		r.Errorf(At(n), "too-deep", "", "nested more than %d levels deep", limits.Depth)
		return false
	case *nodes > limits.Nodes:
		r.Errorf(At(n), "too-large", "split the file", "more than %d values in one file", limits.Nodes)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		r.Errorf(At(n), "alias", "write the value out", "anchors and aliases are not allowed here")
		return false
	}
	if message, hint := Lossy(n); message != "" {
		r.Errorf(At(n), "value", hint, "%s", message)
	}
	for _, child := range n.Content {
		if !r.bounded(child, limits, depth+1, nodes) {
			return false
		}
	}
	return true
}

// Kind names what a node is, for a message.
func Kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "empty"
		}
		return fmt.Sprintf("`%s`", Clip(n.Value, 40))
	default:
		return "this"
	}
}

// Clip bounds a text that stands in a message.
func Clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}
