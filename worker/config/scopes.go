package config

import (
	"path"
	"time"

	"stanch/sensors/yamlnode"
)

// Scope is a set of namespaces with its own phase, approvers and thresholds.
type Scope struct {
	Name                string    `yaml:"name" json:"name"`
	Namespaces          []string  `yaml:"namespaces" json:"namespaces,omitempty" jsonschema:"description=names or patterns such as shop-*"`
	Phase               int       `yaml:"phase" json:"phase,omitempty" jsonschema:"minimum=1,maximum=3"`
	ConfidenceThreshold float64   `yaml:"confidence" json:"confidence,omitempty" jsonschema:"minimum=0,maximum=1,description=the confidence from which actions run without approval; default 0.8"`
	Approvers           Approvers `yaml:"approvers" json:"approvers,omitzero"`
}

// Approvers are the people who may approve what the phase does not automate.
type Approvers struct {
	Groups  []string `yaml:"groups" json:"groups,omitempty"`
	Users   []string `yaml:"users" json:"users,omitempty"`
	Quorum  int      `yaml:"quorum" json:"quorum,omitempty" jsonschema:"minimum=1,maximum=10"`
	Timeout Duration `yaml:"timeout" json:"timeout,omitempty"`
	// Escalate adds approvers when nobody has decided for some time.
	Escalate *Escalation `yaml:"escalate" json:"escalate,omitempty"`
}

// ScopeForNamespace returns the scope of a namespace ("" for containers of the host). The first matching scope counts;
// without one, it returns the scope "default" with the cluster's phase and no approvers.
func (c *Config) ScopeForNamespace(namespace string) Scope {
	for _, s := range c.Scopes {
		for _, pattern := range s.Namespaces {
			if ok, err := path.Match(pattern, namespace); err == nil && ok {
				s.Phase = min(s.Phase, c.Phase)
				return s
			}
		}
	}
	return Scope{Name: "default", Phase: c.Phase, ConfidenceThreshold: 0.8, Approvers: Approvers{
		Quorum:  1,
		Timeout: Duration(15 * time.Minute),
	}}
}

func (p *configParser) checkPhase(at yamlnode.Position, what string, n int) {
	if n < 0 || n > 3 {
		p.Errorf(at, "range", "1 observes, 2 contains, 3 disrupts with approval", "%s: invalid phase %d", what, n)
	}
}

func (p *configParser) checkScopes(scopes []Scope, known knownNames) {
	seen := map[string]bool{DrillScope: true}
	for i, s := range scopes {
		at := func(path ...any) yamlnode.Position { return p.at(append([]any{"scopes", i}, path...)...) }
		if s.Name == "" || seen[s.Name] {
			p.Errorf(at("name"), "name", "`drill` is reserved for drills", "the scope name `%s` is empty or used twice", s.Name)
		}
		seen[s.Name] = true
		p.checkPhase(at("phase"), "scope "+s.Name, s.Phase)
		if s.ConfidenceThreshold < 0 || s.ConfidenceThreshold > 1 {
			p.Errorf(at("confidence"), "range", "", "scope %s: `confidence` must be from 0 to 1", s.Name)
		}
		for n, pattern := range s.Namespaces {
			if _, err := path.Match(pattern, ""); err != nil {
				p.Errorf(at("namespaces", n), "pattern", "", "scope %s: invalid pattern `%s`", s.Name, pattern)
			}
		}
		p.checkApproversExist("scope "+s.Name, s.Approvers.Groups, s.Approvers.Users, known,
			func(key string, n int) yamlnode.Position { return at("approvers", key, n) })
		e := s.Approvers.Escalate
		if e == nil {
			continue
		}
		p.checkApproversExist("scope "+s.Name+", escalate", e.Groups, e.Users, known,
			func(key string, n int) yamlnode.Position { return at("approvers", "escalate", key, n) })
		if e.After <= 0 || s.Approvers.Timeout > 0 && e.After >= s.Approvers.Timeout || len(e.Groups)+len(e.Users) == 0 {
			p.Errorf(at("approvers", "escalate"), "range", "for example `escalate: {after: 5m, groups: [NAME]}`",
				"scope %s: invalid `escalate`: it has no approvers, or starts after the timeout", s.Name)
		}
	}
}
