package activities_test

import (
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/sensors/proof"
)

// signer is an authority with a key of its own.
type signer struct{ key proof.Key }

var _ activities.Authority = (*signer)(nil)

func newSigner(t testing.TB) *signer {
	t.Helper()
	seed := make([]byte, 32)
	_, err := rand.Read(seed)
	require.NoError(t, err)
	key, err := proof.NewKey(seed)
	require.NoError(t, err)
	return &signer{key}
}

func (s *signer) Keys() proof.Keyring { return proof.NewKeyring(s.key.Public()) }

func (s *signer) Sign(purpose proof.Purpose, body any) (proof.Signed, error) {
	return s.key.Sign(purpose, body) //nolint:wrapcheck // as the authority's
}
