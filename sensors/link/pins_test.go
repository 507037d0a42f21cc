package link_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/link"
	"stanch/sensors/proof"
)

func keyOf(t *testing.T, seed byte) proof.Key {
	t.Helper()
	raw := make([]byte, 32)
	raw[0] = seed
	k, err := proof.NewKey(raw)
	require.NoError(t, err)
	return k
}

func setOf(seq int64, active proof.Key, others ...proof.Key) proof.KeySet {
	set := proof.KeySet{Seq: seq, Active: active.ID()}
	for _, k := range append([]proof.Key{active}, others...) {
		set.Keys = append(set.Keys, base64.StdEncoding.EncodeToString(k.Public()))
	}
	return set
}

// rotation is a key set as a gateway shows it, signed by a key.
func rotation(t *testing.T, by proof.Key, set proof.KeySet) []byte {
	t.Helper()
	s, err := by.Sign(proof.PurposeKeySet, set)
	require.NoError(t, err)
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	return raw
}

func TestANodeFollowsRotationsThatThePinnedKeySigned(t *testing.T) {
	path := filepath.Join(t.TempDir(), link.KeysFile)
	first, second, third := keyOf(t, 1), keyOf(t, 2), keyOf(t, 3)
	pins, err := link.OpenPins(path, "here", setOf(0, first))
	require.NoError(t, err)
	one, two := rotation(t, first, setOf(1, second, first)), rotation(t, second, setOf(2, third))
	require.NoError(t, pins.Follow([][]byte{one, two}), "a node that was away follows several at once")
	require.Contains(t, pins.Keys(), third.ID())
	require.NotContains(t, pins.Keys(), first.ID(), "a key that a later set leaves out is distrusted")
	require.NoError(t, pins.Follow([][]byte{one, two}), "again it changes nothing")

	kept, err := link.OpenPins(path, "here", setOf(0, first))
	require.NoError(t, err)
	require.Equal(t, pins.Keys(), kept.Keys(), "a restart keeps what was followed, whatever the enrollment says")

	other, err := link.OpenPins(path, "another installation", setOf(0, first))
	require.NoError(t, err)
	require.Contains(t, other.Keys(), first.ID(), "a node that an administrator moved to another installation pins that one's")
}

func TestWhoAnswersAsTheGatewayReplacesNoKey(t *testing.T) {
	first, second, thief := keyOf(t, 1), keyOf(t, 2), keyOf(t, 9)
	for name, sets := range map[string][][]byte{
		"a set that the thief signed":           {rotation(t, thief, setOf(1, thief))},
		"a set under a retired key":             {rotation(t, first, setOf(1, second, first)), rotation(t, first, setOf(2, thief))},
		"a set that skips one":                  {rotation(t, first, setOf(2, thief))},
		"a set without its active key":          {rotation(t, first, proof.KeySet{Seq: 1, Active: thief.ID(), Keys: setOf(1, first).Keys})},
		"what is no set":                        {[]byte("{")},
		"a set whose signature is of another":   {append(rotation(t, first, setOf(1, second))[:20], rotation(t, thief, setOf(1, thief))[20:]...)},
		"an older set, dressed as a set before": {rotation(t, thief, setOf(0, thief)), rotation(t, thief, setOf(1, thief))},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), link.KeysFile)
			pins, err := link.OpenPins(path, "here", setOf(0, first))
			require.NoError(t, err)
			require.Error(t, pins.Follow(sets))
			require.NotContains(t, pins.Keys(), thief.ID())
			kept, err := link.OpenPins(path, "here", proof.KeySet{})
			require.NoError(t, err)
			require.NotContains(t, kept.Keys(), thief.ID())
		})
	}
}

func TestANodeWithoutPinnedKeysRefusesEveryCommand(t *testing.T) {
	_, err := link.OpenPins("", "", proof.KeySet{})
	require.ErrorIs(t, err, link.ErrNoPins)
	var none *link.Pins
	require.Empty(t, none.Keys())
	path := filepath.Join(t.TempDir(), link.KeysFile)
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	none, err = link.OpenPins(path, "here", setOf(0, keyOf(t, 1)))
	require.ErrorIs(t, err, link.ErrDamagedPins, "a damaged file is not replaced in silence")
	require.Empty(t, none.Keys(), "and the node that goes on watching obeys nobody")
}
