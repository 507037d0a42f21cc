package config

import (
	"slices"
	"strings"

	"stanch/sensors/integrations"
)

// Foreign is a source of detections that posts over HTTP with a token.
type Foreign struct {
	Name      string `yaml:"name" json:"name" jsonschema:"required,description=the source of its detections; each name once"`
	TokenFile string `yaml:"token_file" json:"token_file" jsonschema:"required,description=a file with a token of at least 16 characters"`
	// Kind binds the token to one door; without it, it opens all of them.
	Kind string `yaml:"kind" json:"kind,omitempty" jsonschema:"enum=falco,enum=tetragon,enum=tracee,enum=kubearmor,enum=kubernetes-audit,enum=detections,description=what the token is good for; everything if not given"`
	Rate int    `yaml:"rate" json:"rate,omitempty" jsonschema:"minimum=1,maximum=100000,description=records a second; 2000 if not given"`
}

// The kinds of source that are no other sensor.
const (
	ForeignDetections = "detections"       // it posts detections in Stanch's own words
	ForeignAudit      = "kubernetes-audit" // an API server's webhook for its audit log
)

const (
	foreignRate    = 2000
	maxForeignRate = 100_000
)

// PerSecond is how many records a second a source may send.
func (f Foreign) PerSecond() int { return orElse(f.Rate, foreignRate) }

func (p *parser) foreign(sources []Foreign) {
	kinds := append(integrations.SourceKinds(), ForeignAudit, ForeignDetections)
	seen := map[string]bool{}
	for _, s := range sources {
		if s.Name == "" || seen[s.Name] {
			p.errorf(1, "name", "", "the foreign source name `%s` is empty or used twice", s.Name)
		}
		seen[s.Name] = true
		if s.TokenFile == "" {
			p.errorf(1, "required", "`openssl rand -hex 32 > FILE` makes a token", "foreign source %s: `token_file` is missing", s.Name)
		}
		if s.Kind != "" && !slices.Contains(kinds, s.Kind) {
			p.errorf(1, "kind", "known here: "+strings.Join(kinds, ", "), "foreign source %s: there is no kind `%s`", s.Name, s.Kind)
		}
		if s.Rate < 0 || s.Rate > maxForeignRate {
			p.errorf(1, "range", "records a second, from 1 to 100000", "foreign source %s: `rate` is %d", s.Name, s.Rate)
		}
	}
}
