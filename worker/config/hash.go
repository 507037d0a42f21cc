package config

import "stanch/sensors/attestation"

// Hash names a configuration in records: the first 12 hex digits of the SHA-256 of its JSON. It tells whether two
// decisions were made under the same one, and nothing of what stands in it.
func (c *Config) Hash() string { return attestation.HashJSON(c)[:12] }
