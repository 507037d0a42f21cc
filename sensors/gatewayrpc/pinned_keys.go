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

	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
)

// PinnedKeys are the authority's keys that a node trusts: the keys from its enrollment, and the keys that a chain of
// signed rotations leads to from there. A gateway's own claims change nothing. It is safe for concurrent use; nil
// contains no keys.
type PinnedKeys struct {
	path           string // "" keeps them in memory only
	installationID string

	mu      sync.Mutex
	keySet  attestation.KeySet
	keyring attestation.Keyring
}

// ErrNoPinnedKeys is returned if a node was never enrolled with an authority.
var ErrNoPinnedKeys = errors.New("the authority's keys are not pinned")

// ErrDamagedPinnedKeys is wrapped by an error for a pinned keys file that cannot be parsed. The sensor then continues
// without keys: it sends detections, and refuses every command until an administrator removes the file. Nothing else
// may replace the file.
var ErrDamagedPinnedKeys = errors.New(
	"the pinned keys file is corrupted; remove the file to pin those of the next enrollment",
)

// pinnedKeysFile is the content of the pinned keys file.
type pinnedKeysFile struct {
	// InstallationID identifies the installation by the SHA-256 of its CA certificate, which an administrator put on
	// the node.
	InstallationID string             `json:"installation_id,omitempty"`
	Keys           attestation.KeySet `json:"keys"`
}

// InstallationID returns the ID of the installation with this CA certificate, in PEM form: its SHA-256 in hex.
func InstallationID(ca []byte) string {
	sum := sha256.Sum256(bytes.TrimSpace(ca))
	return hex.EncodeToString(sum[:])
}

// OpenPinnedKeys reads the keys that are pinned in path for the installation anchor. If there are none, or they belong
// to another installation, it pins the enrolled keys and writes them to path. Without either it returns
// ErrNoPinnedKeys. An empty path keeps the keys in memory only.
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
				break // the node belonged to another installation before
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

// Keyring returns the keys that verify the authority's statements. For nil it returns an empty keyring, so that every
// command is refused.
func (p *PinnedKeys) Keyring() attestation.Keyring {
	if p == nil {
		return attestation.Keyring{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keyring
}

// ApplyRotations applies the rotations that a gateway sends, each of which must be signed by the previously active
// key. It writes the new keys to the file before it uses them. An error changes nothing.
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

// HasAny reports whether at least one of a gateway's authority keys, in the form of attestation.ParseKeyring, is
// pinned.
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
		return fmt.Errorf("save the pinned keys: %w", err)
	}
	if err := durablefile.Write(p.path, raw, 0o600); err != nil {
		return fmt.Errorf("save the pinned keys: %w", err)
	}
	return nil
}
