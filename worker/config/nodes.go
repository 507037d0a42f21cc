package config

// Nodes bounds what each node's sensor may send. Over it nothing is lost at once: the node waits, and its spool grows.
type Nodes struct {
	Rate  int `yaml:"rate" json:"rate,omitempty" jsonschema:"minimum=1,maximum=100000,description=detections a second of each node; 500 if not given"`
	Burst int `yaml:"burst" json:"burst,omitempty" jsonschema:"minimum=1,maximum=1000000,description=detections at once after a silence; ten seconds' worth if not given"`
	Bytes int `yaml:"bytes" json:"bytes,omitempty" jsonschema:"minimum=65536,maximum=1073741824,description=bytes a second of each node; 4 MiB if not given"`
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

func (p *parser) nodes(n Nodes) {
	for _, c := range []struct {
		key               string
		value, least, top int
	}{{"rate", n.Rate, 1, 100_000}, {"burst", n.Burst, 1, 1_000_000}, {"bytes", n.Bytes, 64 << 10, 1 << 30}} {
		if c.value != 0 && (c.value < c.least || c.value > c.top) {
			p.errorf(1, "range", "", "nodes: `%s` is %d, and must be from %d to %d", c.key, c.value, c.least, c.top)
		}
	}
}
