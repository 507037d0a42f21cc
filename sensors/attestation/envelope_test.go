package attestation_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/attestation"
)

var now = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

func newKey(t *testing.T, seed byte) attestation.SigningKey {
	t.Helper()
	k, err := attestation.NewSigningKey(bytes.Repeat([]byte{seed}, 32))
	require.NoError(t, err)
	return k
}

func sign(t *testing.T, k attestation.SigningKey, purpose attestation.PayloadType, body any) attestation.Envelope {
	t.Helper()
	s, err := k.Sign(purpose, body)
	require.NoError(t, err)
	return s
}

// requireUnverified requires an error that says that a retry does not help, and why.
func requireUnverified(t *testing.T, err error, text string) {
	t.Helper()
	require.ErrorIs(t, err, attestation.ErrUnverified)
	require.ErrorContains(t, err, text)
}

func TestSigningKeyNeedsSeedOf32Bytes(t *testing.T) {
	for _, n := range []int{0, 31, 33} {
		_, err := attestation.NewSigningKey(make([]byte, n))
		require.ErrorContains(t, err, "expected 32", n)
	}
}

func TestKeyIDIsPrefixOfHash(t *testing.T) {
	k := newKey(t, 1)
	sum := sha256.Sum256(k.PublicKey())
	require.Equal(t, hex.EncodeToString(sum[:])[:16], k.ID())
	require.Equal(t, k.ID(), attestation.KeyID(k.PublicKey()))
}

func TestVerifyAcceptsOnlyWhatWasSigned(t *testing.T) {
	k := newKey(t, 1)
	ring := attestation.NewKeyring(k.PublicKey())
	signed := sign(t, k, attestation.PayloadTypeVote, attestation.Vote{Person: "ann"})
	var v attestation.Vote
	require.NoError(t, ring.Verify(signed, attestation.PayloadTypeVote, &v))
	require.Equal(t, "ann", v.Person)
	for want, change := range map[string]func(*attestation.Envelope){
		`the payload type is "stanch/grant/v1"`: func(s *attestation.Envelope) {
			s.PayloadType = attestation.PayloadTypeGrant
		},
		"unknown key": func(s *attestation.Envelope) { s.KeyID = newKey(t, 2).ID() },
		"invalid signature": func(s *attestation.Envelope) {
			s.Payload = append([]byte(" "), s.Payload...)
		},
		"cannot be read": func(s *attestation.Envelope) {
			*s = sign(t, k, attestation.PayloadTypeVote, "a text")
		},
	} {
		s := signed
		change(&s)
		requireUnverified(t, ring.Verify(s, attestation.PayloadTypeVote, &v), want)
	}
}

// A signature for one payload type never fits another, whatever the payload begins with.
func TestPayloadTypeIsPartOfSignature(t *testing.T) {
	k := newKey(t, 1)
	s := sign(t, k, attestation.PayloadTypeVote, attestation.Vote{Person: "ann"})
	s.PayloadType = attestation.PayloadTypeGrant
	ring := attestation.NewKeyring(k.PublicKey())
	requireUnverified(t, ring.Verify(s, attestation.PayloadTypeGrant, &attestation.Grant{}), "invalid signature")
	signature := ed25519.Sign(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)),
		[]byte("stanch/vote/v1\x00"+string(s.Payload)))
	require.Equal(t, signature, s.Signature, "the format is fixed: type, zero byte, payload")
}

func TestUnencodableStatementIsNotSigned(t *testing.T) {
	s, err := newKey(t, 1).Sign(attestation.PayloadTypeVote, make(chan int))
	require.ErrorContains(t, err, "sign stanch/vote/v1")
	require.Empty(t, s)
	require.Panics(t, func() { attestation.HashJSON(make(chan int)) })
}

func TestHashJSONIsThatOfTheJSON(t *testing.T) {
	sum := sha256.Sum256([]byte(`{"id":"pod:1"}`))
	require.Equal(t, hex.EncodeToString(sum[:]), attestation.HashJSON(attestation.DrillTarget{ID: "pod:1"}))
}

func TestKeyringLines(t *testing.T) {
	a, b := newKey(t, 1), newKey(t, 2)
	ring := attestation.NewKeyring(a.PublicKey(), b.PublicKey())
	lines := ring.EncodeLines()
	require.Len(t, lines, 2)
	got, err := attestation.ParseKeyring(append(lines, "", "# the keys of the authority"))
	require.NoError(t, err)
	require.Equal(t, ring, got)

	for want, lines := range map[string][]string{
		"contains no key": {"", "# a comment"},
		"line 2 is not":   {lines[0], "no base64!"},
		"line 1 is not":   {base64.StdEncoding.EncodeToString(a.PublicKey()[:31])},
	} {
		got, err := attestation.ParseKeyring(lines)
		require.ErrorContains(t, err, want)
		require.Nil(t, got)
	}
}

func TestKeySetContainsItsActiveKey(t *testing.T) {
	k := newKey(t, 1)
	set := newKeySet(t, 3, 1)
	ring, err := set.Keyring()
	require.NoError(t, err)
	require.Contains(t, ring, k.ID())
	set.ActiveKeyID = newKey(t, 2).ID()
	ring, err = set.Keyring()
	requireUnverified(t, err, "key set 3 does not contain its active key")
	require.Nil(t, ring)
	_, err = attestation.KeySet{}.Keyring()
	require.ErrorContains(t, err, "contains no key")
}

// rotation is an authority that rotates its key, from the key 1 on.
type rotation struct {
	t     *testing.T
	chain []attestation.Envelope
}

func newKeySet(t *testing.T, sequence int64, active byte) attestation.KeySet {
	return attestation.KeySet{
		Sequence: sequence, ActiveKeyID: newKey(t, active).ID(),
		PublicKeys: attestation.NewKeyring(newKey(t, active).PublicKey()).EncodeLines(),
	}
}

func (r *rotation) add(by byte, set attestation.KeySet) *rotation {
	r.chain = append(r.chain, sign(r.t, newKey(r.t, by), attestation.PayloadTypeKeySet, set))
	return r
}

func TestClientFollowsRotations(t *testing.T) {
	pinned := newKeySet(t, 0, 1)
	r := (&rotation{t: t}).add(1, newKeySet(t, 1, 2)).add(2, newKeySet(t, 2, 3))
	got, err := pinned.ApplyRotations(r.chain)
	require.NoError(t, err)
	require.Equal(t, newKeySet(t, 2, 3), got)
	got, err = got.ApplyRotations(r.chain)
	require.NoError(t, err, "sets that were applied before are skipped, although their keys are gone")
	require.Equal(t, newKeySet(t, 2, 3), got)
	r.add(3, newKeySet(t, 3, 4))
	got, err = got.ApplyRotations(r.chain)
	require.NoError(t, err)
	require.Equal(t, newKeySet(t, 3, 4), got)
}

func TestClientStaysAtItsKeysIfARotationIsInvalid(t *testing.T) {
	invalid := newKeySet(t, 2, 3)
	invalid.PublicKeys = nil
	otherType := sign(t, newKey(t, 1), "other", newKeySet(t, 0, 2))
	for want, r := range map[string]*rotation{
		"unknown key":                            (&rotation{t: t}).add(9, newKeySet(t, 1, 2)),
		"key set 2 cannot follow key set 0":      (&rotation{t: t}).add(1, newKeySet(t, 2, 2)),
		"key set 1 cannot follow key set 1":      (&rotation{t: t}).add(1, newKeySet(t, 1, 2)).add(2, newKeySet(t, 1, 3)),
		"contains no key":                        (&rotation{t: t}).add(1, newKeySet(t, 1, 2)).add(2, invalid),
		`instead of "stanch/key-set/v1"`:         {t: t, chain: []attestation.Envelope{otherType}},
		"stanch/key-set/v1 is signed by the unk": (&rotation{t: t}).add(9, newKeySet(t, 5, 2)),
	} {
		got, err := newKeySet(t, 0, 1).ApplyRotations(r.chain)
		require.ErrorContains(t, err, want)
		require.Equal(t, newKeySet(t, 0, 1), got, want)
	}
	unreadable := attestation.Envelope{PayloadType: attestation.PayloadTypeKeySet, Payload: []byte("no JSON")}
	got, err := newKeySet(t, 0, 1).ApplyRotations([]attestation.Envelope{unreadable})
	requireUnverified(t, err, "unknown key")
	require.Equal(t, newKeySet(t, 0, 1), got)
	broken := attestation.KeySet{Sequence: 7}
	got, err = broken.ApplyRotations((&rotation{t: t}).add(1, newKeySet(t, 1, 2)).chain)
	require.ErrorContains(t, err, "contains no key")
	require.Equal(t, broken, got)
}
