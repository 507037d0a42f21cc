// Package config defines stanch.yaml: scopes, phases, approvers, protected targets, the budget. It is parsed strictly:
// an unknown key, an invalid value or an undefined name is an error with its line.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/url"
	"os"
	"path"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/invopop/jsonschema"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/duration"
	"stanch/sensors/yamlnode"
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

// JSONSchema returns the schema of the text form of a size.
func (Size) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{
		Pattern: `^[0-9]+(\.[0-9]+)?([kMGTPE]|[KMGTPE]i)?$`, Examples: []any{"512Mi", "20Gi"},
		OneOf: []*jsonschema.Schema{{Type: "string"}, {Type: "integer", Minimum: "1"}},
	}
}

// AWS is the account for aws.* actions. Credentials come from the SDK's default sources, never from this file.
type AWS struct {
	Region   string `yaml:"region" json:"region" jsonschema:"required,description=use a region such as eu-central-1"`
	Endpoint string `yaml:"endpoint" json:"endpoint,omitempty" jsonschema:"description=https URL of a private endpoint; default AWS's own"`
	Profile  string `yaml:"profile" json:"profile,omitempty" jsonschema:"description=profile of the shared configuration files"`
	RoleARN  string `yaml:"role_arn" json:"role_arn,omitempty" jsonschema:"description=the role that Stanch assumes"`
	Cluster  string `yaml:"cluster" json:"cluster,omitempty" jsonschema:"description=the EKS cluster's name; EKS Pod Identity is looked up with it"`
	// CloudTrail selects the source of CloudTrail events; nil reads none.
	CloudTrail *CloudTrail `yaml:"cloudtrail" json:"cloudtrail,omitempty"`
}

// JSONSchema returns the schema of the text form of a duration.
func (Duration) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Pattern: duration.Pattern, Examples: []any{"90s", "15m", "1d"}}
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

// Load reads and parses a file. A missing file is an error.
func Load(file string) (*Config, diagnostic.Diagnostics, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the config: no such file %s; omit --config to run with the defaults", file)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the config: %w", err)
	}
	c, problems := Parse(file, raw)
	return c, problems, nil
}

var yamlErrorLinePattern = regexp.MustCompile(`line (\d+): (.*)`)

var wrongTypePattern = regexp.MustCompile("^cannot unmarshal !!(\\S+) (`.*`) into ")

var unknownFieldPattern = regexp.MustCompile(`field (\S+) not found in type config\.(\S+)`)

// Parse parses the text of a file. The configuration is usable only if the diagnostics contain no error.
func Parse(file string, raw []byte) (*Config, diagnostic.Diagnostics) {
	p := &configParser{Reader: yamlnode.Reader{File: file}}
	var doc yaml.Node
	if yaml.Unmarshal(raw, &doc) == nil && len(doc.Content) == 1 { // decode reports a syntax error
		p.root = doc.Content[0]
		p.checkLossyNumbers(p.root)
	}
	c := &Config{}
	p.decode(raw, c)
	p.checkAll(c)
	if p.Problems.HasErrors() {
		return nil, p.Problems.Sorted()
	}
	return c.withDefaults(), p.Problems.Sorted()
}

// decode decodes the file strictly, and reports every error of the decoder.
func (p *configParser) decode(raw []byte, c *Config) {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	err := decoder.Decode(c)
	if err == nil || errors.Is(err, io.EOF) {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		m := yamlErrorLinePattern.FindStringSubmatch(line)
		if m == nil {
			if !strings.Contains(line, "unmarshal errors") {
				p.Errorf(yamlnode.Position{}, "yaml", "", "%s", strings.TrimPrefix(line, "yaml: "))
			}
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if f := unknownFieldPattern.FindStringSubmatch(m[2]); f != nil {
			p.Errorf(p.atLine(n, f[1], ""), "unknown-key", diagnostic.DidYouMean(f[1], yamlKeysOfType(f[2])),
				"unknown key `%s`", f[1])
			continue
		}
		message, hint := m[2], ""
		if t := wrongTypePattern.FindStringSubmatch(m[2]); t != nil {
			message = fmt.Sprintf("invalid value %s: a %s is not allowed here", t[2], t[1])
		}
		if strings.HasSuffix(m[2], "into config.LibrarySelection") {
			hint = "write `library: {enabled: false}`, `library: {except: [NAME]}` or `library: {only: [NAME]}`"
		}
		p.Errorf(p.atLine(n, "", m[2]), "yaml", hint, "%s", message)
	}
}

// checkLossyNumbers reports numbers whose parsed value differs from the text.
func (p *configParser) checkLossyNumbers(n *yaml.Node) {
	if message, hint := yamlnode.CheckLossyScalar(n); message != "" {
		p.Errorf(yamlnode.PositionOf(n), "value", hint, "%s", message)
	}
	for _, child := range n.Content {
		p.checkLossyNumbers(child)
	}
}

func (p *configParser) checkAll(c *Config) {
	p.checkAWS(c)
	p.checkNotifications(c)
	p.checkSources(c.Sources)
	p.checkExports(c.Exports)
	p.checkNodes(c.NodeLimits)
	p.checkNetworks(c.Networks)
	if l := c.Library; len(l.Only) > 0 && (len(l.Except) > 0 || l.Enabled != nil && !*l.Enabled) {
		p.Errorf(p.at("library", "only"), "library", "keep one of them",
			"library: `only` cannot be combined with `except` or `enabled: false`")
	}
	p.checkPhase(p.at("phase"), "the cluster", c.Phase)
	known := p.checkPeople(c)
	p.checkSlack(c.Slack)
	p.checkScopes(c.Scopes, known)
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

var (
	awsRegionPattern  = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$`)
	roleARNPattern    = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}$`)
	eksClusterPattern = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,99}$`)
)

func (p *configParser) checkAWS(c *Config) {
	for n, pattern := range c.ProtectedTargets.Roles {
		if _, err := path.Match(pattern, ""); err != nil {
			p.Errorf(p.at("protected", "roles", n), "pattern", "", "protected: invalid pattern `%s`", pattern)
		}
	}
	a := c.AWS
	if a == nil {
		return
	}
	switch {
	case a.Region == "":
		p.Errorf(p.at("aws", "region"), "required", "add `region:` with a region such as eu-central-1", "aws: the region is missing")
	case !awsRegionPattern.MatchString(a.Region):
		p.Errorf(p.at("aws", "region"), "value", "use a region such as eu-central-1", "aws: invalid region `%s`", a.Region)
	}
	if a.RoleARN != "" && !roleARNPattern.MatchString(a.RoleARN) {
		p.Errorf(p.at("aws", "role_arn"), "value", "use an ARN such as arn:aws:iam::123456789012:role/stanch", "aws: invalid role ARN `%s`",
			a.RoleARN)
	}
	if a.Cluster != "" && !eksClusterPattern.MatchString(a.Cluster) {
		p.Errorf(p.at("aws", "cluster"), "value", "use its name, not its ARN", "aws: invalid EKS cluster name `%s`", a.Cluster)
	}
	p.checkCloudTrail(a.CloudTrail)
	if a.Endpoint == "" {
		return
	}
	u, err := url.Parse(a.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		p.Errorf(p.at("aws", "endpoint"), "value", "use a URL such as https://vpce-….amazonaws.com", "aws: invalid URL `%s`", a.Endpoint)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		p.Errorf(p.at("aws", "endpoint"), "value", "use https", "aws: credentials would be sent to %s in clear text", u.Host)
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// yamlKeysOfType returns the YAML keys of one of the configuration's types, for hints.
func yamlKeysOfType(typeName string) []string {
	var find func(t reflect.Type) []string
	find = func(t reflect.Type) []string {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[Config]().PkgPath() {
			return nil
		}
		var keys []string
		for f := range structFields(t) {
			if t.Name() == typeName {
				keys = append(keys, f.Tag.Get("yaml"))
			} else if keys = find(f.Type); keys != nil {
				break
			}
		}
		return keys
	}
	return find(reflect.TypeFor[Config]())
}

func structFields(t reflect.Type) iter.Seq[reflect.StructField] {
	return func(yield func(reflect.StructField) bool) {
		for field := range t.Fields() {
			if !yield(field) {
				return
			}
		}
	}
}
