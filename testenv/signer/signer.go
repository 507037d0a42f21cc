// Package signer is an authority with its own key, for tests of packages below the one that stores keys.
//
// It refuses to outlive its test: nothing is written to disk.
package signer

import (
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/sensors/attestation"
)

// Signer signs and verifies with one key.
type Signer struct{ key attestation.SigningKey }

var _ activities.Authority = (*Signer)(nil)

// New creates a signer with a new key.
func New(t testing.TB) *Signer {
	t.Helper()
	seed := make([]byte, 32)
	_, err := rand.Read(seed)
	require.NoError(t, err)
	key, err := attestation.NewSigningKey(seed)
	require.NoError(t, err)
	return &Signer{key}
}

// Keyring returns the keys that verify its signatures.
func (s *Signer) Keyring() attestation.Keyring { return attestation.NewKeyring(s.key.PublicKey()) }

// Sign signs a statement.
func (s *Signer) Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error) {
	return s.key.Sign(purpose, body) //nolint:wrapcheck // as the authority's
}
