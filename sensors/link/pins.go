package link

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/google/renameio/v2"

	"stanch/sensors/proof"
)

// Pins are the authority's keys as a node knows them: those that it was enrolled with, and those that a chain of rotations
// leads to from there. What a gateway says of itself changes nothing. It is safe for concurrent use.
type Pins struct {
	path   string // "" keeps them in memory only
	anchor string

	mu   sync.Mutex
	set  proof.KeySet
	ring proof.Keyring
}

// ErrNoPins says that a node was never told whose commands it obeys.
var ErrNoPins = errors.New("the authority's keys are not pinned")

// ErrDamagedPins says that the pinned keys cannot be read. Whoever gets it goes on without keys: detections are sent, and
// every command is refused until an administrator removes the file, which nothing else may replace.
var ErrDamagedPins = errors.New("the pinned keys are damaged; remove the file to pin those of the next enrollment")

// pinFile is how pinned keys are kept.
type pinFile struct {
	// Anchor is the installation: the SHA-256 of its certificate authority, which an administrator put on the node.
	Anchor string       `json:"anchor,omitempty"`
	Keys   proof.KeySet `json:"keys"`
}

// Anchor names an installation by its certificate authority, as PEM.
func Anchor(ca []byte) string {
	sum := sha256.Sum256(bytes.TrimSpace(ca))
	return hex.EncodeToString(sum[:])
}

// OpenPins reads the keys that were pinned in path for an installation. If there are none, or they are another
// installation's, it pins those of the enrollment, and keeps them in path. Without either it returns ErrNoPins.
func OpenPins(path, anchor string, enrolled proof.KeySet) (*Pins, error) {
	p := &Pins{path: path, anchor: anchor, set: enrolled}
	if path != "" {
		raw, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read the pinned keys: %w", err)
		default:
			var kept pinFile
			if err := json.Unmarshal(raw, &kept); err != nil {
				return nil, fmt.Errorf("read %s: %w: %w", path, ErrDamagedPins, err)
			}
			if kept.Anchor != anchor {
				break // the node was another installation's before
			}
			if p.ring, err = kept.Keys.Ring(); err != nil {
				return nil, fmt.Errorf("read %s: %w: %w", path, ErrDamagedPins, err)
			}
			p.set = kept.Keys
			return p, nil
		}
	}
	if p.set.Active == "" {
		return nil, ErrNoPins
	}
	var err error
	if p.ring, err = p.set.Ring(); err != nil {
		return nil, fmt.Errorf("pin the authority's keys: %w", err)
	}
	return p, p.write(p.set)
}

// Keys verify what the authority signed. Of nil they are none, so that every command is refused.
func (p *Pins) Keys() proof.Keyring {
	if p == nil {
		return proof.Keyring{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ring
}

// Follow takes over the rotations that a gateway shows, as far as each is signed by the key before it, and keeps them before
// they are used. An error changes nothing.
func (p *Pins) Follow(sets [][]byte) error {
	if p == nil {
		return ErrNoPins
	}
	chain := make([]proof.Signed, 0, len(sets))
	for _, raw := range sets {
		var s proof.Signed
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("read a key set: %w", err)
		}
		chain = append(chain, s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := p.set.Follow(chain)
	if err != nil {
		return fmt.Errorf("follow the rotations of the authority's keys: %w", err)
	}
	if next.Seq == p.set.Seq {
		return nil
	}
	ring, err := next.Ring()
	if err != nil {
		return err //nolint:wrapcheck // it names the set
	}
	if err := p.write(next); err != nil {
		return err
	}
	p.set, p.ring = next, ring
	return nil
}

// Known reports whether a gateway's authority has a key that is pinned here.
func (p *Pins) Known(lines []string) bool {
	ring, err := proof.ParseKeyring(lines)
	if err != nil {
		return false
	}
	for id := range p.Keys() {
		if _, ok := ring[id]; ok {
			return true
		}
	}
	return false
}

func (p *Pins) write(set proof.KeySet) error {
	if p.path == "" {
		return nil
	}
	raw, err := json.Marshal(pinFile{p.anchor, set})
	if err != nil {
		return fmt.Errorf("keep the pinned keys: %w", err)
	}
	if err := renameio.WriteFile(p.path, raw, 0o600); err != nil {
		return fmt.Errorf("keep the pinned keys: %w", err)
	}
	return nil
}
