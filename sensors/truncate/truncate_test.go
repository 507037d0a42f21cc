package truncate_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"stanch/sensors/truncate"
)

func TestTextKeepsWholeCharacters(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want string
	}{
		{"", 3, ""}, {"abc", 3, "abc"}, {"abcd", 3, "abc…"}, {"äöü", 3, "äöü"}, {"äöüß", 3, "äöü…"}, {"x", 0, "…"},
	} {
		require.Equal(t, c.want, truncate.Text(c.text, c.n), "%q to %d", c.text, c.n)
		require.Equal(t, strings.TrimSuffix(c.want, "…"), truncate.Runes(c.text, c.n), "%q to %d", c.text, c.n)
	}
	require.Equal(t, strings.Repeat("n", 80)+"…", truncate.Name(strings.Repeat("n", 81)))
	require.Equal(t, strings.Repeat("n", 300)+"…", truncate.Reason(strings.Repeat("n", 301)))
}

func TestBytesNeverSplitsCharacter(t *testing.T) {
	for n := len("…"); n < 20; n++ {
		got := truncate.Bytes("aä€𝄞aä€𝄞aä€𝄞", n)
		require.LessOrEqual(t, len(got), n)
		require.True(t, utf8.ValidString(got), "%d: %q", n, got)
		require.True(t, strings.HasSuffix(got, "…"))
	}
	require.Equal(t, "abc", truncate.Bytes("abc", 3))
}

func TestBytesKeepsAsMuchAsFits(t *testing.T) {
	got := truncate.Bytes(strings.Repeat("世", 100), 50)
	require.Equal(t, strings.Repeat("世", 15)+"…", got)
}
