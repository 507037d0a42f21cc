// Package codec encrypts everything that Stanch stores in Temporal: inputs, results, signals, memos. Decoding an
// unencrypted payload is an error, so that nobody without the key can inject values.
package codec

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/proto"
)

// encoding marks payloads of this codec; keyIDMetadataKey names their key.
const (
	encodingName        = "binary/stanch-aes256gcm"
	encodingMetadataKey = "encoding"
	keyIDMetadataKey    = "stanch-key"
)

// Codec encrypts with AES-256-GCM. The key's id is authenticated with the payload. It is safe for concurrent use.
type Codec struct {
	currentKeyID   string
	ciphersByKeyID map[string]cipher.AEAD
}

var _ converter.PayloadCodec = (*Codec)(nil)

// ErrNotEncrypted is wrapped if a payload is not encrypted.
var ErrNotEncrypted = errors.New("the payload is not encrypted by Stanch")

// New returns a codec that encrypts with the key whose id is current, and decrypts with any of the keys (32 bytes
// each).
func New(current string, keys map[string][]byte) (*Codec, error) {
	c := &Codec{currentKeyID: current, ciphersByKeyID: map[string]cipher.AEAD{}}
	for id, key := range keys {
		if len(key) != 32 {
			return nil, fmt.Errorf("read the payload key %s: it has %d bytes, expected 32", id, len(key))
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("read the payload key %s: %w", id, err)
		}
		if c.ciphersByKeyID[id], err = cipher.NewGCM(block); err != nil {
			return nil, fmt.Errorf("read the payload key %s: %w", id, err)
		}
	}
	if c.ciphersByKeyID[current] == nil {
		return nil, fmt.Errorf("load the payload keys: the current key %s is unknown", current)
	}
	return c, nil
}

// Encode encrypts payloads.
func (c *Codec) Encode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	out := make([]*commonpb.Payload, len(payloads))
	for i, p := range payloads {
		plain, err := proto.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("encrypt a payload: %w", err)
		}
		aead := c.ciphersByKeyID[c.currentKeyID]
		nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
		if _, err := rand.Read(nonce); err != nil {
			return nil, fmt.Errorf("encrypt a payload: %w", err)
		}
		out[i] = &commonpb.Payload{
			Metadata: map[string][]byte{encodingMetadataKey: []byte(encodingName), keyIDMetadataKey: []byte(c.currentKeyID)},
			Data:     aead.Seal(nonce, nonce, plain, []byte(c.currentKeyID)),
		}
	}
	return out, nil
}

// Decode decrypts payloads. It returns an error for unencrypted ones.
func (c *Codec) Decode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	out := make([]*commonpb.Payload, len(payloads))
	for i, p := range payloads {
		if string(p.GetMetadata()[encodingMetadataKey]) != encodingName {
			return nil, ErrNotEncrypted
		}
		id := string(p.GetMetadata()[keyIDMetadataKey])
		aead, ok := c.ciphersByKeyID[id]
		if !ok {
			return nil, fmt.Errorf("decrypt a payload: unknown key %q", id)
		}
		if len(p.GetData()) < aead.NonceSize() {
			return nil, fmt.Errorf("decrypt a payload: it is too short (%d bytes)", len(p.GetData()))
		}
		nonce, sealed := p.GetData()[:aead.NonceSize()], p.GetData()[aead.NonceSize():]
		plain, err := aead.Open(nil, nonce, sealed, []byte(id))
		if err != nil {
			return nil, fmt.Errorf("decrypt a payload: it was changed, or the key %q is wrong: %w", id, err)
		}
		out[i] = &commonpb.Payload{}
		if err := proto.Unmarshal(plain, out[i]); err != nil {
			return nil, fmt.Errorf("decrypt a payload: %w", err)
		}
	}
	return out, nil
}

// DataConverter returns the SDK's default data converter with this codec.
func (c *Codec) DataConverter() converter.DataConverter {
	return converter.NewCodecDataConverter(converter.GetDefaultDataConverter(), c)
}

// FailureConverter returns a converter that also encrypts the messages and stack traces of failures, which may contain
// attacker-controlled strings.
func (c *Codec) FailureConverter() converter.FailureConverter {
	return temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{
		DataConverter:          c.DataConverter(),
		EncodeCommonAttributes: true,
	})
}
