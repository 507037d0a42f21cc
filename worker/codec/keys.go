package codec

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"stanch/sensors/durablefile"
	"stanch/worker/authority"
)

// The files with the payload keys.
const (
	codecKeyFile         = "codec.key"
	retiredCodecKeysFile = "codec.retired" // keys that only decrypt, one base64 line each
	codecKeyBytes        = 32
)

// Open returns the codec with the keys in dir. It creates the encryption key if it is missing.
func Open(dir string) (*Codec, error) {
	key, err := authority.LoadOrCreateSecret(filepath.Join(dir, codecKeyFile), codecKeyBytes)
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names the file
	}
	retired, err := readRetiredCodecKeys(dir)
	if err != nil {
		return nil, err
	}
	keys := map[string][]byte{KeyID(key): key}
	for _, old := range retired {
		keys[KeyID(old)] = old
	}
	return New(KeyID(key), keys) //nolint:wrapcheck // the error names the key
}

func readRetiredCodecKeys(dir string) ([][]byte, error) {
	path := filepath.Join(dir, retiredCodecKeysFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the retired payload keys: %w", err)
	}
	var keys [][]byte
	for i, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != codecKeyBytes {
			return nil, fmt.Errorf("%s, line %d: expected %d base64-encoded bytes", path, i+1, codecKeyBytes)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// RotateKey creates a new encryption key. The old key is kept for decryption: without it, earlier incidents would
// be unreadable.
func RotateKey(dir string) (before, after string, err error) {
	current := filepath.Join(dir, codecKeyFile)
	if _, err := os.Stat(current); err != nil {
		return "", "", fmt.Errorf("rotate the payload key: %w; name the directory that holds it with --keys", err)
	}
	old, err := authority.LoadOrCreateSecret(current, codecKeyBytes)
	if err != nil {
		return "", "", err //nolint:wrapcheck // the error names the file
	}
	retired, err := readRetiredCodecKeys(dir)
	if err != nil {
		return "", "", err
	}
	var text strings.Builder
	for _, key := range append(retired, old) {
		text.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	}
	next := make([]byte, codecKeyBytes)
	if _, err := rand.Read(next); err != nil {
		return "", "", fmt.Errorf("create a key: %w", err)
	}
	// The old key is stored as retired before it is replaced. A crash in between leaves it in both files, which is
	// harmless.
	for _, f := range []struct{ name, text string }{
		{retiredCodecKeysFile, text.String()},
		{codecKeyFile, base64.StdEncoding.EncodeToString(next) + "\n"},
	} {
		if err := durablefile.Write(filepath.Join(dir, f.name), []byte(f.text), 0o600); err != nil {
			return "", "", fmt.Errorf("rotate the payload key: %w", err)
		}
	}
	return KeyID(old), KeyID(next), nil
}

// KeyID returns the id of a payload key, which every payload encrypted with it names.
func KeyID(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:4])
}
