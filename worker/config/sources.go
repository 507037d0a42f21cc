package config

import (
	"slices"
	"strings"

	"github.com/invopop/jsonschema"

	"stanch/sensors/integrations"
)

// Source is a source of detections that posts over HTTP with a token.
type Source struct {
	Name      string `yaml:"name" json:"name" jsonschema:"required,description=the source of its detections; each name once"`
	TokenFile string `yaml:"token_file" json:"token_file" jsonschema:"required,description=a file with a token of at least 16 characters"`
	// Kind limits the token to one endpoint; without it, the token is valid for all.
	Kind          string `yaml:"kind" json:"kind,omitempty" jsonschema:"description=the kind that the token is valid for; default all"`
	RatePerSecond int    `yaml:"rate" json:"rate,omitempty" jsonschema:"minimum=1,maximum=100000,description=records per second; default 2000"`
}

// The kinds of sources besides other sensors.
const (
	SourceKindDetections      = "detections"       // it posts detections in Stanch's own format
	SourceKindKubernetesAudit = "kubernetes-audit" // the audit webhook of an API server
)

const (
	defaultSourceRate = 2000
	maxSourceRate     = 100_000
)

// EffectiveRate returns the maximum number of records per second of a source.
func (f Source) EffectiveRate() int { return valueOr(f.RatePerSecond, defaultSourceRate) }

// sourceKinds returns the valid kinds.
func sourceKinds() []string {
	return append(integrations.SourceKinds(), SourceKindKubernetesAudit, SourceKindDetections)
}

// JSONSchemaExtend adds the valid kinds to the schema.
func (Source) JSONSchemaExtend(s *jsonschema.Schema) {
	if kind, ok := s.Properties.Get("kind"); ok {
		for _, name := range sourceKinds() {
			kind.Enum = append(kind.Enum, name)
		}
	}
}

func (p *configParser) checkSources(sources []Source) {
	kinds := sourceKinds()
	seen := map[string]bool{}
	for i, s := range sources {
		if s.Name == "" || seen[s.Name] {
			p.Errorf(p.at("sources", i, "name"), "name", "", "the source name `%s` is empty or used twice", s.Name)
		}
		seen[s.Name] = true
		if s.TokenFile == "" {
			p.Errorf(p.at("sources", i, "token_file"), "required", "`openssl rand -hex 32 > FILE` creates a token",
				"source %s: `token_file` is missing",
				s.Name)
		}
		if s.Kind != "" && !slices.Contains(kinds, s.Kind) {
			p.Errorf(p.at("sources", i, "kind"), "kind", "use one of "+strings.Join(kinds, ", "),
				"source %s: unknown kind `%s`", s.Name, s.Kind)
		}
		if s.RatePerSecond < 0 || s.RatePerSecond > maxSourceRate {
			p.Errorf(p.at("sources", i, "rate"), "range", "use 1 to 100000 records per second", "source %s: invalid `rate` %d",
				s.Name, s.RatePerSecond)
		}
	}
}
