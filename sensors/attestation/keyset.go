package attestation

import (
	"encoding/json"
	"fmt"
	"time"
)

// KeySet is the set of keys that an authority uses after a rotation. The previously active key signs it. A client that
// pinned that key can therefore follow the chain of rotations, and never follows a server that only pretends to be the
// gateway.
type KeySet struct {
	Sequence    int64     `json:"seq"`         // 1 for the first rotation
	ActiveKeyID string    `json:"active"`      // ID of the key that signs from now on; it alone signs the next set
	PublicKeys  []string  `json:"public_keys"` // keys that verify, as ParseKeyring reads them; includes the active key
	RotatedAt   time.Time `json:"at"`
}

// Keyring returns the keys of the set. It returns an error if a key is invalid or the active key is missing.
func (k KeySet) Keyring() (Keyring, error) {
	ring, err := ParseKeyring(k.PublicKeys)
	if err != nil {
		return nil, err
	}
	if _, ok := ring[k.ActiveKeyID]; !ok {
		return nil, fmt.Errorf("%w: key set %d does not contain its active key %q", ErrUnverified, k.Sequence, k.ActiveKeyID)
	}
	return ring, nil
}

// ApplyRotations returns the newest key set that a chain of signed sets leads to, starting from k. It skips sets that
// are not newer than k. Each later set must have the next sequence number and be signed by the key that was active
// before it; otherwise ApplyRotations returns k and an error.
func (k KeySet) ApplyRotations(chain []Envelope) (KeySet, error) {
	now := k
	for _, s := range chain {
		ring, err := now.Keyring()
		if err != nil {
			return k, err
		}
		var next KeySet
		if err := (Keyring{now.ActiveKeyID: ring[now.ActiveKeyID]}).Verify(s, PayloadTypeKeySet, &next); err != nil {
			if isAlreadyApplied(s, now.Sequence) {
				continue
			}
			return k, err
		}
		if next.Sequence != now.Sequence+1 {
			return k, fmt.Errorf("%w: key set %d cannot follow key set %d", ErrUnverified, next.Sequence, now.Sequence)
		}
		if _, err := next.Keyring(); err != nil {
			return k, err
		}
		now = next
	}
	return now, nil
}

// isAlreadyApplied reports whether a set that cannot be verified was applied before. Its signing key may have been
// removed since then.
func isAlreadyApplied(s Envelope, seq int64) bool {
	var old KeySet
	return s.PayloadType == PayloadTypeKeySet && json.Unmarshal(s.Payload, &old) == nil && old.Sequence <= seq
}
