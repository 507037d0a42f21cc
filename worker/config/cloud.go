package config

import (
	"net/netip"
	"net/url"
	"path"
	"regexp"
)

// CloudTrail selects the source of the account's CloudTrail events.
type CloudTrail struct {
	QueueURL  string `yaml:"queue" json:"queue,omitempty" jsonschema:"description=URL of an SQS queue to which EventBridge or SNS sends CloudTrail's events"`
	UseLookup bool   `yaml:"lookup" json:"lookup,omitempty" jsonschema:"description=look up write events in CloudTrail every minute; slower than a queue. Read events are missing: the rules cloud-enumeration and cloud-bulk-read never fire\\, a stolen role that only reads is not detected\\, and the pod of EKS Pod Identity sessions (AssumeRole is a read event) is unknown"`
}

func (p *configParser) checkCloudTrail(c *CloudTrail) {
	if c == nil {
		return
	}
	if c.QueueURL == "" && !c.UseLookup {
		p.Errorf(p.at("aws", "cloudtrail"), "required", "specify `queue:`, the URL of an SQS queue, or `lookup: true`",
			"aws: `cloudtrail` has no event source")
	}
	if c.QueueURL == "" {
		return
	}
	u, err := url.Parse(c.QueueURL)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
		p.Errorf(p.at("aws", "cloudtrail", "queue"), "value",
			"use a URL such as https://sqs.eu-central-1.amazonaws.com/123456789012/cloudtrail",
			"aws: invalid queue URL `%s`", c.QueueURL)
	}
}

func (p *configParser) checkNetworks(all []string) {
	for n, s := range all {
		if _, err := ParseNetwork(s); err != nil {
			p.Errorf(p.at("networks", n), "value", "use an address or network such as 10.0.0.0/8 or 203.0.113.7",
				"networks: invalid network or address `%s`", s)
		}
	}
}

// ParseNetwork parses a network, or a single address as the network of that address.
func ParseNetwork(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	return prefix.Masked(), err //nolint:wrapcheck // the error names the value
}

// ClusterPrefixes returns the networks of the cluster.
func (c *Config) ClusterPrefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range c.Networks {
		if p, err := ParseNetwork(s); err == nil { // validated when the file was read
			out = append(out, p)
		}
	}
	return out
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
		p.Errorf(p.at("aws", "region"), "required", "add `region:` with a region such as eu-central-1",
			"aws: the region is missing")
	case !awsRegionPattern.MatchString(a.Region):
		p.Errorf(p.at("aws", "region"), "value", "use a region such as eu-central-1", "aws: invalid region `%s`", a.Region)
	}
	if a.RoleARN != "" && !roleARNPattern.MatchString(a.RoleARN) {
		p.Errorf(p.at("aws", "role_arn"), "value", "use an ARN such as arn:aws:iam::123456789012:role/stanch",
			"aws: invalid role ARN `%s`",
			a.RoleARN)
	}
	if a.Cluster != "" && !eksClusterPattern.MatchString(a.Cluster) {
		p.Errorf(p.at("aws", "cluster"), "value", "use its name, not its ARN", "aws: invalid EKS cluster name `%s`",
			a.Cluster)
	}
	p.checkCloudTrail(a.CloudTrail)
	if a.Endpoint == "" {
		return
	}
	u, err := url.Parse(a.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		p.Errorf(p.at("aws", "endpoint"), "value", "use a URL such as https://vpce-….amazonaws.com",
			"aws: invalid URL `%s`", a.Endpoint)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		p.Errorf(p.at("aws", "endpoint"), "value", "use https", "aws: credentials would be sent to %s in clear text", u.Host)
	}
}
