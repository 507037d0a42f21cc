// Package attestation defines the signed statements that Stanch requires before it changes anything: attestations of
// detections, grants by people, and lease tokens that a node verifies itself.
//
// The package only signs and verifies. It refuses to decide whether an action is permitted (the guards and the gateway
// decide), to keep a key on disk (worker/authority does), and to accept a statement of one payload type as another:
// the payload type is part of what is signed.
package attestation

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ErrUnverified is wrapped by every error of Verify and of the checks of statements: the statement does not permit the
// operation. A retry does not help.
var ErrUnverified = errors.New("not verified")

// PayloadType separates the kinds of statements, so that one kind is never accepted as another.
type PayloadType string

// The payload types.
const (
	PayloadTypeAttestation           PayloadType = "stanch/attestation/v1"
	PayloadTypeGrant                 PayloadType = "stanch/grant/v1"
	PayloadTypeLeaseToken            PayloadType = "stanch/lease-token/v1"
	PayloadTypeEvidenceReceipt       PayloadType = "stanch/receipt/v1"
	PayloadTypeVote                  PayloadType = "stanch/vote/v1"
	PayloadTypeManifest              PayloadType = "stanch/custody/v1"
	PayloadTypePlaybookAuthorization PayloadType = "stanch/selection/v1"
	PayloadTypeKillSwitch            PayloadType = "stanch/switch/v1"
	PayloadTypeKeySet                PayloadType = "stanch/key-set/v1"
)

// Envelope is a signed statement. It contains no secret, so it is safe to store and to send.
type Envelope struct {
	PayloadType PayloadType `json:"payload_type"`
	KeyID       string      `json:"key_id"`
	Payload     []byte      `json:"payload"` // the JSON of the statement: exactly the bytes that were signed
	Signature   []byte      `json:"sig"`
}

// SigningKey is an Ed25519 key that signs statements. The zero value is unusable: use NewSigningKey. It is safe for
// concurrent use.
type SigningKey struct {
	id         string
	privateKey ed25519.PrivateKey
}

// NewSigningKey returns the signing key for a 32-byte seed. A seed of another length is an error.
func NewSigningKey(seed []byte) (SigningKey, error) {
	if len(seed) != ed25519.SeedSize {
		return SigningKey{}, fmt.Errorf("read the authority key: the seed has %d bytes, expected %d", len(seed),
			ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	return SigningKey{id: KeyID(public), privateKey: private}, nil
}

// KeyID returns the ID of a public key: the first 8 bytes of its SHA-256 in hex.
func KeyID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:8])
}

// ID returns the key ID that the statements of this key contain.
func (k SigningKey) ID() string { return k.id }

// PublicKey returns the public key that verifies the statements of this key.
func (k SigningKey) PublicKey() ed25519.PublicKey { return k.privateKey.Public().(ed25519.PublicKey) }

// Sign returns an envelope with the JSON of body, signed for one payload type. The only error is a body that JSON
// cannot encode.
func (k SigningKey) Sign(purpose PayloadType, body any) (Envelope, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return Envelope{}, fmt.Errorf("sign %s: %w", purpose, err)
	}
	return Envelope{PayloadType: purpose, KeyID: k.id, Payload: raw, Signature: ed25519.Sign(k.privateKey,
		signingInput(purpose, raw))}, nil
}

func signingInput(purpose PayloadType, body []byte) []byte {
	msg := make([]byte, 0, len(purpose)+1+len(body))
	msg = append(msg, purpose...)
	msg = append(msg, 0)
	return append(msg, body...)
}

// Keyring maps key IDs to public keys, and verifies statements. During a rotation it contains the old key and the new
// one.
type Keyring map[string]ed25519.PublicKey

// NewKeyring returns a keyring with the given public keys.
func NewKeyring(keys ...ed25519.PublicKey) Keyring {
	ring := make(Keyring, len(keys))
	for _, key := range keys {
		ring[KeyID(key)] = key
	}
	return ring
}

// ParseKeyring parses public keys, one base64 line each. It skips empty lines and lines that begin with #. An invalid
// line is an error, and so is a list without a key.
func ParseKeyring(lines []string) (Keyring, error) {
	ring := Keyring{}
	for i, line := range lines {
		if line == "" || line[0] == '#' {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("read the authority keys: line %d is not a base64-encoded Ed25519 public key", i+1)
		}
		ring[KeyID(raw)] = raw
	}
	if len(ring) == 0 {
		return nil, errors.New("read the authority keys: the file contains no key")
	}
	return ring, nil
}

// EncodeLines returns the keys in the form that ParseKeyring reads, in no particular order.
func (r Keyring) EncodeLines() []string {
	lines := make([]string, 0, len(r))
	for _, key := range r {
		lines = append(lines, base64.StdEncoding.EncodeToString(key))
	}
	return lines
}

// Verify checks that s has the payload type and a valid signature by a key of the keyring, and decodes its payload
// into out. Every error wraps ErrUnverified.
func (r Keyring) Verify(s Envelope, purpose PayloadType, out any) error {
	if s.PayloadType != purpose {
		return fmt.Errorf("%w: the payload type is %q instead of %q", ErrUnverified, s.PayloadType, purpose)
	}
	key, ok := r[s.KeyID]
	if !ok {
		return fmt.Errorf("%w: %s is signed by the unknown key %q", ErrUnverified, purpose, s.KeyID)
	}
	if !ed25519.Verify(key, signingInput(s.PayloadType, s.Payload), s.Signature) {
		return fmt.Errorf("%w: invalid signature of %s", ErrUnverified, purpose)
	}
	if err := json.Unmarshal(s.Payload, out); err != nil {
		return fmt.Errorf("%w: %s is signed but cannot be read: %w", ErrUnverified, purpose, err)
	}
	return nil
}

// HashJSON returns the SHA-256 of a value's JSON in hex. Plans, parameters and detections are compared by it. It
// panics if JSON cannot encode the value.
func HashJSON(value any) string {
	raw, err := json.Marshal(value)
	if err != nil {
		// Callers pass plain data only, so a failure is a programming error.
		panic(fmt.Sprintf("hash: %v", err))
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// maxClockSkew is the tolerated difference between the clocks of two Stanch processes.
const maxClockSkew = 30 * time.Second
