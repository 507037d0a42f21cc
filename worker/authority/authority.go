// Package authority manages the keys of an installation: the ed25519 key that signs grants, attestations and lease
// tokens, the key of the payload codec, and the certificates. It makes no decisions: it signs what the gateway and the
// guards request.
package authority

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stanch/activities"
	"stanch/sensors/attestation"
	"stanch/sensors/durablefile"
)

// Authority signs statements, and verifies those that it signed. It is safe for concurrent use.
type Authority struct {
	signingKey  attestation.SigningKey
	keyring     attestation.Keyring
	seed        []byte
	keySetChain []attestation.Envelope
}

var _ activities.Authority = (*Authority)(nil)

// The files of a key directory.
const (
	seedFile        = "authority.seed"
	retiredKeysFile = "authority.retired" // public keys that verify and no longer sign
	keySetChainFile = "authority.chain"   // the key sets of all rotations, each signed by the previous key
)

// chainHeader is the first line of keySetChainFile. A Stanch from before data format 2 takes it for a key set, cannot
// parse its time, and stops with an error that quotes the sentence.
const chainHeader = `{"body":"eyJhdCI6ImRhdGEgZm9ybWF0IDIgcmVxdWlyZXMgYSBuZXdlciBTdGFuY2g7IHJ1biB0aGUgb25lIHRoYXQgd3JvdGUgdGhpcyBkaXJlY3RvcnkifQ=="}` + "\n"

// OpenOrCreate reads the signing key in dir, or creates one.
func OpenOrCreate(dir string) (*Authority, error) {
	_, err := os.Stat(filepath.Join(dir, seedFile))
	if errors.Is(err, fs.ErrNotExist) {
		// The chain is written first: once the key exists, no start writes the header again.
		if err := writeKeySetChain(filepath.Join(dir, keySetChainFile), nil); err != nil {
			return nil, err
		}
	}
	if _, err := LoadOrCreateSecret(filepath.Join(dir, seedFile), ed25519.SeedSize); err != nil {
		return nil, err
	}
	return OpenExisting(dir)
}

// OpenExisting reads the signing key in dir and its predecessors. It creates none.
func OpenExisting(dir string) (*Authority, error) {
	seed, err := readSecret(filepath.Join(dir, seedFile), ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	key, err := attestation.NewSigningKey(seed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, seedFile), err)
	}
	a := &Authority{signingKey: key, keyring: attestation.NewKeyring(key.PublicKey()), seed: seed}
	if a.keySetChain, err = readKeySetChain(filepath.Join(dir, keySetChainFile), key.ID()); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, retiredKeysFile))
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the retired keys: %w", err)
	}
	retired, err := attestation.ParseKeyring(strings.Split(string(raw), "\n"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, retiredKeysFile), err)
	}
	maps.Copy(a.keyring, retired)
	return a, nil
}

// RotateSigningKey creates a new signing key in dir. The old one still verifies, so that existing leases continue,
// unless it is distrusted: then its signatures are no longer valid, and leases end by themselves.
func RotateSigningKey(dir string, distrust bool) (before, after string, err error) {
	old, err := OpenExisting(dir)
	if err != nil {
		return "", "", err
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := rand.Read(seed); err != nil {
		return "", "", fmt.Errorf("create a key: %w", err)
	}
	next, err := attestation.NewSigningKey(seed)
	if err != nil {
		return "", "", fmt.Errorf("create a key: %w", err)
	}
	retired := maps.Clone(old.keyring)
	if distrust {
		delete(retired, old.signingKey.ID())
	}
	set := attestation.KeySet{
		Sequence: int64(len(old.keySetChain)) + 1, ActiveKeyID: next.ID(),
		PublicKeys: append([]string{encodePublicKey(next)}, retired.EncodeLines()...), RotatedAt: time.Now().UTC(),
	}
	signed, err := old.signingKey.Sign(attestation.PayloadTypeKeySet, set)
	if err != nil {
		return "", "", fmt.Errorf("sign the new key: %w", err)
	}
	// The chain is written first: if the process dies before the key exists, the next attempt replaces the extra set.
	if err := writeKeySetChain(filepath.Join(dir, keySetChainFile), append(slices.Clone(old.keySetChain),
		signed)); err != nil {
		return "", "", err
	}
	// The old key is stored as retired before it is replaced. A crash in between leaves it in both files, which is
	// harmless.
	if err := writeFile(filepath.Join(dir, retiredKeysFile),
		"# Retired public keys. Their signatures are still accepted.\n"+strings.Join(retired.EncodeLines(), "\n")+"\n",
		len(retired) > 0); err != nil {
		return "", "", err
	}
	if err := writeFile(filepath.Join(dir, seedFile), base64.StdEncoding.EncodeToString(seed)+"\n", true); err != nil {
		return "", "", err
	}
	return old.signingKey.ID(), next.ID(), nil
}

// readKeySetChain reads the rotations up to the active key. It omits one that was prepared and not finished.
func readKeySetChain(path, active string) ([]attestation.Envelope, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the key rotations: %w", err)
	}
	var chain []attestation.Envelope
	last := 0
	for line := range strings.Lines(strings.TrimPrefix(string(raw), chainHeader)) {
		var s attestation.Envelope
		var set attestation.KeySet
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			return nil, fmt.Errorf("%s is corrupted: %w", path, err)
		}
		if err := json.Unmarshal(s.Payload, &set); err != nil {
			return nil, fmt.Errorf("%s is corrupted: %w", path, err)
		}
		if chain = append(chain, s); set.ActiveKeyID == active {
			last = len(chain)
		}
	}
	return chain[:last], nil
}

func writeKeySetChain(path string, chain []attestation.Envelope) error {
	var text strings.Builder
	text.WriteString(chainHeader)
	for _, s := range chain {
		raw, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("write the key rotations: %w", err)
		}
		text.Write(append(raw, '\n'))
	}
	return writeFile(path, text.String(), true)
}

func encodePublicKey(key attestation.SigningKey) string {
	return base64.StdEncoding.EncodeToString(key.PublicKey())
}

// KeySet returns the set of valid keys, which a node pins when it enrolls.
func (a *Authority) KeySet() attestation.KeySet {
	lines := []string{encodePublicKey(a.signingKey)}
	for _, line := range a.keyring.EncodeLines() {
		if line != lines[0] {
			lines = append(lines, line)
		}
	}
	return attestation.KeySet{Sequence: int64(len(a.keySetChain)), ActiveKeyID: a.signingKey.ID(), PublicKeys: lines}
}

// KeySetChain returns the signed key sets of all rotations, oldest first.
func (a *Authority) KeySetChain() []attestation.Envelope { return a.keySetChain }

// writeFile replaces a file, or removes it.
func writeFile(path, text string, keep bool) error {
	if !keep {
		if err := durablefile.Remove(path); err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		return nil
	}
	if err := durablefile.MakeDirectory(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := durablefile.Write(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// KeyID returns the id of the active signing key.
func (a *Authority) KeyID() string { return a.signingKey.ID() }

// MAC returns a keyed hash of a message for one purpose. It is for data that only this installation verifies, and which
// needs no signature.
func (a *Authority) MAC(purpose string, message []byte) []byte {
	key, err := hkdf.Key(sha256.New, a.seed, nil, "stanch/mac/"+purpose, 32)
	if err != nil {
		panic(fmt.Sprintf("derive a key: %v", err)) // only for invalid lengths
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(message)
	return mac.Sum(nil)
}

// Keyring returns the keys that verify what this authority signed.
func (a *Authority) Keyring() attestation.Keyring { return a.keyring }

// Sign signs a statement for a payload type.
func (a *Authority) Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error) {
	return a.signingKey.Sign(purpose, body) //nolint:wrapcheck // the error names the purpose
}

// LoadOrCreateSecret reads n random bytes from a file of base64 text, or creates the file. Of two processes that create
// it at the same time, both return the same bytes.
func LoadOrCreateSecret(path string, n int) ([]byte, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createSecret(path, n); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create %s: %w", path, err)
		}
	}
	// What this key signs or encrypts must not outlive it: the process that created it may have been killed before it
	// was on the disk.
	if err := durablefile.Sync(path); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return readSecret(path, n)
}

func createSecret(path string, n int) error {
	secret := make([]byte, n)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	if err := durablefile.MakeDirectory(filepath.Dir(path), 0o700); err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	//nolint:wrapcheck // the caller adds context
	return durablefile.Create(path, []byte(base64.StdEncoding.EncodeToString(secret)+"\n"), 0o600)
}

func readSecret(path string, n int) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a key: %w", err)
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(secret) != n {
		return nil, fmt.Errorf("%s is corrupted: expected %d base64-encoded bytes", path, n)
	}
	return secret, nil
}
