package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"stanch/playbooks"
)

// EvidenceStore keeps evidence by content in a directory: blobs/<sha256>, and a manifest for each incident, a
// JSON line a piece.
type EvidenceStore struct {
	Dir string
	mu  sync.Mutex
}

var incidentID = regexp.MustCompile(`^INC-[0-9A-Z]{10,40}$`)

// maxPiece bounds one piece, in bytes.
const maxPiece = 128 << 20

// Put stores one piece and enters it into the incident's manifest. A piece is whole or not there.
func (s *EvidenceStore) Put(_ context.Context, incident, action, target string, piece Piece, at time.Time) (playbooks.EvidenceRef, error) {
	if !incidentID.MatchString(incident) {
		return playbooks.EvidenceRef{}, Refuse("%q is not an incident's id", incident)
	}
	if len(piece.Data) > maxPiece {
		return playbooks.EvidenceRef{}, Refuse("evidence %s has %d bytes, at most %d are kept", piece.Name, len(piece.Data), maxPiece)
	}
	sum := sha256.Sum256(piece.Data)
	ref := playbooks.EvidenceRef{Name: piece.Name, Action: action, Target: target, SHA256: hex.EncodeToString(sum[:]), Bytes: int64(len(piece.Data)), At: at}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeOnce(filepath.Join(s.Dir, "blobs", ref.SHA256[:2], ref.SHA256), piece.Data); err != nil {
		return playbooks.EvidenceRef{}, fmt.Errorf("store evidence %s: %w", piece.Name, err)
	}
	line, err := json.Marshal(ref)
	if err != nil {
		return playbooks.EvidenceRef{}, fmt.Errorf("store evidence %s: %w", piece.Name, err)
	}
	manifest := filepath.Join(s.Dir, "incidents", incident+".jsonl")
	if err := os.MkdirAll(filepath.Dir(manifest), 0o700); err != nil {
		return playbooks.EvidenceRef{}, fmt.Errorf("store evidence %s: %w", piece.Name, err)
	}
	// A retry of the activity must not enter the same piece twice.
	if before, err := os.ReadFile(manifest); err == nil && strings.Contains(string(before), fmt.Sprintf(`"action":%q,"target":%q,"sha256":%q`, action, target, ref.SHA256)) {
		return ref, nil
	}
	f, err := os.OpenFile(manifest, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return playbooks.EvidenceRef{}, fmt.Errorf("store evidence %s: %w", piece.Name, err)
	}
	_, err = f.Write(append(line, '\n'))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return playbooks.EvidenceRef{}, fmt.Errorf("enter evidence %s into the manifest: %w", piece.Name, err)
	}
	return ref, nil
}

func writeOnce(path string, data []byte) error {
	if info, err := os.Stat(path); err == nil && info.Size() == int64(len(data)) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err //nolint:wrapcheck // the caller says what was stored
	}
	if err := os.WriteFile(path+".new", data, 0o400); err != nil {
		return err //nolint:wrapcheck // the caller says what was stored
	}
	return os.Rename(path+".new", path) //nolint:wrapcheck // the caller says what was stored
}

// List reads an incident's manifest.
func (s *EvidenceStore) List(incident string) ([]playbooks.EvidenceRef, error) {
	if !incidentID.MatchString(incident) {
		return nil, Refuse("%q is not an incident's id", incident)
	}
	raw, err := os.ReadFile(filepath.Join(s.Dir, "incidents", incident+".jsonl"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list evidence of %s: %w", incident, err)
	}
	var refs []playbooks.EvidenceRef
	for line := range strings.Lines(string(raw)) {
		var ref playbooks.EvidenceRef
		if err := json.Unmarshal([]byte(line), &ref); err != nil {
			return nil, fmt.Errorf("manifest of %s: %w", incident, err)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}
