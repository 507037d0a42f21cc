package codec_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"

	"stanch/worker/codec"
)

func newCodec(t *testing.T, current string, keys map[string][]byte) *codec.Codec {
	t.Helper()
	c, err := codec.New(current, keys)
	require.NoError(t, err)
	return c
}

func TestPayloadRoundTrip(t *testing.T) {
	c := newCodec(t, "a", map[string][]byte{"a": bytes.Repeat([]byte{1}, 32)})
	p, err := c.DataConverter().ToPayload("hunter2")
	require.NoError(t, err)
	require.NotContains(t, p.String(), "hunter2")
	var back string
	require.NoError(t, c.DataConverter().FromPayload(p, &back))
	require.Equal(t, "hunter2", back)
}

func TestOldKeyDecryptsAfterRotation(t *testing.T) {
	old := newCodec(t, "a", map[string][]byte{"a": bytes.Repeat([]byte{1}, 32)})
	p, err := old.DataConverter().ToPayload(7)
	require.NoError(t, err)
	both := newCodec(t, "b", map[string][]byte{"a": bytes.Repeat([]byte{1}, 32), "b": bytes.Repeat([]byte{2}, 32)})
	var back int
	require.NoError(t, both.DataConverter().FromPayload(p, &back))
	require.Equal(t, 7, back)
	onlyNew := newCodec(t, "b", map[string][]byte{"b": bytes.Repeat([]byte{2}, 32)})
	require.ErrorContains(t, onlyNew.DataConverter().FromPayload(p, &back), `unknown key "a"`)
}

func TestDecodeRejectsManipulatedPayload(t *testing.T) {
	c := newCodec(t, "a", map[string][]byte{"a": bytes.Repeat([]byte{1}, 32)})
	plain, err := converter.GetDefaultDataConverter().ToPayload("release everything")
	require.NoError(t, err)
	var out string
	require.ErrorIs(t, c.DataConverter().FromPayload(plain, &out), codec.ErrNotEncrypted)

	sealed, err := c.DataConverter().ToPayload("x")
	require.NoError(t, err)
	for i := range sealed.Data {
		changed := &commonpb.Payload{Metadata: sealed.Metadata, Data: bytes.Clone(sealed.Data)}
		changed.Data[i] ^= 1
		require.Error(t, c.DataConverter().FromPayload(changed, &out), "byte %d", i)
	}
	for n := range len(sealed.Data) {
		require.Error(t, c.DataConverter().FromPayload(&commonpb.Payload{Metadata: sealed.Metadata, Data: sealed.Data[:n]},
			&out), "truncated to %d", n)
	}
}
