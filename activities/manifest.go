package activities

import (
	"bytes"
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

	"golang.org/x/sys/unix"

	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// ManifestEntryKind says what an entry of a manifest records.
type ManifestEntryKind string

// The kinds of entry.
const (
	EntryKindEvidence ManifestEntryKind = "evidence" // a piece was stored
	EntryKindApproval ManifestEntryKind = "approval" // people permitted a plan
	// EntryKindBreakGlass: one person took the right of the quorum.
	EntryKindBreakGlass ManifestEntryKind = "break-glass"
	EntryKindRelease    ManifestEntryKind = "release" // a person ends a containment early
	EntryKindExtend     ManifestEntryKind = "extend"  // a person lets a containment last longer
	EntryKindTriage     ManifestEntryKind = "mark"    // a person took the incident over, resolved it, or requested something in it
	EntryKindPause      ManifestEntryKind = "stop"    // the kill switch was set
	EntryKindResume     ManifestEntryKind = "resume"  // and lifted
	EntryKindEffect     ManifestEntryKind = "effect"  // a containment took hold
	EntryKindUndo       ManifestEntryKind = "undo"    // a containment was taken back
	EntryKindArchive    ManifestEntryKind = "archive" // the workflows' histories were archived
	EntryKindAccess     ManifestEntryKind = "access"  // somebody took a piece out
)

// ManifestEntry is one line of an incident's manifest. It names the line before it by its hash, and is signed.
type ManifestEntry struct {
	IncidentID   string                 `json:"incident"`
	Sequence     int                    `json:"seq"`                     // from 1
	PreviousHash string                 `json:"previous_hash,omitempty"` // SHA-256 of the line before, "" for the first
	At           time.Time              `json:"at"`
	Kind         ManifestEntryKind      `json:"kind"`
	Evidence     *playbooks.EvidenceRef `json:"evidence,omitempty"`
	AuditRecord  *AuditRecord           `json:"audit_record,omitempty"`
}

// AuditRecord is what an entry says that happened, where it is not evidence.
type AuditRecord struct {
	Action  string            `json:"action,omitempty"`
	Target  string            `json:"target,omitempty"`
	LeaseID string            `json:"lease,omitempty"`
	Outcome playbooks.Outcome `json:"outcome,omitempty"`
	BasisID string            `json:"basis_id,omitempty"` // what it rests on: a detection's id or a grant's nonce
	People  []string          `json:"people,omitempty"`   // people, and how it was proved
	SHA256  string            `json:"sha256,omitempty"`
	Note    string            `json:"note,omitempty"`
}

// recordsSameAs tells whether an activity that is tried again enters what it entered before.
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

// ManifestLine is one line of a manifest as it was read.
type ManifestLine struct {
	Number   int
	Hash     string // SHA-256 of its bytes, without the line's end
	Entry    ManifestEntry
	Envelope attestation.Envelope
	// SignatureValid: the authority signed this line, as it stands and for this incident. Its place in the chain is another
	// matter: else whoever writes one line into a manifest would take all of it away from those who need it.
	SignatureValid bool
}

// IntegrityFinding is one thing that is not as it was.
type IntegrityFinding struct {
	Location string `json:"location"` // the file and line
	Problem  string `json:"problem"`
}

func (f IntegrityFinding) String() string { return f.Location + ": " + f.Problem }

func hashLine(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

func (s *EvidenceStore) manifestPath(incident string) string {
	return filepath.Join(s.Dir, "incidents", incident+".jsonl")
}

// Append enters an act into an incident's manifest and gives the entry's hash. What was entered already is not entered
// again, and its hash given.
func (s *EvidenceStore) Append(incident string, kind ManifestEntryKind, act AuditRecord) (string, error) {
	return s.appendEntry(ManifestEntry{IncidentID: incident, Kind: kind, AuditRecord: &act, At: time.Now().UTC()})
}

// appendEntry appends an entry. A manifest is written by one process at a time, whichever replica that is; what a death or a
// full disk left half written at its end is taken away first: nobody was ever told that it was there.
func (s *EvidenceStore) appendEntry(e ManifestEntry) (string, error) {
	if !incidentIDPattern.MatchString(e.IncidentID) {
		return "", Refusef("%q is not an incident's id", e.IncidentID)
	}
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("enter %s into the manifest of %s: %w", e.Kind, e.IncidentID, err)
	}
	path := s.manifestPath(e.IncidentID)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = f.Close() }() // gives the lock back too
	if err := lockFile(f, time.Now().Add(manifestLockTimeout)); err != nil {
		return fail(err)
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return fail(err)
	}
	whole := bytes.LastIndexByte(raw, '\n') + 1
	var last []byte
	for line := range bytes.Lines(raw[:whole]) {
		last = bytes.TrimSuffix(line, []byte("\n"))
		var before ManifestEntry
		if before, err = parseEntryUnverified(last); err == nil && before.recordsSameAs(e) {
			return hashLine(last), nil
		}
	}
	e.Sequence = 1
	if last != nil {
		before, err := parseEntryUnverified(last)
		if err != nil {
			return fail(fmt.Errorf("its last line is damaged: %w; `stanch evidence verify %s` says where", err, e.IncidentID))
		}
		e.Sequence, e.PreviousHash = before.Sequence+1, hashLine(last)
	}
	signed, err := s.Authority.Sign(attestation.PayloadTypeManifest, e)
	if err != nil {
		return fail(err)
	}
	line, err := json.Marshal(signed)
	if err != nil {
		return fail(err)
	}
	if err := f.Truncate(int64(whole)); err != nil {
		return fail(err)
	}
	if _, err := f.WriteAt(append(line, '\n'), int64(whole)); err != nil {
		return fail(errors.Join(err, f.Truncate(int64(whole))))
	}
	return hashLine(line), nil
}

// manifestLockTimeout is how long another writer is waited for. One that stopped in the middle must not hold up a containment: what
// could not be entered is said in the result of what was done.
const manifestLockTimeout = 3 * time.Second

func lockFile(f *os.File, until time.Time) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock it: %w", err)
		case time.Now().After(until):
			return fmt.Errorf("another process has held it for %s", manifestLockTimeout)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// parseEntryUnverified reads a line's entry without asking who signed it.
func parseEntryUnverified(line []byte) (ManifestEntry, error) {
	var signed attestation.Envelope
	var e ManifestEntry
	if err := json.Unmarshal(line, &signed); err != nil {
		return e, err //nolint:wrapcheck // the caller says what was read
	}
	return e, json.Unmarshal(signed.Payload, &e) //nolint:wrapcheck // the caller says what was read
}

// Manifest reads an incident's manifest, with what is wrong with it. A manifest that does not exist is empty.
func (s *EvidenceStore) Manifest(incident string, keys attestation.Keyring) ([]ManifestLine, []IntegrityFinding, error) {
	if !incidentIDPattern.MatchString(incident) {
		return nil, nil, Refusef("%q is not an incident's id", incident)
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

// ReadManifest reads a manifest's bytes and says where its chain or a signature does not hold.
func ReadManifest(incident string, raw []byte, keys attestation.Keyring) (lines []ManifestLine, findings []IntegrityFinding) {
	prev, number := "", 0
	for line := range bytes.Lines(raw) {
		number++
		where := fmt.Sprintf("manifest of %s, line %d", incident, number)
		find := func(format string, args ...any) {
			findings = append(findings, IntegrityFinding{Location: where, Problem: fmt.Sprintf(format, args...)})
		}
		if !bytes.HasSuffix(line, []byte("\n")) {
			find("it is torn: the last entry was not written to its end")
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		l := ManifestLine{Number: number, Hash: hashLine(line)}
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&l.Envelope); err != nil {
			find("it cannot be read: %v", err)
			prev = l.Hash
			continue
		}
		// One form only: what decodes to the same and is written otherwise was changed all the same.
		canonical, err := json.Marshal(l.Envelope)
		l.SignatureValid = err == nil && bytes.Equal(canonical, line)
		if !l.SignatureValid {
			find("it is not written as it was")
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
			find("it belongs to the manifest of %s", truncate(l.Entry.IncidentID, 40))
		case l.Entry.Sequence != number:
			find("it is entry %d: entries are missing, doubled or in another order", l.Entry.Sequence)
		case l.Entry.PreviousHash != prev:
			find("it does not follow the line before it: that line was changed, or one between them is missing")
		}
		prev = l.Hash
		l.SignatureValid = l.SignatureValid && l.Entry.IncidentID == incident
		lines = append(lines, l)
	}
	return lines, findings
}

// LastLineHash is the hash of a manifest's last line: who keeps it elsewhere can tell later whether the end was cut off.
func LastLineHash(lines []ManifestLine) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1].Hash
}

// Verify compares an incident's manifest with itself, with the authority's keys and with what is stored. head, if not
// "", is a head that was kept elsewhere.
func (s *EvidenceStore) Verify(incident string, keys attestation.Keyring, head string) ([]ManifestLine, []IntegrityFinding, error) {
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
			findings = append(findings, IntegrityFinding{Location: fmt.Sprintf("store, %s (%s of %s)", l.Entry.Evidence.SHA256, l.Entry.Evidence.Name, l.Entry.Evidence.Target), Problem: err.Error()})
		}
	}
	if !known {
		findings = append(findings, IntegrityFinding{Location: "manifest of " + incident, Problem: "no line of it has the head " + truncate(head, 64) + ": what came up to it was cut off or replaced"})
	}
	return lines, findings, nil
}

// checkArtifact says in which way a stored piece differs from what was entered.
func (s *EvidenceStore) checkArtifact(ref playbooks.EvidenceRef) error {
	data, err := s.ReadArtifact(ref.SHA256)
	if err != nil {
		return err
	}
	if int64(len(data)) != ref.SizeBytes {
		return fmt.Errorf("it has %d bytes, %d were entered", len(data), ref.SizeBytes)
	}
	return nil
}

func truncate(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n]) + "…"
	}
	return text
}
