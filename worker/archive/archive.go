// Package archive stores the histories of closed incidents as files, for when Temporal no longer has them: unchanged,
// with payloads encrypted as they were, each with its SHA-256, and all of them in a signed statement.
//
// It never decodes what is in a history, and never overwrites an archive. It refuses to archive an incident that is not
// closed.
package archive

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	historypb "go.temporal.io/api/history/v1"
	pb "google.golang.org/protobuf/proto"

	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
	"stanch/worker/audit"
)

// FormatVersion is the version of the file format.
const FormatVersion = 1

// PayloadType is the payload type of an archive's signed statement.
const PayloadType attestation.PayloadType = "stanch/archive/v1"

// Limits of one archive.
const (
	maxUnpackedBytes = 256 << 20 // uncompressed
	maxPackedBytes   = 128 << 20
)

// ErrNotFound means that there is no archive of the incident.
var ErrNotFound = errors.New("not archived")

// SignedStatement is what the authority signs: the histories of an incident, by their hashes.
type SignedStatement struct {
	IncidentID string         `json:"incident"`
	ExportedAt time.Time      `json:"exported_at"`
	Histories  []HistoryEntry `json:"histories"`
}

// HistoryEntry is one history and its hash.
type HistoryEntry struct {
	WorkflowID   string `json:"workflow_id"`
	RunID        string `json:"run_id"`
	WorkflowType string `json:"type"`
	EventCount   int    `json:"events"`
	SHA256       string `json:"sha256"`
}

// archiveFile is the content of the file.
type archiveFile struct {
	Version   int                  `json:"version"`
	Incident  string               `json:"incident"`
	Statement attestation.Envelope `json:"statement"`
	Histories []storedHistory      `json:"histories"`
}

type storedHistory struct {
	HistoryEntry
	History []byte `json:"history"` // temporal.api.history.v1.History, exactly the hashed bytes
}

// Store is a directory of archives.
type Store struct{ Dir string }

var incidentIDPattern = regexp.MustCompile(`^INC-[0-9A-Z]{10,40}$`)

// FilePath returns the path of an incident's archive. It returns an error for an invalid incident id.
func (s Store) FilePath(incident string) (string, error) {
	if !incidentIDPattern.MatchString(incident) {
		return "", fmt.Errorf("invalid incident id %q", incident)
	}
	return filepath.Join(s.Dir, incident+".json.gz"), nil
}

// Exists reports whether an incident is archived.
func (s Store) Exists(incident string) bool {
	path, err := s.FilePath(incident)
	if err != nil {
		return false
	}
	_, err = os.Stat(path)
	return err == nil
}

// FileSHA256 returns the SHA-256 of an incident's archive file.
func (s Store) FileSHA256(incident string) (string, error) {
	path, err := s.FilePath(incident)
	if err != nil {
		return "", err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the archive: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// ListIncidents returns the ids of the archived incidents.
func (s Store) ListIncidents() ([]string, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the archive: %w", err)
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json.gz"); ok && incidentIDPattern.MatchString(name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// Signer signs the statement.
type Signer interface {
	Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error)
}

// AllRunsClosed reports whether all workflows of an incident have closed, except for its chat message: an unavailable
// chat would delay the archive until Temporal has deleted the histories.
func AllRunsClosed(runs []audit.WorkflowRun) bool {
	return !slices.ContainsFunc(runs, func(r audit.WorkflowRun) bool {
		return r.IsOpen &&
			r.WorkflowType != audit.TypeChatMessage
	})
}

// Write archives an incident whose workflows have all closed, without its chat message. It does not change an existing
// archive.
func (s Store) Write(incident string, runs []audit.WorkflowRun, signer Signer, now time.Time) error {
	path, err := s.FilePath(incident)
	if err != nil {
		return err
	}
	if s.Exists(incident) {
		return nil
	}
	f := archiveFile{Version: FormatVersion, Incident: incident}
	statement := SignedStatement{IncidentID: incident, ExportedAt: now.UTC()}
	for _, r := range runs {
		if r.IsOpen && r.WorkflowType == audit.TypeChatMessage {
			continue
		}
		if r.IsOpen {
			return fmt.Errorf("archive %s: %s is not closed", incident, r.WorkflowID)
		}
		one, err := packHistory(r)
		if err != nil {
			return fmt.Errorf("archive %s: %w", incident, err)
		}
		f.Histories = append(f.Histories, one)
		statement.Histories = append(statement.Histories, one.HistoryEntry)
	}
	if f.Statement, err = signer.Sign(PayloadType, statement); err != nil {
		return fmt.Errorf("archive %s: %w", incident, err)
	}
	raw, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("archive %s: %w", incident, err)
	}
	if len(raw) > maxUnpackedBytes {
		return fmt.Errorf("archive %s: its histories are %d bytes; the maximum is %d", incident, len(raw),
			maxUnpackedBytes)
	}
	return writeArchiveFile(path, raw)
}

func packHistory(r audit.WorkflowRun) (storedHistory, error) {
	raw, err := pb.MarshalOptions{Deterministic: true}.Marshal(&historypb.History{Events: r.Events})
	if err != nil {
		return storedHistory{}, fmt.Errorf("pack %s: %w", r.WorkflowID, err)
	}
	sum := sha256.Sum256(raw)
	return storedHistory{HistoryEntry: HistoryEntry{
		WorkflowID: r.WorkflowID, RunID: r.RunID, WorkflowType: r.WorkflowType,
		EventCount: len(r.Events), SHA256: hex.EncodeToString(sum[:]),
	}, History: raw}, nil
}

func writeArchiveFile(path string, raw []byte) error {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		return fmt.Errorf("pack the archive: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("pack the archive: %w", err)
	}
	if err := durablefile.MakeDirectory(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	if err := durablefile.Write(path, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

// Archive is one incident's archive, as read from the file.
type Archive struct {
	Runs      []audit.WorkflowRun
	Statement SignedStatement
	// Differences are the differences from the statement. The archive is read as far as possible.
	Differences []audit.Difference
}

// Read reads an incident's archive and compares it with its signed statement. It returns ErrNotFound if there is none.
func (s Store) Read(incident string, keys attestation.Keyring) (Archive, error) {
	path, err := s.FilePath(incident)
	if err != nil {
		return Archive{}, err
	}
	raw, err := readUnpacked(path)
	if err != nil {
		return Archive{}, err
	}
	return Decode(raw, incident, keys)
}

func readUnpacked(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err == nil && info.Size() > maxPackedBytes {
		return nil, fmt.Errorf("read the archive: %s is %d bytes; the maximum is %d", path, info.Size(), maxPackedBytes)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("the archive %s is corrupted: %w", path, err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxUnpackedBytes+1))
	if err != nil {
		return nil, fmt.Errorf("the archive %s is corrupted: %w", path, err)
	}
	if len(raw) > maxUnpackedBytes {
		return nil, fmt.Errorf("read the archive: %s has more than %d bytes uncompressed", path, maxUnpackedBytes)
	}
	return raw, nil
}

// Decode parses an uncompressed archive strictly.
func Decode(raw []byte, incident string, keys attestation.Keyring) (Archive, error) {
	var f archiveFile
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		return Archive{}, fmt.Errorf("parse the archive of %s: %w", incident, err)
	}
	if f.Version != FormatVersion {
		return Archive{}, fmt.Errorf("parse the archive of %s: unknown version %d; this version of Stanch reads version %d",
			incident,
			f.Version, FormatVersion)
	}
	var a Archive
	differ := func(e HistoryEntry, format string, args ...any) {
		a.Differences = append(a.Differences, audit.Difference{
			Description: fmt.Sprintf(format, args...),
			EventRef:    audit.EventRef{WorkflowID: e.WorkflowID, RunID: e.RunID},
		})
	}
	if err := keys.Verify(f.Statement, PayloadType, &a.Statement); err != nil {
		differ(HistoryEntry{}, "the archive's signed statement is invalid: %v", err)
	}
	if f.Incident != incident || a.Statement.IncidentID != incident {
		differ(HistoryEntry{}, "the archive is for %s, and its statement for %s, instead of %s", f.Incident,
			a.Statement.IncidentID, incident)
	}
	signed := map[HistoryEntry]bool{}
	for _, e := range a.Statement.Histories {
		signed[e] = true
	}
	for _, h := range f.Histories {
		sum := sha256.Sum256(h.History)
		switch hash := hex.EncodeToString(sum[:]); {
		case hash != h.SHA256:
			differ(h.HistoryEntry, "the archived history of %s was changed: it has SHA-256 %s, but the archive lists %s",
				h.WorkflowID, hash, h.SHA256)
		case !signed[h.HistoryEntry]:
			differ(h.HistoryEntry, "the archived history of %s (SHA-256 %s) is not in the signed statement", h.WorkflowID,
				h.SHA256)
		}
		delete(signed, h.HistoryEntry)
		var history historypb.History
		if err := pb.Unmarshal(h.History, &history); err != nil {
			differ(h.HistoryEntry, "the archived history of %s cannot be decoded: %v", h.WorkflowID, err)
			continue
		}
		a.Runs = append(a.Runs, audit.WorkflowRun{
			WorkflowID: h.WorkflowID, RunID: h.RunID, WorkflowType: h.WorkflowType,
			Events: history.GetEvents(),
		})
	}
	for _, e := range a.Statement.Histories {
		if signed[e] {
			differ(e, "the history of %s is in the signed statement, but missing or changed in the archive", e.WorkflowID)
		}
	}
	return a, nil
}

// CompareHistories returns the differences between the histories in Temporal and those in the archive.
func CompareHistories(live, archived []audit.WorkflowRun) []audit.Difference {
	var out []audit.Difference
	differ := func(r audit.WorkflowRun, event int64, format string, args ...any) {
		out = append(out, audit.Difference{
			Description: fmt.Sprintf(format, args...),
			EventRef:    audit.EventRef{WorkflowID: r.WorkflowID, RunID: r.RunID, EventID: event},
		})
	}
	kept := map[string]audit.WorkflowRun{}
	for _, r := range archived {
		kept[r.WorkflowID+"\x00"+r.RunID] = r
	}
	for _, r := range live {
		key := r.WorkflowID + "\x00" + r.RunID
		old, ok := kept[key]
		delete(kept, key)
		switch {
		case !ok && r.WorkflowType == audit.TypeChatMessage:
			continue // it was open when the others were archived
		case !ok:
			differ(r, 0, "Temporal has a run of %s that the archive does not have", r.WorkflowID)
			continue
		case len(r.Events) != len(old.Events):
			differ(r, 0, "Temporal has %d events of %s, but the archive has %d", len(r.Events), r.WorkflowID, len(old.Events))
		}
		for i := range min(len(r.Events), len(old.Events)) {
			if !pb.Equal(r.Events[i], old.Events[i]) {
				differ(r, r.Events[i].GetEventId(), "event %d of %s differs between Temporal and the archive",
					r.Events[i].GetEventId(), r.WorkflowID)
			}
		}
	}
	return out // histories that Temporal has deleted are no difference: the archive is for them
}
