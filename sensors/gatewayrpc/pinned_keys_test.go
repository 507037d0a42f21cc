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

func TestPinnedKeysFollowSignedRotations(t *testing.T) {
	path := filepath.Join(t.TempDir(), gatewayrpc.AuthorityKeysFile)
	first, second, third := newTestKey(t, 1), newTestKey(t, 2), newTestKey(t, 3)
	pins, err := gatewayrpc.OpenPinnedKeys(path, "here", newKeySet(0, first))
	require.NoError(t, err)
	one, two := signedRotation(t, first, newKeySet(1, second, first)), signedRotation(t, second, newKeySet(2, third))
	require.NoError(t, pins.ApplyRotations([][]byte{one, two}), "an offline node follows several rotations at once")
	require.Contains(t, pins.Keyring(), third.ID())
	require.NotContains(t, pins.Keyring(), first.ID(), "a key that a later set omits is not trusted")
	require.NoError(t, pins.ApplyRotations([][]byte{one, two}), "repeating it changes nothing")

	kept, err := gatewayrpc.OpenPinnedKeys(path, "here", newKeySet(0, first))
	require.NoError(t, err)
	require.Equal(t, pins.Keyring(), kept.Keyring(), "a restart keeps the followed keys, regardless of the enrollment")

	other, err := gatewayrpc.OpenPinnedKeys(path, "another installation", newKeySet(0, first))
	require.NoError(t, err)
	require.Contains(t, other.Keyring(), first.ID(), "a node that moved to another installation pins its keys")
}

func TestFakeGatewayCannotReplacePinnedKeys(t *testing.T) {
	first, second, thief := newTestKey(t, 1), newTestKey(t, 2), newTestKey(t, 9)
	for name, sets := range map[string][][]byte{
		"set signed by an attacker": {signedRotation(t, thief, newKeySet(1, thief))},
		"set signed by a retired key": {
			signedRotation(t, first, newKeySet(1, second, first)),
			signedRotation(t, first, newKeySet(2, thief)),
		},
		"set that skips a sequence number": {signedRotation(t, first, newKeySet(2, thief))},
		"set without its active key": {signedRotation(t, first,
			attestation.KeySet{Sequence: 1, ActiveKeyID: thief.ID(), PublicKeys: newKeySet(1, first).PublicKeys})},
		"invalid set": {[]byte("{")},
		"signature of another set": {append(signedRotation(t, first, newKeySet(1, second))[:20],
			signedRotation(t, thief, newKeySet(1, thief))[20:]...)},
		"older set as a predecessor": {
			signedRotation(t, thief, newKeySet(0, thief)),
			signedRotation(t, thief, newKeySet(1, thief)),
		},
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

func TestNodeWithoutPinnedKeysRefusesEveryCommand(t *testing.T) {
	_, err := gatewayrpc.OpenPinnedKeys("", "", attestation.KeySet{})
	require.ErrorIs(t, err, gatewayrpc.ErrNoPinnedKeys)
	var none *gatewayrpc.PinnedKeys
	require.Empty(t, none.Keyring())
	path := filepath.Join(t.TempDir(), gatewayrpc.AuthorityKeysFile)
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	none, err = gatewayrpc.OpenPinnedKeys(path, "here", newKeySet(0, newTestKey(t, 1)))
	require.ErrorIs(t, err, gatewayrpc.ErrDamagedPinnedKeys, "a damaged file is not replaced silently")
	require.Empty(t, none.Keyring(), "the node continues to detect, and accepts no commands")
}
