package config

import (
	"fmt"
	"time"

	"github.com/invopop/jsonschema"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"

	"stanch/sensors/duration"
)

// EvidenceLimits limits the evidence store. Evidence that does not fit is refused with the reason, and does not delay a
// containment.
type EvidenceLimits struct {
	MaxTotalBytes       Size `yaml:"max_total" json:"max_total,omitempty" jsonschema:"description=of all evidence; default 20Gi"`
	MaxBytesPerIncident Size `yaml:"max_per_incident" json:"max_per_incident,omitempty" jsonschema:"description=of the evidence of one incident; default 2Gi"`
	MinFreeBytes        Size `yaml:"min_free" json:"min_free,omitempty" jsonschema:"description=minimum free space on the file system; default 1Gi"`
}

// Size is a number of bytes, written as in Kubernetes: 512Mi, 20Gi.
type Size int64

// UnmarshalYAML parses a size such as "20Gi".
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	q, err := resource.ParseQuantity(n.Value)
	if err != nil || q.Value() <= 0 {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: invalid size `%s`; use a size such as 512Mi or 20Gi",
			n.Line, n.Value)}}
	}
	*s = Size(q.Value())
	return nil
}

// MarshalText returns the size as text, such as "20Gi".
func (s Size) MarshalText() ([]byte, error) {
	return []byte(resource.NewQuantity(int64(s), resource.BinarySI).String()), nil
}

// UnmarshalText parses a size such as "20Gi".
func (s *Size) UnmarshalText(text []byte) error {
	q, err := resource.ParseQuantity(string(text))
	*s = Size(q.Value())
	return err //nolint:wrapcheck // the error names the value
}

// Duration is a time.Duration that is written as "15m".
type Duration time.Duration

// UnmarshalYAML parses a duration such as "15m".
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := duration.Parse(n.Value)
	if err != nil || v <= 0 {
		// A TypeError is collected with the file's other errors; any other error would hide them.
		return &yaml.TypeError{Errors: []string{fmt.Sprintf(
			"line %d: invalid duration `%s`; use a duration such as 90s, 15m or 1d", n.Line, n.Value)}}
	}
	*d = Duration(v)
	return nil
}

// MarshalText returns the duration as text, such as "15m".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the duration as text, such as "15m".
func (d Duration) String() string { return duration.Format(time.Duration(d)) }

// UnmarshalText parses a duration such as "15m".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := duration.Parse(string(text))
	*d = Duration(v)
	return err //nolint:wrapcheck // the error names the value
}

// JSONSchema returns the schema of the text form of a size.
func (Size) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{
		Pattern: `^[0-9]+(\.[0-9]+)?([kMGTPE]|[KMGTPE]i)?$`, Examples: []any{"512Mi", "20Gi"},
		OneOf: []*jsonschema.Schema{{Type: "string"}, {Type: "integer", Minimum: "1"}},
	}
}

// JSONSchema returns the schema of the text form of a duration.
func (Duration) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Pattern: duration.Pattern, Examples: []any{"90s", "15m", "1d"}}
}
