package attestation

import (
	"encoding/json"
	"fmt"
	"time"
)

// KeySet is which keys an authority signs and is verified with, from one rotation on. It is signed by the key that was active
// before: who pinned that one follows the chain, and follows nobody who merely answers as the gateway.
type KeySet struct {
	Sequence    int64     `json:"seq"`         // 1 for the first rotation
	ActiveKeyID string    `json:"active"`      // the id of the key that signs from now on, and alone signs the next set
	PublicKeys  []string  `json:"public_keys"` // public keys that verify, as ParseKeyring reads them; the active one is among them
	RotatedAt   time.Time `json:"at"`
}

// Keyring returns the keys of a set. It is an error if the active one is not among them.
func (k KeySet) Keyring() (Keyring, error) {
	ring, err := ParseKeyring(k.PublicKeys)
	if err != nil {
		return nil, err
	}
	if _, ok := ring[k.ActiveKeyID]; !ok {
		return nil, fmt.Errorf("%w: key set %d names the active key %q and does not hold it", ErrUnverified, k.Sequence, k.ActiveKeyID)
	}
	return ring, nil
}

// ApplyRotations returns the newest set that a chain of signed sets leads to from this one. Sets up to this one's are skipped; each
// later one must be the next and be signed by the key that was active before it.
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
			return k, fmt.Errorf("%w: key set %d follows %d", ErrUnverified, next.Sequence, now.Sequence)
		}
		if _, err := next.Keyring(); err != nil {
			return k, err
		}
		now = next
	}
	return now, nil
}

// isAlreadyApplied reports whether a set that cannot be verified is one that was followed before: its signer may be gone since.
func isAlreadyApplied(s Envelope, seq int64) bool {
	var old KeySet
	return s.PayloadType == PayloadTypeKeySet && json.Unmarshal(s.Payload, &old) == nil && old.Sequence <= seq
}
