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

// EntryKind says what an entry of a manifest records.
type EntryKind string

// The kinds of entry.
const (
	EntryEvidence EntryKind = "evidence" // a piece was stored
	EntryApproval EntryKind = "approval" // people permitted a plan
	// EntryBreakGlass: one person took the right of the quorum.
	EntryBreakGlass EntryKind = "break-glass"
	EntryRelease    EntryKind = "release" // a person ends a containment early
	EntryExtend     EntryKind = "extend"  // a person lets a containment last longer
	EntryMark       EntryKind = "mark"    // a person took the incident over, or called it a false positive
	EntryStop       EntryKind = "stop"    // the kill switch was set
	EntryResume     EntryKind = "resume"  // and lifted
	EntryEffect     EntryKind = "effect"  // a containment took hold
	EntryUndo       EntryKind = "undo"    // a containment was taken back
	EntryArchive    EntryKind = "archive" // the workflows' histories were archived
	EntryAccess     EntryKind = "access"  // somebody took a piece out
)

// Entry is one line of an incident's manifest. It names the line before it by its hash, and is signed.
type Entry struct {
	Incident string                 `json:"incident"`
	Seq      int                    `json:"seq"`            // from 1
	Prev     string                 `json:"prev,omitempty"` // SHA-256 of the line before, "" for the first
	At       time.Time              `json:"at"`
	Kind     EntryKind              `json:"kind"`
	Evidence *playbooks.EvidenceRef `json:"evidence,omitempty"`
	Act      *Act                   `json:"act,omitempty"`
}

// Act is what an entry says that happened, where it is not evidence.
type Act struct {
	Action  string            `json:"action,omitempty"`
	Target  string            `json:"target,omitempty"`
	Lease   string            `json:"lease,omitempty"`
	Outcome playbooks.Outcome `json:"outcome,omitempty"`
	On      string            `json:"on,omitempty"`  // what it rests on: a detection's id or a grant's nonce
	Who     []string          `json:"who,omitempty"` // people, and how it was proved
	SHA256  string            `json:"sha256,omitempty"`
	Note    string            `json:"note,omitempty"`
}

// sameAs tells whether an activity that is tried again enters what it entered before.
func (e Entry) sameAs(o Entry) bool {
	if e.Kind != o.Kind {
		return false
	}
	e.Seq, e.Prev, e.At, o.Seq, o.Prev, o.At = 0, "", time.Time{}, 0, "", time.Time{}
	if e.Evidence != nil && o.Evidence != nil {
		a, b := *e.Evidence, *o.Evidence
		a.CapturedAt, b.CapturedAt, a.ManifestEntryHash, b.ManifestEntryHash = time.Time{}, time.Time{}, "", ""
		e.Evidence, o.Evidence = &a, &b
	}
	return attestation.HashJSON(e) == attestation.HashJSON(o)
}

// Line is one line of a manifest as it was read.
type Line struct {
	Number int
	Hash   string // SHA-256 of its bytes, without the line's end
	Entry  Entry
	Signed attestation.Envelope
	// Proved: the authority signed this line, as it stands and for this incident. Its place in the chain is another
	// matter: else whoever writes one line into a manifest would take all of it away from those who need it.
	Proved bool
}

// Finding is one thing that is not as it was.
type Finding struct {
	Where string `json:"where"` // the file and line
	What  string `json:"what"`
}

func (f Finding) String() string { return f.Where + ": " + f.What }

func lineHash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

func (s *EvidenceStore) manifest(incident string) string {
	return filepath.Join(s.Dir, "incidents", incident+".jsonl")
}

// Note enters an act into an incident's manifest and gives the entry's hash. What was entered already is not entered
// again, and its hash given.
func (s *EvidenceStore) Note(incident string, kind EntryKind, act Act) (string, error) {
	return s.enter(Entry{Incident: incident, Kind: kind, Act: &act, At: time.Now().UTC()})
}

// enter appends an entry. A manifest is written by one process at a time, whichever replica that is; what a death or a
// full disk left half written at its end is taken away first: nobody was ever told that it was there.
func (s *EvidenceStore) enter(e Entry) (string, error) {
	if !incidentID.MatchString(e.Incident) {
		return "", Refuse("%q is not an incident's id", e.Incident)
	}
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("enter %s into the manifest of %s: %w", e.Kind, e.Incident, err)
	}
	path := s.manifest(e.Incident)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = f.Close() }() // gives the lock back too
	if err := lock(f, time.Now().Add(lockWait)); err != nil {
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
		var before Entry
		if before, err = peek(last); err == nil && before.sameAs(e) {
			return lineHash(last), nil
		}
	}
	e.Seq = 1
	if last != nil {
		before, err := peek(last)
		if err != nil {
			return fail(fmt.Errorf("its last line is damaged: %w; `stanch evidence verify %s` says where", err, e.Incident))
		}
		e.Seq, e.Prev = before.Seq+1, lineHash(last)
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
	return lineHash(line), nil
}

// lockWait is how long another writer is waited for. One that stopped in the middle must not hold up a containment: what
// could not be entered is said in the result of what was done.
const lockWait = 3 * time.Second

func lock(f *os.File, until time.Time) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock it: %w", err)
		case time.Now().After(until):
			return fmt.Errorf("another process has held it for %s", lockWait)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// peek reads a line's entry without asking who signed it.
func peek(line []byte) (Entry, error) {
	var signed attestation.Envelope
	var e Entry
	if err := json.Unmarshal(line, &signed); err != nil {
		return e, err //nolint:wrapcheck // the caller says what was read
	}
	return e, json.Unmarshal(signed.Payload, &e) //nolint:wrapcheck // the caller says what was read
}

// Manifest reads an incident's manifest, with what is wrong with it. A manifest that does not exist is empty.
func (s *EvidenceStore) Manifest(incident string, keys attestation.Keyring) ([]Line, []Finding, error) {
	if !incidentID.MatchString(incident) {
		return nil, nil, Refuse("%q is not an incident's id", incident)
	}
	raw, err := os.ReadFile(s.manifest(incident))
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
func ReadManifest(incident string, raw []byte, keys attestation.Keyring) (lines []Line, findings []Finding) {
	prev, number := "", 0
	for line := range bytes.Lines(raw) {
		number++
		where := fmt.Sprintf("manifest of %s, line %d", incident, number)
		find := func(format string, args ...any) {
			findings = append(findings, Finding{Where: where, What: fmt.Sprintf(format, args...)})
		}
		if !bytes.HasSuffix(line, []byte("\n")) {
			find("it is torn: the last entry was not written to its end")
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		l := Line{Number: number, Hash: lineHash(line)}
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&l.Signed); err != nil {
			find("it cannot be read: %v", err)
			prev = l.Hash
			continue
		}
		// One form only: what decodes to the same and is written otherwise was changed all the same.
		canonical, err := json.Marshal(l.Signed)
		l.Proved = err == nil && bytes.Equal(canonical, line)
		if !l.Proved {
			find("it is not written as it was")
		}
		if err := keys.Verify(l.Signed, attestation.PayloadTypeManifest, &l.Entry); err != nil {
			find("%v", err)
			l.Proved = false
			if l.Entry, err = peek(line); err != nil {
				prev = l.Hash
				continue
			}
		}
		switch {
		case l.Entry.Incident != incident:
			find("it belongs to the manifest of %s", clip(l.Entry.Incident, 40))
		case l.Entry.Seq != number:
			find("it is entry %d: entries are missing, doubled or in another order", l.Entry.Seq)
		case l.Entry.Prev != prev:
			find("it does not follow the line before it: that line was changed, or one between them is missing")
		}
		prev = l.Hash
		l.Proved = l.Proved && l.Entry.Incident == incident
		lines = append(lines, l)
	}
	return lines, findings
}

// Head is the hash of a manifest's last line: who keeps it elsewhere can tell later whether the end was cut off.
func Head(lines []Line) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1].Hash
}

// Verify compares an incident's manifest with itself, with the authority's keys and with what is stored. head, if not
// "", is a head that was kept elsewhere.
func (s *EvidenceStore) Verify(incident string, keys attestation.Keyring, head string) ([]Line, []Finding, error) {
	lines, findings, err := s.Manifest(incident, keys)
	if err != nil {
		return nil, nil, err
	}
	known := head == ""
	for _, l := range lines {
		known = known || l.Hash == head
		if l.Entry.Kind != EntryEvidence || l.Entry.Evidence == nil {
			continue
		}
		if err := s.check(*l.Entry.Evidence); err != nil {
			findings = append(findings, Finding{Where: fmt.Sprintf("store, %s (%s of %s)", l.Entry.Evidence.SHA256, l.Entry.Evidence.Name, l.Entry.Evidence.Target), What: err.Error()})
		}
	}
	if !known {
		findings = append(findings, Finding{Where: "manifest of " + incident, What: "no line of it has the head " + clip(head, 64) + ": what came up to it was cut off or replaced"})
	}
	return lines, findings, nil
}

// check says in which way a stored piece differs from what was entered.
func (s *EvidenceStore) check(ref playbooks.EvidenceRef) error {
	data, err := s.Open(ref.SHA256)
	if err != nil {
		return err
	}
	if int64(len(data)) != ref.SizeBytes {
		return fmt.Errorf("it has %d bytes, %d were entered", len(data), ref.SizeBytes)
	}
	return nil
}

func clip(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n]) + "…"
	}
	return text
}
