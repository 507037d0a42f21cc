package config

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/yamlnode"
)

// configParser parses one file. It reports each problem at its node, with the machinery of playbooks and rules.
type configParser struct {
	yamlnode.Reader
	root *yaml.Node // nil if the file is empty or not YAML
}

// at returns the position of the value at a path of keys and indexes, such as "scopes", 1, "phase". If a part of the
// path is missing, it returns the position of the deepest part that exists.
func (p *configParser) at(path ...any) yamlnode.Position {
	n := p.root
	for _, step := range path {
		next := child(n, step)
		if next == nil {
			break
		}
		n = next
	}
	return yamlnode.PositionOf(n)
}

// child returns the value of a mapping's key or a sequence's index; nil if there is none.
func child(n *yaml.Node, step any) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil {
		return nil
	}
	switch step := step.(type) {
	case string:
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	case int:
		if n.Kind == yaml.SequenceNode && step < len(n.Content) {
			return n.Content[step]
		}
	}
	return nil
}

// unmarshalTagPattern matches the tag of a list or mapping in the decoder's message, which shows no value for those.
var unmarshalTagPattern = regexp.MustCompile("^cannot unmarshal (!!seq|!!map) ")

var quotedValuePattern = regexp.MustCompile("`([^`]*)`")

// atLine returns the position of what the decoder's message is about, which names only the line: the key, the value in
// backticks, or the list or mapping, if it is on that line; otherwise the line's first value.
func (p *configParser) atLine(line int, key, message string) yamlnode.Position {
	want := key
	if m := quotedValuePattern.FindStringSubmatch(message); key == "" && m != nil {
		want = strings.TrimSuffix(m[1], "...") // the decoder truncates values
	}
	tag := unmarshalTagPattern.FindStringSubmatch(message)
	found, first := yamlnode.Position{}, yamlnode.Position{Line: line, Column: 1}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Line == line && tag != nil && n != p.root && n.Tag == tag[1] && found.Line == 0 {
			found = yamlnode.PositionOf(n)
		}
		if n.Line == line && n.Kind == yaml.ScalarNode {
			if first.Column == 1 {
				first = yamlnode.PositionOf(n)
			}
			if found.Line == 0 && want != "" && strings.HasPrefix(n.Value, want) {
				found = yamlnode.PositionOf(n)
			}
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	if p.root != nil {
		walk(p.root)
	}
	if found.Line != 0 {
		return found
	}
	return first
}
