package config

import (
	"net/netip"
	"net/url"
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
		p.Errorf(p.at("aws", "cloudtrail", "queue"), "value", "use a URL such as https://sqs.eu-central-1.amazonaws.com/123456789012/cloudtrail",
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
