package gatewayrpc_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
)

func newTestKey(t *testing.T, seed byte) attestation.SigningKey {
	t.Helper()
	raw := make([]byte, 32)
	raw[0] = seed
	k, err := attestation.NewSigningKey(raw)
	require.NoError(t, err)
	return k
}

func newKeySet(seq int64, active attestation.SigningKey, others ...attestation.SigningKey) attestation.KeySet {
	set := attestation.KeySet{Sequence: seq, ActiveKeyID: active.ID()}
	for _, k := range append([]attestation.SigningKey{active}, others...) {
		set.PublicKeys = append(set.PublicKeys, base64.StdEncoding.EncodeToString(k.PublicKey()))
	}
	return set
}

// signedRotation returns a signed key set in the form that a gateway sends.
func signedRotation(t *testing.T, by attestation.SigningKey, set attestation.KeySet) []byte {
	t.Helper()
	s, err := by.Sign(attestation.PayloadTypeKeySet, set)
	require.NoError(t, err)
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	return raw
}

func TestANodeFollowsRotationsThatThePinnedKeySigned(t *testing.T) {
	path := filepath.Join(t.TempDir(), gatewayrpc.AuthorityKeysFile)
	first, second, third := newTestKey(t, 1), newTestKey(t, 2), newTestKey(t, 3)
	pins, err := gatewayrpc.OpenPinnedKeys(path, "here", newKeySet(0, first))
	require.NoError(t, err)
	one, two := signedRotation(t, first, newKeySet(1, second, first)), signedRotation(t, second, newKeySet(2, third))
	require.NoError(t, pins.ApplyRotations([][]byte{one, two}), "a node that was away follows several at once")
	require.Contains(t, pins.Keyring(), third.ID())
	require.NotContains(t, pins.Keyring(), first.ID(), "a key that a later set leaves out is distrusted")
	require.NoError(t, pins.ApplyRotations([][]byte{one, two}), "again it changes nothing")

	kept, err := gatewayrpc.OpenPinnedKeys(path, "here", newKeySet(0, first))
	require.NoError(t, err)
	require.Equal(t, pins.Keyring(), kept.Keyring(), "a restart keeps what was followed, whatever the enrollment says")

	other, err := gatewayrpc.OpenPinnedKeys(path, "another installation", newKeySet(0, first))
	require.NoError(t, err)
	require.Contains(t, other.Keyring(), first.ID(), "a node that an administrator moved to another installation pins that one's")
}

func TestWhoAnswersAsTheGatewayReplacesNoKey(t *testing.T) {
	first, second, thief := newTestKey(t, 1), newTestKey(t, 2), newTestKey(t, 9)
	for name, sets := range map[string][][]byte{
		"a set that the thief signed":           {signedRotation(t, thief, newKeySet(1, thief))},
		"a set under a retired key":             {signedRotation(t, first, newKeySet(1, second, first)), signedRotation(t, first, newKeySet(2, thief))},
		"a set that skips one":                  {signedRotation(t, first, newKeySet(2, thief))},
		"a set without its active key":          {signedRotation(t, first, attestation.KeySet{Sequence: 1, ActiveKeyID: thief.ID(), PublicKeys: newKeySet(1, first).PublicKeys})},
		"what is no set":                        {[]byte("{")},
		"a set whose signature is of another":   {append(signedRotation(t, first, newKeySet(1, second))[:20], signedRotation(t, thief, newKeySet(1, thief))[20:]...)},
		"an older set, dressed as a set before": {signedRotation(t, thief, newKeySet(0, thief)), signedRotation(t, thief, newKeySet(1, thief))},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), gatewayrpc.AuthorityKeysFile)
			pins, err := gatewayrpc.OpenPinnedKeys(path, "here", newKeySet(0, first))
			require.NoError(t, err)
			require.Error(t, pins.ApplyRotations(sets))
			require.NotContains(t, pins.Keyring(), thief.ID())
			kept, err := gatewayrpc.OpenPinnedKeys(path, "here", attestation.KeySet{})
			require.NoError(t, err)
			require.NotContains(t, kept.Keyring(), thief.ID())
		})
	}
}

func TestANodeWithoutPinnedKeysRefusesEveryCommand(t *testing.T) {
	_, err := gatewayrpc.OpenPinnedKeys("", "", attestation.KeySet{})
	require.ErrorIs(t, err, gatewayrpc.ErrNoPinnedKeys)
	var none *gatewayrpc.PinnedKeys
	require.Empty(t, none.Keyring())
	path := filepath.Join(t.TempDir(), gatewayrpc.AuthorityKeysFile)
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	none, err = gatewayrpc.OpenPinnedKeys(path, "here", newKeySet(0, newTestKey(t, 1)))
	require.ErrorIs(t, err, gatewayrpc.ErrDamagedPinnedKeys, "a damaged file is not replaced in silence")
	require.Empty(t, none.Keyring(), "and the node that goes on watching obeys nobody")
}
