// Package yamlnode reads the YAML files that people write for Stanch at the level of YAML nodes, so that every problem
// has a position. A field is declared once, and the declaration provides both the reader and the JSON Schema.
//
// It is pure. It refuses anchors, aliases, multiple documents, unknown and duplicate keys, and files that are too
// large or nested too deep. It reports all problems of a file at once, and never reads only a part of it.
package yamlnode

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
)

// Limits are the limits of a file: its size in bytes, its number of nodes and its nesting depth. A zero field means
// the default for playbooks: 256 KiB, 20,000 and 24.
type Limits struct {
	MaxBytes, MaxNodes, MaxDepth int
}

const (
	defaultMaxBytes = 256 << 10
	defaultMaxNodes = 20_000
	defaultMaxDepth = 24
	maxProblems     = 100
)

func (l Limits) withDefaults() Limits {
	if l.MaxBytes == 0 {
		l.MaxBytes = defaultMaxBytes
	}
	if l.MaxNodes == 0 {
		l.MaxNodes = defaultMaxNodes
	}
	if l.MaxDepth == 0 {
		l.MaxDepth = defaultMaxDepth
	}
	return l
}

// Reader reads one file and collects its problems, at most 100. It is not safe for concurrent use.
type Reader struct {
	File         string
	ExampleStart string // hint for an empty file: how a file begins
	Problems     diagnostic.Diagnostics
}

// Position is a position in a file. Lines and columns start at 1.
type Position struct{ Line, Column int }

// PositionOf returns the start of a node, or 1:1 for nil.
func PositionOf(n *yaml.Node) Position {
	if n == nil {
		return Position{1, 1}
	}
	return Position{max(n.Line, 1), max(n.Column, 1)}
}

// Errorf records an error at a position.
func (r *Reader) Errorf(at Position, code, hint, format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, diagnostic.Diagnostic{
			File: r.File, Line: max(at.Line, 1), Column: max(at.Column, 1), Severity: "error", Code: code,
			Message: fmt.Sprintf(format, args...), Hint: hint,
		})
	}
}

// ParseDocument returns the root node of the only document in source. If source is invalid or exceeds the limits, it
// records the problem and returns nil.
func (r *Reader) ParseDocument(source []byte, limits Limits) *yaml.Node {
	limits = limits.withDefaults()
	if len(source) > limits.MaxBytes {
		r.Errorf(Position{1, 1}, "too-large", "split the file", "the file is %d bytes; the maximum is %d", len(source),
			limits.MaxBytes)
		return nil
	}
	if !utf8.Valid(source) {
		r.Errorf(Position{1, 1}, "encoding", "save the file as UTF-8", "the file is not UTF-8 text")
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(source))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			r.Errorf(Position{1, 1}, "empty", r.ExampleStart, "the file is empty")
			return nil
		}
		at, text, hint := explainParseError(source, err)
		r.Errorf(at, "yaml", hint, "invalid YAML: %s", text)
		return nil
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		r.Errorf(PositionOf(&second), "documents", "put each document in its own file", "the file has a second document")
	}
	nodes := 0
	if !r.isWithinLimits(&doc, limits, 0, &nodes) {
		return nil
	}
	if len(doc.Content) != 1 {
		r.Errorf(Position{1, 1}, "empty", r.ExampleStart, "the file contains no value")
		return nil
	}
	return doc.Content[0]
}

func (r *Reader) isWithinLimits(n *yaml.Node, limits Limits, depth int, nodes *int) bool {
	*nodes++
	switch {
	case depth > limits.MaxDepth:
		r.Errorf(PositionOf(n), "too-deep", "", "nested more than %d levels deep", limits.MaxDepth)
		return false
	case *nodes > limits.MaxNodes:
		r.Errorf(PositionOf(n), "too-large", "split the file", "more than %d values in one file", limits.MaxNodes)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		r.Errorf(PositionOf(n), "alias", "write the value out", "anchors and aliases are not allowed here")
		return false
	}
	if message, hint := CheckLossyScalar(n); message != "" {
		r.Errorf(PositionOf(n), "value", hint, "%s", message)
	}
	for _, child := range n.Content {
		if !r.isWithinLimits(child, limits, depth+1, nodes) {
			return false
		}
	}
	return true
}

// DescribeKind returns a phrase for the kind or value of a node, for messages.
func DescribeKind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "empty"
		}
		return fmt.Sprintf("`%s`", truncate.Text(n.Value, 40))
	default:
		return "this"
	}
}
