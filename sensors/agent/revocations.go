package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
)

// revocations records which leases were ended early, until their original end. Without it, a token that was issued
// before a release could be replayed afterwards. It also records the targets that people released.
type revocations struct {
	mu    sync.Mutex
	path  string
	byKey map[string]revocation // keys are lease IDs and target IDs
}

type revocation struct {
	RevokedAt time.Time `json:"at"`
	ExpiresAt time.Time `json:"until"`
}

func openRevocations(dir string) (*revocations, error) {
	l := &revocations{byKey: map[string]revocation{}}
	if dir == "" {
		return l, nil
	}
	if err := durablefile.MakeDirectory(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the node's revocations: %w", err)
	}
	l.path = filepath.Join(dir, "released.json")
	raw, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the node's revocations: %w", err)
	}
	if err := json.Unmarshal(raw, &l.byKey); err != nil {
		return nil,
			fmt.Errorf("open the node's revocations: %s is corrupted: %w; remove it if no lease is active", l.path, err)
	}
	return l, nil
}

// releaseRetention is how long a person's release of a target is remembered. It is longer than the maximum age of a
// detection.
const releaseRetention = time.Hour

// record records that a lease ended now, before its expiry until. by is the grant. If people issued it, the target
// counts as released: an earlier detection cannot contain it again.
func (l *revocations) record(lease, target string, until time.Time, by attestation.Grant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for k, r := range l.byKey {
		if now.After(r.ExpiresAt) {
			delete(l.byKey, k)
		}
	}
	l.byKey[lease] = revocation{RevokedAt: now, ExpiresAt: until}
	if by.Operation == attestation.OperationRelease {
		l.byKey[target] = revocation{RevokedAt: by.IssuedAt, ExpiresAt: now.Add(releaseRetention)}
	}
	if l.path == "" {
		return nil
	}
	raw, err := json.Marshal(l.byKey)
	if err != nil {
		return fmt.Errorf("write the node's revocations: %w", err)
	}
	if err := durablefile.Write(l.path, raw, 0o600); err != nil {
		return fmt.Errorf("write the node's revocations: %w", err)
	}
	return nil
}

// isTargetReleased reports whether people released a target at or after the time since.
func (l *revocations) isTargetReleased(target string, since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.byKey[target]
	return ok && !since.After(r.RevokedAt) && time.Now().Before(r.ExpiresAt)
}

// isTokenRevoked reports whether a release revoked the tokens of the lease that were issued at or before issued.
func (l *revocations) isTokenRevoked(lease string, issued time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.byKey[lease]
	return ok && !issued.After(r.RevokedAt) && time.Now().Before(r.ExpiresAt)
}
