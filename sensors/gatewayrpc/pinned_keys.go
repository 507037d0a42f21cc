package gatewayrpc

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

	"stanch/sensors/attestation"
)

// PinnedKeys are the authority's keys as a node knows them: those that it was enrolled with, and those that a chain of rotations
// leads to from there. What a gateway says of itself changes nothing. It is safe for concurrent use.
type PinnedKeys struct {
	path           string // "" keeps them in memory only
	installationID string

	mu      sync.Mutex
	keySet  attestation.KeySet
	keyring attestation.Keyring
}

// ErrNoPinnedKeys says that a node was never told whose commands it obeys.
var ErrNoPinnedKeys = errors.New("the authority's keys are not pinned")

// ErrDamagedPinnedKeys says that the pinned keys cannot be read. Whoever gets it goes on without keys: detections are sent, and
// every command is refused until an administrator removes the file, which nothing else may replace.
var ErrDamagedPinnedKeys = errors.New("the pinned keys are damaged; remove the file to pin those of the next enrollment")

// pinnedKeysFile is how pinned keys are kept.
type pinnedKeysFile struct {
	// InstallationID is the installation: the SHA-256 of its certificate authority, which an administrator put on the node.
	InstallationID string             `json:"installation_id,omitempty"`
	Keys           attestation.KeySet `json:"keys"`
}

// InstallationID names an installation by its certificate authority, as PEM.
func InstallationID(ca []byte) string {
	sum := sha256.Sum256(bytes.TrimSpace(ca))
	return hex.EncodeToString(sum[:])
}

// OpenPinnedKeys reads the keys that were pinned in path for an installation. If there are none, or they are another
// installation's, it pins those of the enrollment, and keeps them in path. Without either it returns ErrNoPinnedKeys.
func OpenPinnedKeys(path, anchor string, enrolled attestation.KeySet) (*PinnedKeys, error) {
	p := &PinnedKeys{path: path, installationID: anchor, keySet: enrolled}
	if path != "" {
		raw, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read the pinned keys: %w", err)
		default:
			var kept pinnedKeysFile
			if err := json.Unmarshal(raw, &kept); err != nil {
				return nil, fmt.Errorf("read %s: %w: %w", path, ErrDamagedPinnedKeys, err)
			}
			if kept.InstallationID != anchor {
				break // the node was another installation's before
			}
			if p.keyring, err = kept.Keys.Keyring(); err != nil {
				return nil, fmt.Errorf("read %s: %w: %w", path, ErrDamagedPinnedKeys, err)
			}
			p.keySet = kept.Keys
			return p, nil
		}
	}
	if p.keySet.ActiveKeyID == "" {
		return nil, ErrNoPinnedKeys
	}
	var err error
	if p.keyring, err = p.keySet.Keyring(); err != nil {
		return nil, fmt.Errorf("pin the authority's keys: %w", err)
	}
	return p, p.save(p.keySet)
}

// Keyring verify what the authority signed. Of nil they are none, so that every command is refused.
func (p *PinnedKeys) Keyring() attestation.Keyring {
	if p == nil {
		return attestation.Keyring{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keyring
}

// ApplyRotations takes over the rotations that a gateway shows, as far as each is signed by the key before it, and keeps them before
// they are used. An error changes nothing.
func (p *PinnedKeys) ApplyRotations(sets [][]byte) error {
	if p == nil {
		return ErrNoPinnedKeys
	}
	chain := make([]attestation.Envelope, 0, len(sets))
	for _, raw := range sets {
		var s attestation.Envelope
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("read a key set: %w", err)
		}
		chain = append(chain, s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := p.keySet.ApplyRotations(chain)
	if err != nil {
		return fmt.Errorf("follow the rotations of the authority's keys: %w", err)
	}
	if next.Sequence == p.keySet.Sequence {
		return nil
	}
	ring, err := next.Keyring()
	if err != nil {
		return err //nolint:wrapcheck // it names the set
	}
	if err := p.save(next); err != nil {
		return err
	}
	p.keySet, p.keyring = next, ring
	return nil
}

// HasAny reports whether a gateway's authority has a key that is pinned here.
func (p *PinnedKeys) HasAny(lines []string) bool {
	ring, err := attestation.ParseKeyring(lines)
	if err != nil {
		return false
	}
	for id := range p.Keyring() {
		if _, ok := ring[id]; ok {
			return true
		}
	}
	return false
}

func (p *PinnedKeys) save(set attestation.KeySet) error {
	if p.path == "" {
		return nil
	}
	raw, err := json.Marshal(pinnedKeysFile{p.installationID, set})
	if err != nil {
		return fmt.Errorf("keep the pinned keys: %w", err)
	}
	if err := renameio.WriteFile(p.path, raw, 0o600); err != nil {
		return fmt.Errorf("keep the pinned keys: %w", err)
	}
	return nil
}
