// Package signer is an authority with a key of its own, for tests below the one that keeps keys on disk.
//
// It refuses to outlive its test: nothing of it is written anywhere.
package signer

import (
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/sensors/proof"
)

// Signer signs and verifies with one key.
type Signer struct{ key proof.Key }

var _ activities.Authority = (*Signer)(nil)

// New makes a signer with a new key.
func New(t testing.TB) *Signer {
	t.Helper()
	seed := make([]byte, 32)
	_, err := rand.Read(seed)
	require.NoError(t, err)
	key, err := proof.NewKey(seed)
	require.NoError(t, err)
	return &Signer{key}
}

// Keys verify what it signed.
func (s *Signer) Keys() proof.Keyring { return proof.NewKeyring(s.key.Public()) }

// Sign signs a statement.
func (s *Signer) Sign(purpose proof.Purpose, body any) (proof.Signed, error) {
	return s.key.Sign(purpose, body) //nolint:wrapcheck // as the authority's
}
