package playbooks

import (
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// Limits of a file. Parsing stops at the first one that is exceeded.
const (
	MaxFileBytes = 256 << 10
	MaxNodes     = 20_000
	MaxDepth     = 24
)

// ParsePlaybook parses one playbook. It reads the complete file and returns every syntax error, unknown key and
// malformed value as a diagnostic.
func ParsePlaybook(file string, source []byte) (*Playbook, diagnostic.Diagnostics) {
	p := &parser{Reader: yamlnode.Reader{File: file, ExampleStart: "begin with `playbook: NAME`"}, fileContent: source}
	book := &Playbook{File: file, SourceText: source, Hash: HashWithCallees(source, nil), MaxPhase: 3}
	root := p.ParseDocument(source, yamlnode.Limits{MaxBytes: MaxFileBytes, MaxNodes: MaxNodes, MaxDepth: MaxDepth})
	if root != nil {
		p.parsePlaybook(root, book)
	}
	return book, p.Problems.Sorted()
}

type parser struct {
	yamlnode.Reader
	stepCount   int // number of steps
	fileContent []byte
	sourceLines []string // lines of the source, split when first needed
}

func (p *parser) errorf(pos Pos, code, hint, format string, args ...any) {
	p.Errorf(pos, code, hint, format, args...)
}

// parseEntries calls read for each key and value of a mapping. A duplicate key is an error at the key.
func (p *parser) parseEntries(n *yaml.Node, what string, read func(key, value *yaml.Node)) bool {
	if n.Kind != yaml.MappingNode {
		p.errorf(nodePos(n), "type", "", "%s must be a mapping, not %s", what, nodeKindName(n))
		return false
	}
	p.VisitKeys(n, read)
	return true
}

// parseFields calls the reader of each key of a mapping. Unknown and duplicate keys are errors at the key.
func (p *parser) parseFields(n *yaml.Node, what string, readers map[string]func(key, value *yaml.Node)) bool {
	return p.parseEntries(n, what, func(key, value *yaml.Node) {
		read, ok := readers[key.Value]
		if !ok {
			p.errorf(nodePos(key), "unknown-key", diagnostic.DidYouMean(key.Value, slices.Collect(maps.Keys(readers))),
				"%s has no key `%s`", what, truncate.Text(key.Value, 40))
			return
		}
		read(key, value)
	})
}

func nodeKindName(n *yaml.Node) string { return yamlnode.DescribeKind(n) }
