// Package codec encrypts what Stanch puts into Temporal: inputs, results, signals, memos. It refuses to read what
// is not encrypted: a payload that somebody slipped in without the key is an error and never a value.
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

// encoding marks a payload of this codec; keyIDMetadataKey names its key.
const (
	encodingName        = "binary/stanch-aes256gcm"
	encodingMetadataKey = "encoding"
	keyIDMetadataKey    = "stanch-key"
)

// Codec encrypts with AES-256-GCM. The key's id is authenticated with the payload.
type Codec struct {
	currentKeyID   string
	ciphersByKeyID map[string]cipher.AEAD
}

var _ converter.PayloadCodec = (*Codec)(nil)

// ErrNotEncrypted is wrapped when a payload is not encrypted.
var ErrNotEncrypted = errors.New("the payload is not encrypted by Stanch")

// New makes a codec that encrypts with the key of the id current and decrypts with any of the keys (32 bytes each).
func New(current string, keys map[string][]byte) (*Codec, error) {
	c := &Codec{currentKeyID: current, ciphersByKeyID: map[string]cipher.AEAD{}}
	for id, key := range keys {
		if len(key) != 32 {
			return nil, fmt.Errorf("codec key %s: %d bytes, want 32", id, len(key))
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("codec key %s: %w", id, err)
		}
		if c.ciphersByKeyID[id], err = cipher.NewGCM(block); err != nil {
			return nil, fmt.Errorf("codec key %s: %w", id, err)
		}
	}
	if c.ciphersByKeyID[current] == nil {
		return nil, fmt.Errorf("codec: the current key %s is not among the keys", current)
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

// Decode decrypts payloads, and takes no others.
func (c *Codec) Decode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	out := make([]*commonpb.Payload, len(payloads))
	for i, p := range payloads {
		if string(p.GetMetadata()[encodingMetadataKey]) != encodingName {
			return nil, ErrNotEncrypted
		}
		id := string(p.GetMetadata()[keyIDMetadataKey])
		aead, ok := c.ciphersByKeyID[id]
		if !ok {
			return nil, fmt.Errorf("decrypt a payload: the key %q is not known here", id)
		}
		if len(p.GetData()) < aead.NonceSize() {
			return nil, fmt.Errorf("decrypt a payload: %d bytes are too few", len(p.GetData()))
		}
		nonce, sealed := p.GetData()[:aead.NonceSize()], p.GetData()[aead.NonceSize():]
		plain, err := aead.Open(nil, nonce, sealed, []byte(id))
		if err != nil {
			return nil, fmt.Errorf("decrypt a payload: it was changed, or the key %q is another: %w", id, err)
		}
		out[i] = &commonpb.Payload{}
		if err := proto.Unmarshal(plain, out[i]); err != nil {
			return nil, fmt.Errorf("decrypt a payload: %w", err)
		}
	}
	return out, nil
}

// DataConverter is the SDK's data converter with this codec around it.
func (c *Codec) DataConverter() converter.DataConverter {
	return converter.NewCodecDataConverter(converter.GetDefaultDataConverter(), c)
}

// FailureConverter encrypts the messages and stack traces of failures as well: they may hold what an attacker wrote.
func (c *Codec) FailureConverter() converter.FailureConverter {
	return temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{DataConverter: c.DataConverter(), EncodeCommonAttributes: true})
}
