package config

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Nodes says which nodes are heard and bounds what each node's sensor may send. Over it nothing is lost at once: the node
// waits, and its spool grows.
type Nodes struct {
	Refused []string `yaml:"refused" json:"refused,omitempty" jsonschema:"description=names of nodes whose certificates are not believed any more: they are not heard and get no new one"`
	Rate    int      `yaml:"rate" json:"rate,omitempty" jsonschema:"minimum=1,maximum=100000,description=detections a second of each node; 500 if not given"`
	Burst   int      `yaml:"burst" json:"burst,omitempty" jsonschema:"minimum=1,maximum=1000000,description=detections at once after a silence; ten seconds' worth if not given"`
	Bytes   int      `yaml:"bytes" json:"bytes,omitempty" jsonschema:"minimum=65536,maximum=1073741824,description=bytes a second of each node; 4 MiB if not given"`
}

const (
	nodeRate  = 500
	nodeBytes = 4 << 20
)

// OrDefault fills in what is not given.
func (n Nodes) OrDefault() Nodes {
	n.Rate = orElse(n.Rate, nodeRate)
	n.Burst = orElse(n.Burst, 10*n.Rate)
	n.Bytes = orElse(n.Bytes, nodeBytes)
	return n
}

// Refuses tells whether a node is not to be heard.
func (n Nodes) Refuses(node string) bool { return slices.Contains(n.Refused, node) }

func (p *parser) nodes(n Nodes) {
	for _, name := range n.Refused {
		if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
			p.errorf(1, "name", "`kubectl get nodes` lists them", "nodes: `refused` has %q, which is no node's name", name)
		}
	}
	for _, c := range []struct {
		key               string
		value, least, top int
	}{{"rate", n.Rate, 1, 100_000}, {"burst", n.Burst, 1, 1_000_000}, {"bytes", n.Bytes, 64 << 10, 1 << 30}} {
		if c.value != 0 && (c.value < c.least || c.value > c.top) {
			p.errorf(1, "range", "", "nodes: `%s` is %d, and must be from %d to %d", c.key, c.value, c.least, c.top)
		}
	}
}
