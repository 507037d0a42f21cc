package activities

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
	"stanch/sensors/truncate"
)

// ManifestEntryKind is what an entry of a manifest records.
type ManifestEntryKind string

// The kinds of entries.
const (
	EntryKindEvidence ManifestEntryKind = "evidence" // an artifact was stored
	EntryKindApproval ManifestEntryKind = "approval" // approvers permitted a plan
	// EntryKindBreakGlass records that one person approved in place of the quorum.
	EntryKindBreakGlass ManifestEntryKind = "break-glass"
	EntryKindRelease    ManifestEntryKind = "release" // a person ended a containment early
	EntryKindExtend     ManifestEntryKind = "extend"  // a person extended a containment
	// a person assigned or resolved the incident, or requested an action in it
	EntryKindTriage  ManifestEntryKind = "triage"
	EntryKindPause   ManifestEntryKind = "pause"   // new containments were paused
	EntryKindResume  ManifestEntryKind = "resume"  // new containments were resumed
	EntryKindEffect  ManifestEntryKind = "effect"  // a containment was applied
	EntryKindUndo    ManifestEntryKind = "undo"    // a containment was undone
	EntryKindArchive ManifestEntryKind = "archive" // the workflows' histories were archived
	EntryKindAccess  ManifestEntryKind = "access"  // someone exported an artifact
)

// ManifestEntry is one line of an incident's manifest. It contains the hash of the previous line, and is signed.
type ManifestEntry struct {
	IncidentID string `json:"incident"`
	Sequence   int    `json:"seq"` // from 1
	// SHA-256 of the previous line; "" for the first
	PreviousHash string                 `json:"previous_hash,omitempty"`
	At           time.Time              `json:"at"`
	Kind         ManifestEntryKind      `json:"kind"`
	Evidence     *playbooks.EvidenceRef `json:"evidence,omitempty"`
	AuditRecord  *AuditRecord           `json:"audit_record,omitempty"`
}

// AuditRecord is the content of an entry that is not evidence.
type AuditRecord struct {
	Action  string            `json:"action,omitempty"`
	Target  string            `json:"target,omitempty"`
	LeaseID string            `json:"lease,omitempty"`
	Outcome playbooks.Outcome `json:"outcome,omitempty"`
	BasisID string            `json:"basis_id,omitempty"` // detection id or grant nonce
	People  []string          `json:"people,omitempty"`   // people and how they were authenticated
	SHA256  string            `json:"sha256,omitempty"`
	Note    string            `json:"note,omitempty"`
}

// recordsSameAs reports whether an entry repeats an earlier one, because a retried activity records it again.
func (e ManifestEntry) recordsSameAs(o ManifestEntry) bool {
	if e.Kind != o.Kind {
		return false
	}
	e.Sequence, e.PreviousHash, e.At, o.Sequence, o.PreviousHash, o.At = 0, "", time.Time{}, 0, "", time.Time{}
	if e.Evidence != nil && o.Evidence != nil {
		a, b := *e.Evidence, *o.Evidence
		a.CapturedAt, b.CapturedAt, a.ManifestEntryHash, b.ManifestEntryHash = time.Time{}, time.Time{}, "", ""
		e.Evidence, o.Evidence = &a, &b
	}
	return attestation.HashJSON(e) == attestation.HashJSON(o)
}

// ManifestLine is one line of a manifest, as read from the file.
type ManifestLine struct {
	Number   int
	Hash     string // SHA-256 of its bytes, without the newline
	Entry    ManifestEntry
	Envelope attestation.Envelope
	// SignatureValid means that the authority signed this line unchanged and for this incident. It does not depend on
	// the line's position in the chain; otherwise one inserted line would invalidate the complete manifest for
	// everybody who needs it.
	SignatureValid bool
}

// IntegrityFinding is one difference between the stored and the recorded evidence.
type IntegrityFinding struct {
	Location string `json:"location"` // file and line
	Problem  string `json:"problem"`
}

// String returns the location and the problem.
func (f IntegrityFinding) String() string { return f.Location + ": " + f.Problem }

func hashLine(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

func (s *EvidenceStore) manifestPath(incident string) string {
	return filepath.Join(s.Dir, "incidents", incident+".jsonl")
}

// Append appends a record to an incident's manifest and returns the entry's hash. If the same record exists, it returns
// the existing hash.
func (s *EvidenceStore) Append(incident string, kind ManifestEntryKind, act AuditRecord) (string, error) {
	return s.appendEntry(ManifestEntry{IncidentID: incident, Kind: kind, AuditRecord: &act, At: time.Now().UTC()})
}

// appendEntry appends an entry. A file lock allows one writer at a time across replicas. An incomplete last line, left
// by a crash or a full disk, is removed first: nothing acknowledged it.
func (s *EvidenceStore) appendEntry(e ManifestEntry) (string, error) {
	if !incidentIDPattern.MatchString(e.IncidentID) {
		return "", Refusef("invalid incident id %q", e.IncidentID)
	}
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("append %s to the manifest of %s: %w", e.Kind, e.IncidentID, err)
	}
	path := s.manifestPath(e.IncidentID)
	if err := durablefile.MakeDirectory(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	f, err := durablefile.Open(path, 0o600)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = f.Close() }() // also releases the lock
	if err := lockFile(f); err != nil {
		return fail(err)
	}
	hash, err := s.appendEntryToFile(f, e)
	if err != nil {
		return fail(err)
	}
	return hash, nil
}

// appendEntryToFile appends an entry to a locked manifest.
func (s *EvidenceStore) appendEntryToFile(f *os.File, e ManifestEntry) (string, error) {
	raw, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	whole := int64(bytes.LastIndexByte(raw, '\n') + 1)
	var last []byte
	for line := range bytes.Lines(raw[:whole]) {
		last = bytes.TrimSuffix(line, []byte("\n"))
		if before, err := parseEntryUnverified(last); err == nil && before.recordsSameAs(e) {
			// The process that appended it may have been killed before it was durable.
			return hashLine(last), f.Sync()
		}
	}
	line, err := s.signEntryAfter(last, e)
	if err != nil {
		return "", err
	}
	if err := f.Truncate(whole); err != nil {
		return "", err
	}
	if _, err := f.WriteAt(append(line, '\n'), whole); err != nil {
		return "", errors.Join(err, f.Truncate(whole))
	}
	return hashLine(line), f.Sync()
}

// signEntryAfter returns the line of an entry that follows the last line; nil means that the manifest is empty.
func (s *EvidenceStore) signEntryAfter(last []byte, e ManifestEntry) ([]byte, error) {
	e.Sequence = 1
	if last != nil {
		before, err := parseEntryUnverified(last)
		if err != nil {
			return nil, fmt.Errorf("its last line is corrupted: %w; run `stanch evidence verify %s` for details", err,
				e.IncidentID)
		}
		e.Sequence, e.PreviousHash = before.Sequence+1, hashLine(last)
	}
	signed, err := s.Authority.Sign(attestation.PayloadTypeManifest, e)
	if err != nil {
		return nil, err
	}
	return json.Marshal(signed)
}

// manifestLockTimeout is the maximum wait for another writer. A writer that hangs must not delay a containment: without
// an entry, the effect's result says so.
const manifestLockTimeout = 3 * time.Second

// lockFile locks a manifest. It does not take the caller's context: what was done is recorded even if the caller is
// canceled.
func lockFile(f *os.File) error {
	_, err := backoff.Retry(context.Background(), func() (struct{}, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err //nolint:wrapcheck // wrapped below
	}, backoff.WithBackOff(backoff.NewConstantBackOff(2*time.Millisecond)),
		backoff.WithMaxElapsedTime(manifestLockTimeout))
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("another process has locked it for %s", manifestLockTimeout)
	case err != nil:
		return fmt.Errorf("lock the manifest: %w", err)
	}
	return nil
}

// parseEntryUnverified parses a line's entry without verifying its signature.
func parseEntryUnverified(line []byte) (ManifestEntry, error) {
	var signed attestation.Envelope
	var e ManifestEntry
	if err := json.Unmarshal(line, &signed); err != nil {
		return e, err //nolint:wrapcheck // the caller adds context
	}
	return e, json.Unmarshal(signed.Payload, &e) //nolint:wrapcheck // the caller adds context
}

// Manifest reads an incident's manifest and returns its problems. A manifest that does not exist is empty.
func (s *EvidenceStore) Manifest(incident string, keys attestation.Keyring) ([]ManifestLine, []IntegrityFinding,
	error,
) {
	if !incidentIDPattern.MatchString(incident) {
		return nil, nil, Refusef("invalid incident id %q", incident)
	}
	raw, err := os.ReadFile(s.manifestPath(incident))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the manifest of %s: %w", incident, err)
	}
	lines, findings := ReadManifest(incident, raw, keys)
	return lines, findings, nil
}

// ReadManifest parses a manifest and returns the lines and every problem of its chain and signatures.
func ReadManifest(incident string, raw []byte, keys attestation.Keyring) (lines []ManifestLine,
	findings []IntegrityFinding,
) {
	prev, number := "", 0
	for line := range bytes.Lines(raw) {
		number++
		where := fmt.Sprintf("manifest of %s, line %d", incident, number)
		find := func(format string, args ...any) {
			findings = append(findings, IntegrityFinding{Location: where, Problem: fmt.Sprintf(format, args...)})
		}
		if !bytes.HasSuffix(line, []byte("\n")) {
			find("the last entry is incomplete")
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		l := ManifestLine{Number: number, Hash: hashLine(line)}
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&l.Envelope); err != nil {
			find("it cannot be parsed: %v", err)
			prev = l.Hash
			continue
		}
		// Only the canonical encoding is accepted: another encoding of the same data means that the line was changed.
		canonical, err := json.Marshal(l.Envelope)
		l.SignatureValid = err == nil && bytes.Equal(canonical, line)
		if !l.SignatureValid {
			find("its bytes differ from those that were written")
		}
		if err := keys.Verify(l.Envelope, attestation.PayloadTypeManifest, &l.Entry); err != nil {
			find("%v", err)
			l.SignatureValid = false
			if l.Entry, err = parseEntryUnverified(line); err != nil {
				prev = l.Hash
				continue
			}
		}
		switch {
		case l.Entry.IncidentID != incident:
			find("it belongs to the manifest of %s", truncate.Text(l.Entry.IncidentID, 40))
		case l.Entry.Sequence != number:
			find("it is entry %d: entries are missing, duplicated or out of order", l.Entry.Sequence)
		case l.Entry.PreviousHash != prev:
			find("it does not match the hash of the previous line: that line was changed, or one in between is missing")
		}
		prev = l.Hash
		l.SignatureValid = l.SignatureValid && l.Entry.IncidentID == incident
		lines = append(lines, l)
	}
	return lines, findings
}

// LastLineHash returns the hash of a manifest's last line. A copy that is kept elsewhere reveals later whether lines
// were removed from the end.
func LastLineHash(lines []ManifestLine) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1].Hash
}

// Verify checks an incident's manifest: its chain, its signatures and the stored artifacts. head is a LastLineHash that
// was kept elsewhere, or "".
func (s *EvidenceStore) Verify(incident string, keys attestation.Keyring, head string) ([]ManifestLine,
	[]IntegrityFinding, error,
) {
	lines, findings, err := s.Manifest(incident, keys)
	if err != nil {
		return nil, nil, err
	}
	known := head == ""
	for _, l := range lines {
		known = known || l.Hash == head
		if l.Entry.Kind != EntryKindEvidence || l.Entry.Evidence == nil {
			continue
		}
		if err := s.checkArtifact(*l.Entry.Evidence); err != nil {
			findings = append(findings, IntegrityFinding{Location: fmt.Sprintf("store, %s (%s of %s)", l.Entry.Evidence.SHA256,
				l.Entry.Evidence.Name, l.Entry.Evidence.Target), Problem: err.Error()})
		}
	}
	if !known {
		findings = append(findings, IntegrityFinding{
			Location: "manifest of " + incident,
			Problem: "no line matches the head " +
				truncate.Text(head, 64) + ": the entries up to it were removed or replaced",
		})
	}
	return lines, findings, nil
}

// checkArtifact returns an error if a stored artifact differs from its entry.
func (s *EvidenceStore) checkArtifact(ref playbooks.EvidenceRef) error {
	data, err := s.ReadArtifact(ref.SHA256)
	if err != nil {
		return err
	}
	if int64(len(data)) != ref.SizeBytes {
		return fmt.Errorf("it has %d bytes; %d were recorded", len(data), ref.SizeBytes)
	}
	return nil
}
