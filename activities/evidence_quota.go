package activities

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stanch/playbooks"
)

// Quota bounds what evidence takes, in bytes. A zero field does not bound. Whoever attacks may fill a store with junk
// first and attack then: so the last tenth, of the store and of each incident, is kept for small pieces.
type Quota struct {
	Total    int64 // of all pieces in the store
	Incident int64 // of the pieces of one incident
	MinFree  int64 // what stays free on the file system, for manifests and Temporal's own file
}

// smallPiece is what may still be stored in the reserved tenth: a snapshot of processes, a manifest, a log.
const smallPiece = 1 << 20

// usage is what the store is known to hold. It is counted anew now and then: other replicas write too.
type usage struct {
	mu      sync.Mutex
	total   int64
	counted time.Time
}

// usageAge is how long a count of the whole store is relied on.
const usageAge = 10 * time.Minute

// Usage returns the bytes of all pieces in the store.
func (s *EvidenceStore) Usage() (int64, error) {
	s.used.mu.Lock()
	defer s.used.mu.Unlock()
	if !s.used.counted.IsZero() && time.Since(s.used.counted) < usageAge {
		return s.used.total, nil
	}
	total := int64(0)
	err := filepath.WalkDir(filepath.Join(s.Dir, "blobs"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // a piece that is being stored right now
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("count the evidence: %w", err)
	}
	s.used.total, s.used.counted = total, time.Now()
	return total, nil
}

func (s *EvidenceStore) addUsage(n int64) {
	s.used.mu.Lock()
	defer s.used.mu.Unlock()
	s.used.total += n
}

// admit returns a refusal if a piece of this size would exceed the quota. Pieces that are stored already cost nothing.
func (s *EvidenceStore) admit(incident string, size int64) error {
	if s.Quota.Total > 0 {
		total, err := s.Usage()
		if err != nil {
			return err
		}
		if reason := over(total, size, s.Quota.Total); reason != "" {
			return Refuse("evidence store: %s; archive and remove old evidence, or raise `evidence: {max_total}`", reason)
		}
	}
	if s.Quota.Incident > 0 {
		used, err := s.incidentUsage(incident)
		if err != nil {
			return err
		}
		if reason := over(used, size, s.Quota.Incident); reason != "" {
			return Refuse("evidence of %s: %s; raise `evidence: {max_per_incident}` if it needs more", incident, reason)
		}
	}
	if s.Quota.MinFree > 0 {
		free, err := freeBytes(s.Dir)
		if err != nil {
			return err
		}
		if free-size < s.Quota.MinFree {
			return Refuse("evidence store: the file system of %s has %d bytes free, and %d stay free; make room, or lower `evidence: {min_free}`", s.Dir, free, s.Quota.MinFree)
		}
	}
	return nil
}

// over says why size more does not fit, or "".
func over(used, size, most int64) string {
	limit := most - most/10
	if size <= smallPiece {
		limit = most
	}
	if used+size <= limit {
		return ""
	}
	return fmt.Sprintf("%d of %d bytes are used and %d more do not fit (the last tenth is kept for pieces up to %d bytes)", used, most, size, smallPiece)
}

// incidentUsage returns the bytes of an incident's pieces by its manifest. A piece that is entered twice counts once.
func (s *EvidenceStore) incidentUsage(incident string) (int64, error) {
	lines, _, err := s.Manifest(incident, s.Authority.Keys())
	if err != nil {
		return 0, err
	}
	pieces := map[string]*playbooks.EvidenceRef{}
	for _, l := range lines {
		if e := l.Entry.Evidence; e != nil && l.Proved {
			pieces[e.SHA256] = e
		}
	}
	total := int64(0)
	for _, e := range pieces {
		total += e.SizeBytes
	}
	return total, nil
}

func freeBytes(dir string) (int64, error) {
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err != nil && at != filepath.Dir(at) {
			continue // it is made with the first piece
		}
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			return 0, fmt.Errorf("read the free space of %s: %w", at, err)
		}
		return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // a file system of 2^63 bytes
	}
}
