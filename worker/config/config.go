// Package config defines stanch.yaml: scopes, phases, approvers, protected targets, the budget. It is parsed strictly:
// an unknown key, an invalid value or an undefined name is an error with its line.
package config

import (
	"time"
)

// Config is the complete configuration.
type Config struct {
	Cluster string `yaml:"cluster" json:"cluster,omitempty" jsonschema:"description=the cluster's name in incidents"`
	// Phase is the cluster's phase: 1 observe, 2 contain, 3 disrupt with approval. It is the maximum for every scope.
	Phase            int              `yaml:"phase" json:"phase,omitempty" jsonschema:"minimum=1,maximum=3,description=1 observes; 2 contains; 3 disrupts with approval"`
	IdleTimeout      Duration         `yaml:"idle_timeout" json:"idle_timeout,omitempty" jsonschema:"description=how long an incident must be idle before it closes"`
	Scopes           []Scope          `yaml:"scopes" json:"scopes,omitempty"`
	People           []Person         `yaml:"people" json:"people,omitempty"`
	Groups           []Group          `yaml:"groups" json:"groups,omitempty"`
	Slack            *Slack           `yaml:"slack" json:"slack,omitempty"`
	ProtectedTargets ProtectedTargets `yaml:"protected" json:"protected,omitzero"`
	Budget           Budget           `yaml:"budget" json:"budget,omitzero"`
	EvidenceLimits   EvidenceLimits   `yaml:"evidence" json:"evidence,omitzero" jsonschema:"description=limits of the stored evidence"`
	Playbooks        []string         `yaml:"playbooks" json:"playbooks,omitempty" jsonschema:"description=folders with playbooks in addition to the shipped library"`
	Library          LibrarySelection `yaml:"library" json:"library,omitzero" jsonschema:"description=which shipped playbooks are used; default all"`
	Rules            []string         `yaml:"rules" json:"rules,omitempty" jsonschema:"description=folders with rule packs in addition to the shipped ones"`
	Sources          []Source         `yaml:"sources" json:"sources,omitempty"`
	Exports          []Export         `yaml:"exports" json:"exports,omitempty"`
	NodeLimits       NodeLimits       `yaml:"nodes" json:"nodes,omitzero" jsonschema:"description=limits of each node's sensor"`
	AWS              *AWS             `yaml:"aws" json:"aws,omitempty" jsonschema:"description=the account for aws.* actions; without it they are refused"`
	Webhooks         []Webhook        `yaml:"webhooks" json:"webhooks,omitempty" jsonschema:"description=receivers of notify: webhook"`
	Email            *Email           `yaml:"email" json:"email,omitempty" jsonschema:"description=mail server and recipients of notify: email"`
	Ticket           *TicketTracker   `yaml:"ticket" json:"ticket,omitempty" jsonschema:"description=the tracker in which ticket: create opens tickets"`
	// Networks are the cluster's addresses; all others are outside.
	Networks []string `yaml:"networks" json:"networks,omitempty" jsonschema:"description=the addresses of pods and nodes and of their NAT gateways: 10.0.0.0/8 or one address; the use of a pod's token or role from another address is reported"`
	// SocketGroup is the group that may connect to the local socket in addition to root. The kernel identifies the
	// person.
	SocketGroup string `yaml:"socket_group" json:"socket_group,omitempty" jsonschema:"description=the Unix group whose members may connect to the local socket of stanch up; default only root"`
}

// ProtectedTargets are the targets that are never contained.
type ProtectedTargets struct {
	Namespaces []string `yaml:"namespaces" json:"namespaces,omitempty"`
	Workloads  []string `yaml:"workloads" json:"workloads,omitempty" jsonschema:"description=namespace/Kind/name"`
	Roles      []string `yaml:"roles" json:"roles,omitempty" jsonschema:"description=IAM roles and users: names or ARNs; * and ? are patterns"`
}

// Budget limits containments without an approval.
type Budget struct {
	MaxPerHour  int     `yaml:"per_hour" json:"per_hour,omitempty" jsonschema:"minimum=1,description=containments per hour in the complete cluster; default 20"`
	MaxFraction float64 `yaml:"max_fraction" json:"max_fraction,omitempty" jsonschema:"minimum=0,maximum=1,description=fraction of one workload's pods that may be contained at once; default 0.5 and at least one pod"`
	// MaxDuration is the maximum duration of a containment without an approval.
	MaxDuration Duration `yaml:"max_duration" json:"max_duration,omitempty" jsonschema:"description=maximum duration of a containment without approval; default 24h"`
}

// LibrarySelection selects the shipped playbooks that are used.
type LibrarySelection struct {
	Enabled *bool    `yaml:"enabled" json:"enabled,omitempty" jsonschema:"description=whether shipped playbooks are used; default true"`
	Except  []string `yaml:"except" json:"except,omitempty" jsonschema:"description=names of playbooks that are not used"`
	Only    []string `yaml:"only" json:"only,omitempty" jsonschema:"description=names of the only playbooks that are used; default all"`
}

// The scope and the namespace of drills. Only drills use them; the phase is 3 with the drill's own approver.
const (
	DrillScope     = "drill"
	DrillNamespace = "stanch-drill"
	// DrillRolePrefix is the prefix of IAM roles that were created for drills.
	DrillRolePrefix = "stanch-drill-"
)

// Default returns the configuration without a file: phase 1, and only the user who runs Stanch may approve.
func Default() *Config {
	return (&Config{}).withDefaults()
}

func (c *Config) withDefaults() *Config {
	if c.Cluster == "" {
		c.Cluster = "local"
	}
	if c.Phase == 0 {
		c.Phase = 1
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = Duration(15 * time.Minute)
	}
	if c.Budget.MaxPerHour == 0 {
		c.Budget.MaxPerHour = 20
	}
	if c.Budget.MaxFraction == 0 {
		c.Budget.MaxFraction = 0.5
	}
	if c.Budget.MaxDuration == 0 {
		c.Budget.MaxDuration = Duration(24 * time.Hour)
	}
	c.EvidenceLimits.MaxTotalBytes = valueOr(c.EvidenceLimits.MaxTotalBytes, 20<<30)
	c.EvidenceLimits.MaxBytesPerIncident = valueOr(c.EvidenceLimits.MaxBytesPerIncident, 2<<30)
	c.EvidenceLimits.MinFreeBytes = valueOr(c.EvidenceLimits.MinFreeBytes, 1<<30)
	if len(c.ProtectedTargets.Namespaces) == 0 {
		c.ProtectedTargets.Namespaces = []string{"kube-system", "stanch-system"}
	}
	for i := range c.Scopes {
		s := &c.Scopes[i]
		if s.Phase == 0 {
			s.Phase = c.Phase
		}
		s.ConfidenceThreshold = valueOr(s.ConfidenceThreshold, 0.8)
		s.Approvers.Quorum = valueOr(s.Approvers.Quorum, 1)
		s.Approvers.Timeout = valueOr(s.Approvers.Timeout, Duration(15*time.Minute))
	}
	return c
}

func valueOr[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
