package activities

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/durablefile"
	"stanch/sensors/truncate"
)

// EvidenceStore stores evidence by content in a directory, blobs/<sha256>, with a manifest for each incident: a
// hash-chained, signed line for each artifact and each audit record (manifest.go). It can be read and verified without
// a running Stanch. It is safe for concurrent use, also by several processes.
type EvidenceStore struct {
	Dir string
	// Authority signs the manifests. With nil, the store is read-only.
	Authority Authority
	// Quota limits the stored bytes; the zero value has no limit.
	Quota Quota

	cachedUsage usageCache
}

var (
	incidentIDPattern = regexp.MustCompile(`^(INC-[0-9A-Z]{10,40}|` + JournalManifest + `)$`)
	sha256Pattern     = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// JournalManifest is the manifest for events of no single incident, above all the kill switch.
const JournalManifest = "JOURNAL"

// maxArtifactBytes is the maximum size of one artifact.
const maxArtifactBytes = 128 << 20

// StoreArtifact stores an artifact and appends it to the incident's manifest. The artifact is written atomically, and
// the manifest names it only after it is stored.
func (s *EvidenceStore) StoreArtifact(incident, action, target string, piece Artifact,
	at time.Time,
) (playbooks.EvidenceRef, error) {
	if len(piece.Data) > maxArtifactBytes {
		return playbooks.EvidenceRef{}, Refusef("store evidence %s: it is %d bytes; the limit is %d", piece.Name,
			len(piece.Data),
			maxArtifactBytes)
	}
	sum := sha256.Sum256(piece.Data)
	ref := playbooks.EvidenceRef{
		Name: piece.Name, Action: action, Target: target, SHA256: hex.EncodeToString(sum[:]),
		SizeBytes: int64(len(piece.Data)), CapturedAt: at.UTC(), CapturedFrom: piece.CapturedFrom,
	}
	if piece.SHA256 != "" && piece.SHA256 != ref.SHA256 {
		return playbooks.EvidenceRef{}, fmt.Errorf("evidence %s: its SHA-256 was %s at the source (%s) and is %s here",
			piece.Name, truncate.Text(piece.SHA256, 64), piece.CapturedFrom, ref.SHA256)
	}
	if _, err := s.ReadArtifact(ref.SHA256); err != nil { // already stored otherwise
		if err := s.checkQuota(incident, ref.SizeBytes); err != nil {
			return playbooks.EvidenceRef{}, err
		}
		if err := s.writeBlob(ref.SHA256, piece.Data); err != nil {
			return playbooks.EvidenceRef{}, fmt.Errorf("store evidence %s: %w", piece.Name, err)
		}
		s.addUsedBytes(ref.SizeBytes)
	} else if err := durablefile.Sync(s.blobPath(ref.SHA256)); err != nil { // a killed process may have written it
		return playbooks.EvidenceRef{}, fmt.Errorf("store evidence %s: %w", piece.Name, err)
	}
	entered := ref
	hash, err := s.appendEntry(ManifestEntry{
		IncidentID: incident, Kind: EntryKindEvidence, Evidence: &entered,
		At: ref.CapturedAt,
	})
	if err != nil {
		return playbooks.EvidenceRef{}, err
	}
	ref.ManifestEntryHash = hash
	return ref, nil
}

func (s *EvidenceStore) blobPath(sum string) string {
	return filepath.Join(s.Dir, "blobs", sum[:2], sum)
}

// writeBlob stores bytes under their hash. It rewrites a blob whose content does not match its name.
func (s *EvidenceStore) writeBlob(sum string, data []byte) error {
	path := s.blobPath(sum)
	if err := durablefile.MakeDirectory(filepath.Dir(path), 0o700); err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	return durablefile.Write(path, data, 0o400) //nolint:wrapcheck // the caller adds context
}

// ErrCorrupted means that an artifact's content does not match its hash.
var ErrCorrupted = errors.New("it differs from what was stored")

// ReadArtifact returns an artifact. It returns ErrCorrupted if its content does not match its hash.
func (s *EvidenceStore) ReadArtifact(sum string) ([]byte, error) {
	if !sha256Pattern.MatchString(sum) {
		return nil, Refusef("invalid SHA-256 %q; use 64 hexadecimal digits", truncate.Text(sum, 80))
	}
	data, err := os.ReadFile(s.blobPath(sum))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the artifact is missing from the store: %w", fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("read an artifact: %w", err)
	}
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%w: its bytes hash to %s", ErrCorrupted, hex.EncodeToString(got[:]))
	}
	return data, nil
}

// ListIncidents returns the ids of the incidents that have a manifest.
func (s *EvidenceStore) ListIncidents() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.Dir, "incidents"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the manifests: %w; only the user that runs Stanch can read them", err)
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".jsonl"); ok {
			out = append(out, name)
		}
	}
	return out, nil
}
