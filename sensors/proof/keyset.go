package proof

import (
	"encoding/json"
	"fmt"
	"time"
)

// KeySet is which keys an authority signs and is verified with, from one rotation on. It is signed by the key that was active
// before: who pinned that one follows the chain, and follows nobody who merely answers as the gateway.
type KeySet struct {
	Seq    int64     `json:"seq"`    // 1 for the first rotation
	Active string    `json:"active"` // the id of the key that signs from now on, and alone signs the next set
	Keys   []string  `json:"keys"`   // public keys that verify, as ParseKeyring reads them; the active one is among them
	At     time.Time `json:"at"`
}

// Ring returns the keys of a set. It is an error if the active one is not among them.
func (k KeySet) Ring() (Keyring, error) {
	ring, err := ParseKeyring(k.Keys)
	if err != nil {
		return nil, err
	}
	if _, ok := ring[k.Active]; !ok {
		return nil, fmt.Errorf("%w: key set %d names the active key %q and does not hold it", ErrUnproved, k.Seq, k.Active)
	}
	return ring, nil
}

// Follow returns the newest set that a chain of signed sets leads to from this one. Sets up to this one's are skipped; each
// later one must be the next and be signed by the key that was active before it.
func (k KeySet) Follow(chain []Signed) (KeySet, error) {
	now := k
	for _, s := range chain {
		ring, err := now.Ring()
		if err != nil {
			return k, err
		}
		var next KeySet
		if err := (Keyring{now.Active: ring[now.Active]}).Open(s, PurposeKeySet, &next); err != nil {
			if skipped(s, now.Seq) {
				continue
			}
			return k, err
		}
		if next.Seq != now.Seq+1 {
			return k, fmt.Errorf("%w: key set %d follows %d", ErrUnproved, next.Seq, now.Seq)
		}
		if _, err := next.Ring(); err != nil {
			return k, err
		}
		now = next
	}
	return now, nil
}

// skipped reports whether a set that cannot be verified is one that was followed before: its signer may be gone since.
func skipped(s Signed, seq int64) bool {
	var old KeySet
	return s.Purpose == PurposeKeySet && json.Unmarshal(s.Body, &old) == nil && old.Seq <= seq
}
