package config

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
)

// NodeLimits limits which nodes may connect and what each node's sensor may send. Above the rate nothing is lost at
// once: the node waits, and its spool grows.
type NodeLimits struct {
	RefusedNodes        []string `yaml:"refused" json:"refused,omitempty" jsonschema:"description=names of nodes that are not allowed to connect or to renew their certificates"`
	DetectionsPerSecond int      `yaml:"rate" json:"rate,omitempty" jsonschema:"minimum=1,maximum=100000,description=detections per second of each node; default 500"`
	DetectionBurst      int      `yaml:"burst" json:"burst,omitempty" jsonschema:"minimum=1,maximum=1000000,description=detections in one burst; default ten seconds of the rate"`
	BytesPerSecond      int      `yaml:"bytes" json:"bytes,omitempty" jsonschema:"minimum=65536,maximum=1073741824,description=bytes per second of each node; default 4 MiB"`
}

const (
	defaultDetectionsPerSecond = 500
	defaultBytesPerSecond      = 4 << 20
)

// WithDefaults returns the limits with defaults for zero fields.
func (n NodeLimits) WithDefaults() NodeLimits {
	n.DetectionsPerSecond = valueOr(n.DetectionsPerSecond, defaultDetectionsPerSecond)
	n.DetectionBurst = valueOr(n.DetectionBurst, 10*n.DetectionsPerSecond)
	n.BytesPerSecond = valueOr(n.BytesPerSecond, defaultBytesPerSecond)
	return n
}

// IsRefused reports whether a node may not connect.
func (n NodeLimits) IsRefused(node string) bool { return slices.Contains(n.RefusedNodes, node) }

func (p *configParser) checkNodes(n NodeLimits) {
	for i, name := range n.RefusedNodes {
		if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
			p.Errorf(p.at("nodes", "refused", i), "name", "`kubectl get nodes` lists them", "nodes: invalid node name %q in `refused`", name)
		}
	}
	for _, c := range []struct {
		key               string
		value, least, top int
	}{
		{"rate", n.DetectionsPerSecond, 1, 100_000},
		{"burst", n.DetectionBurst, 1, 1_000_000},
		{"bytes", n.BytesPerSecond, 64 << 10, 1 << 30},
	} {
		if c.value != 0 && (c.value < c.least || c.value > c.top) {
			p.Errorf(p.at("nodes", c.key), "range", "", "nodes: invalid `%s` %d; use %d to %d", c.key, c.value, c.least, c.top)
		}
	}
}
