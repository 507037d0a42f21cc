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

	"stanch/sensors/proof"
)

// ledger remembers which leases were ended early, until their stamped end: without it, a token issued before a
// release could be replayed after it. It remembers the targets that people released, too.
type ledger struct {
	mu    sync.Mutex
	path  string
	spent map[string]release // by lease, and by target
}

type release struct {
	At    time.Time `json:"at"`
	Until time.Time `json:"until"`
}

func openLedger(dir string) (*ledger, error) {
	l := &ledger{spent: map[string]release{}}
	if dir == "" {
		return l, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the node's ledger: %w", err)
	}
	l.path = filepath.Join(dir, "released.json")
	raw, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the node's ledger: %w", err)
	}
	if err := json.Unmarshal(raw, &l.spent); err != nil {
		return nil, fmt.Errorf("open the node's ledger: %s is damaged: %w; remove it if you know that no lease is in force", l.path, err)
	}
	return l, nil
}

// releaseMemory is how long it is remembered that people released a target: longer than a detection is fresh.
const releaseMemory = time.Hour

// spend notes that a lease was ended now although it was stamped to last until then. by is the grant; when people gave
// it, the target counts as released: what was detected before is no ground to contain it again.
func (l *ledger) spend(lease, target string, until time.Time, by proof.Grant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for k, r := range l.spent {
		if now.After(r.Until) {
			delete(l.spent, k)
		}
	}
	l.spent[lease] = release{At: now, Until: until}
	if by.Operation == proof.OperationRelease {
		l.spent[target] = release{At: by.Issued, Until: now.Add(releaseMemory)}
	}
	if l.path == "" {
		return nil
	}
	raw, err := json.Marshal(l.spent)
	if err != nil {
		return fmt.Errorf("write the node's ledger: %w", err)
	}
	if err := os.WriteFile(l.path+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write the node's ledger: %w", err)
	}
	if err := os.Rename(l.path+".new", l.path); err != nil {
		return fmt.Errorf("write the node's ledger: %w", err)
	}
	return nil
}

// isReleased tells whether people released a target at or after the time given.
func (l *ledger) isReleased(target string, since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.spent[target]
	return ok && !since.After(r.At) && time.Now().Before(r.Until)
}

// isSpent tells whether a token of the lease, issued then, was spent by a release.
func (l *ledger) isSpent(lease string, issued time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.spent[lease]
	return ok && !issued.After(r.At) && time.Now().Before(r.Until)
}
