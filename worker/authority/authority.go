// Package authority keeps the keys of an installation: the ed25519 key that signs grants, attestations and lease
// tokens, the key of the payload codec, and the certificates. It refuses to decide: it signs what the gateway and
// the guards hand it.
package authority

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"stanch/activities"
	"stanch/sensors/proof"
)

// Authority signs and verifies.
type Authority struct {
	key  proof.Key
	keys proof.Keyring
}

var _ activities.Authority = (*Authority)(nil)

// Open reads the signing key in dir, or makes one.
func Open(dir string) (*Authority, error) {
	seed, err := Secret(filepath.Join(dir, "authority.seed"), 32)
	if err != nil {
		return nil, err
	}
	key, err := proof.NewKey(seed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "authority.seed"), err)
	}
	return &Authority{key: key, keys: proof.NewKeyring(key.Public())}, nil
}

// Keys verify what this authority signed.
func (a *Authority) Keys() proof.Keyring { return a.keys }

// Sign signs a statement.
func (a *Authority) Sign(purpose proof.Purpose, body any) (proof.Signed, error) {
	return a.key.Sign(purpose, body) //nolint:wrapcheck // it names the purpose
}

// Secret reads n random bytes from a file of base64 text, or makes the file.
func Secret(path string, n int) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret := make([]byte, n)
		if _, err := rand.Read(secret); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		if err := os.WriteFile(path+".new", []byte(base64.StdEncoding.EncodeToString(secret)+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		return secret, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a key: %w", err)
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(secret) != n {
		return nil, fmt.Errorf("%s is damaged: want %d bytes as base64", path, n)
	}
	return secret, nil
}
