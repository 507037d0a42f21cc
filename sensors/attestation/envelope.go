// Package proof holds the signed statements without which Stanch changes nothing: attestations of detections,
// grants that people gave, and lease tokens that a node checks for itself.
//
// It signs and verifies, and that is all. It refuses to decide whether something should be permitted (guards and
// the gateway do), keeps no key on disk (worker/authority does), and never treats a statement made for one
// purpose as one made for another: the purpose is part of what is signed.
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

// ErrUnverified is wrapped by every error of Verify and of the statements' checks: the statement does not permit
// what was asked. Trying again will not help.
var ErrUnverified = errors.New("not proved")

// PayloadType separates the kinds of statement, so that none can pass for another.
type PayloadType string

// The purposes.
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

// Envelope is a statement with its signature. It is safe to store and to send: it holds no secret.
type Envelope struct {
	PayloadType PayloadType `json:"payload_type"`
	KeyID       string      `json:"key_id"`
	Payload     []byte      `json:"payload"` // the statement's JSON, exactly the bytes that were signed
	Signature   []byte      `json:"sig"`
}

// SigningKey signs. The zero value is unusable: use NewSigningKey.
type SigningKey struct {
	id         string
	privateKey ed25519.PrivateKey
}

// NewSigningKey makes a signing key from a 32-byte seed. Its id is a hash of the public key.
func NewSigningKey(seed []byte) (SigningKey, error) {
	if len(seed) != ed25519.SeedSize {
		return SigningKey{}, fmt.Errorf("authority key: the seed has %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	return SigningKey{id: KeyID(public), privateKey: private}, nil
}

// KeyID names a public key: the first 8 bytes of its SHA-256 in hex.
func KeyID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:8])
}

// ID is the id that statements signed by this key carry.
func (k SigningKey) ID() string { return k.id }

// PublicKey is the half that verifies.
func (k SigningKey) PublicKey() ed25519.PublicKey { return k.privateKey.Public().(ed25519.PublicKey) }

// Sign makes a signed statement of body for one purpose.
func (k SigningKey) Sign(purpose PayloadType, body any) (Envelope, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return Envelope{}, fmt.Errorf("sign %s: %w", purpose, err)
	}
	return Envelope{PayloadType: purpose, KeyID: k.id, Payload: raw, Signature: ed25519.Sign(k.privateKey, signingInput(purpose, raw))}, nil
}

func signingInput(purpose PayloadType, body []byte) []byte {
	msg := make([]byte, 0, len(purpose)+1+len(body))
	msg = append(msg, purpose...)
	msg = append(msg, 0)
	return append(msg, body...)
}

// Keyring verifies: key id to public key. During a rotation it holds the old key and the new.
type Keyring map[string]ed25519.PublicKey

// NewKeyring holds the given public keys under their ids.
func NewKeyring(keys ...ed25519.PublicKey) Keyring {
	ring := make(Keyring, len(keys))
	for _, key := range keys {
		ring[KeyID(key)] = key
	}
	return ring
}

// ParseKeyring reads public keys, one base64 line each. Empty lines and lines that begin with # are passed over.
func ParseKeyring(lines []string) (Keyring, error) {
	ring := Keyring{}
	for i, line := range lines {
		if line == "" || line[0] == '#' {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("authority keys, line %d: not a base64 ed25519 public key", i+1)
		}
		ring[KeyID(raw)] = raw
	}
	if len(ring) == 0 {
		return nil, errors.New("authority keys: no key given")
	}
	return ring, nil
}

// EncodeLines is the form that ParseKeyring reads.
func (r Keyring) EncodeLines() []string {
	lines := make([]string, 0, len(r))
	for _, key := range r {
		lines = append(lines, base64.StdEncoding.EncodeToString(key))
	}
	return lines
}

// Verify verifies a statement of the given purpose and decodes its body into out.
func (r Keyring) Verify(s Envelope, purpose PayloadType, out any) error {
	if s.PayloadType != purpose {
		return fmt.Errorf("%w: a statement for %q was offered where %q is needed", ErrUnverified, s.PayloadType, purpose)
	}
	key, ok := r[s.KeyID]
	if !ok {
		return fmt.Errorf("%w: %s is signed by the unknown key %q", ErrUnverified, purpose, s.KeyID)
	}
	if !ed25519.Verify(key, signingInput(s.PayloadType, s.Payload), s.Signature) {
		return fmt.Errorf("%w: the signature of %s does not fit", ErrUnverified, purpose)
	}
	if err := json.Unmarshal(s.Payload, out); err != nil {
		return fmt.Errorf("%w: %s is signed but cannot be read: %w", ErrUnverified, purpose, err)
	}
	return nil
}

// HashJSON is the SHA-256 of a value's JSON in hex: plans, parameters and detections are compared by it.
func HashJSON(value any) string {
	raw, err := json.Marshal(value)
	if err != nil {
		// Only values that are made of plain data are hashed; a failure is a mistake in the program.
		panic(fmt.Sprintf("hash: %v", err))
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// maxClockSkew is how far two of Stanch's clocks may be apart.
const maxClockSkew = 30 * time.Second
