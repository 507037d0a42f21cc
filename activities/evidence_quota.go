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

// Quota limits the size of evidence, in bytes. A zero field means no limit. An attacker could fill a store before the
// attack, so the last tenth of the store and of each incident is reserved for small artifacts.
type Quota struct {
	MaxTotalBytes    int64 // of all artifacts in the store
	MaxIncidentBytes int64 // of the artifacts of one incident
	MinFreeBytes     int64 // kept free on the file system, for manifests and Temporal's database
}

// smallArtifactBytes is the maximum size of artifacts in the reserved tenth: a process snapshot, a manifest, a log.
const smallArtifactBytes = 1 << 20

// usageCache is the cached size of the store. It is recomputed regularly, because other replicas write too.
type usageCache struct {
	mu         sync.Mutex
	totalBytes int64
	countedAt  time.Time
}

// maxUsageAge is how long the cached size is used.
const maxUsageAge = 10 * time.Minute

// UsedBytes returns the total size of all artifacts in the store.
func (s *EvidenceStore) UsedBytes() (int64, error) {
	s.cachedUsage.mu.Lock()
	defer s.cachedUsage.mu.Unlock()
	if !s.cachedUsage.countedAt.IsZero() && time.Since(s.cachedUsage.countedAt) < maxUsageAge {
		return s.cachedUsage.totalBytes, nil
	}
	total := int64(0)
	err := filepath.WalkDir(filepath.Join(s.Dir, "blobs"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // an artifact that is being written
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("count the evidence: %w", err)
	}
	s.cachedUsage.totalBytes, s.cachedUsage.countedAt = total, time.Now()
	return total, nil
}

func (s *EvidenceStore) addUsedBytes(n int64) {
	s.cachedUsage.mu.Lock()
	defer s.cachedUsage.mu.Unlock()
	s.cachedUsage.totalBytes += n
}

// checkQuota returns a refusal if an artifact of this size would exceed the quota. Artifacts that are already stored
// need no space.
func (s *EvidenceStore) checkQuota(incident string, size int64) error {
	if s.Quota.MaxTotalBytes > 0 {
		total, err := s.UsedBytes()
		if err != nil {
			return err
		}
		if reason := quotaExceededReason(total, size, s.Quota.MaxTotalBytes); reason != "" {
			return Refusef("store evidence: %s; archive and remove old evidence, or raise `evidence: {max_total}`", reason)
		}
	}
	if s.Quota.MaxIncidentBytes > 0 {
		used, err := s.incidentUsedBytes(incident)
		if err != nil {
			return err
		}
		if reason := quotaExceededReason(used, size, s.Quota.MaxIncidentBytes); reason != "" {
			return Refusef("store evidence of %s: %s; raise `evidence: {max_per_incident}` if it needs more", incident, reason)
		}
	}
	if s.Quota.MinFreeBytes > 0 {
		free, err := freeBytes(s.Dir)
		if err != nil {
			return err
		}
		if free-size < s.Quota.MinFreeBytes {
			return Refusef(
				"store evidence: the file system of %s has %d bytes free, and %d are reserved; free some space, or lower `evidence: {min_free}`",
				s.Dir,
				free,
				s.Quota.MinFreeBytes,
			)
		}
	}
	return nil
}

// quotaExceededReason returns why size more bytes do not fit, or "".
func quotaExceededReason(used, size, most int64) string {
	limit := most - most/10
	if size <= smallArtifactBytes {
		limit = most
	}
	if used+size <= limit {
		return ""
	}
	return fmt.Sprintf(
		"%d of %d bytes are used and %d more do not fit (the last tenth is reserved for artifacts of up to %d bytes)",
		used,
		most,
		size,
		smallArtifactBytes,
	)
}

// incidentUsedBytes returns the total size of an incident's artifacts, by its manifest. Duplicates count once.
func (s *EvidenceStore) incidentUsedBytes(incident string) (int64, error) {
	lines, _, err := s.Manifest(incident, s.Authority.Keyring())
	if err != nil {
		return 0, err
	}
	pieces := map[string]*playbooks.EvidenceRef{}
	for _, l := range lines {
		if e := l.Entry.Evidence; e != nil && l.SignatureValid {
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
			continue // created with the first artifact
		}
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			return 0, fmt.Errorf("read the free space of %s: %w", at, err)
		}
		return int64(st.Bavail) * st.Bsize, nil
	}
}
