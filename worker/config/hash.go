package config

import "stanch/sensors/attestation"

// Hash returns the id of a configuration in records: the first 12 hex digits of the SHA-256 of its JSON. It shows
// whether two decisions used the same configuration, without revealing its content.
func (c *Config) Hash() string { return attestation.HashJSON(c)[:12] }
