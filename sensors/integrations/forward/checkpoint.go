package forward

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"stanch/sensors/durablefile"
)

// fingerprintBytes is how many bytes at the beginning of a file are part of its identity.
const fingerprintBytes = 256

// fileIdentity identifies a file. An inode is reused when a file is deleted, so the identity also contains a hash of
// the beginning.
type fileIdentity struct {
	Device    uint64 `json:"device"`
	Inode     uint64 `json:"inode"`
	Head      string `json:"head,omitempty"` // SHA-256 of the first HeadBytes bytes, in hex
	HeadBytes int64  `json:"head_bytes,omitempty"`
}

// savedState is the stored checkpoint: everything before Offset was delivered.
type savedState struct {
	File string `json:"file"`
	fileIdentity
	Offset int64 `json:"offset"`
}

func fileIdentityOf(info fs.FileInfo) fileIdentity {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fileIdentity{
			Device: uint64(s.Dev),
			Inode:  s.Ino,
		} //nolint:unconvert,nolintlint // its type differs between architectures
	}
	return fileIdentity{}
}

func hashFileHead(file *os.File, n int64) (string, error) {
	head := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, n), head); err != nil {
		return "", fmt.Errorf("read the beginning of %s: %w", file.Name(), err)
	}
	sum := sha256.Sum256(head)
	return hex.EncodeToString(sum[:]), nil
}

// matches reports whether the file at path is the one of the state, and still contains what was delivered.
func (s *savedState) matches(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() < s.Offset {
		return false
	}
	// copytruncate copies the file to another inode with the same beginning.
	if id := fileIdentityOf(info); (id.Device != s.Device || id.Inode != s.Inode) && s.HeadBytes < fingerprintBytes {
		return false
	}
	head, err := hashFileHead(file, s.HeadBytes)
	return s.HeadBytes == 0 || err == nil && head == s.Head
}

// loadState reads the state. It returns nil if there is none.
func loadState(path string) (*savedState, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // nil means no saved state
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nil means no saved state
	}
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	var s savedState
	if err := json.Unmarshal(raw, &s); err != nil || s.Offset < 0 || s.HeadBytes < 0 || s.HeadBytes > fingerprintBytes {
		return nil,
			fmt.Errorf("read the state in %s: %w; remove the file to start again", path,
				errors.Join(err, errors.New("not a state file of `stanch forward`")))
	}
	return &s, nil
}

// saveState replaces the state.
func saveState(path string, s savedState) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the state: %w", err)
	}
	if err := durablefile.Write(path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the state in %s: %w", path, err)
	}
	return nil
}
