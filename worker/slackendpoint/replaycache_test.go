package slackendpoint

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A person who clicks fifty thousand times does not block another person's click.
func TestFullReplayCacheAcceptsNextClick(t *testing.T) {
	var s replayCache
	now := time.Now()
	for i := range maxReplayEntries + 1000 {
		require.True(t, s.isFirst(strconv.Itoa(i), now), "click %d", i)
	}
	require.True(t, s.isFirst("of an approver", now), "a click is accepted while the cache is full")
	require.False(t, s.isFirst("of an approver", now), "but not twice")
	require.False(t, s.isFirst(strconv.Itoa(maxReplayEntries), now), "recent clicks are still known")
	require.Equal(t, maxReplayEntries, s.seenAt.Len(), "the cache is bounded")
}

func TestReplayCacheKeepsClickWhileSignatureIsValid(t *testing.T) {
	var s replayCache
	start := time.Now()
	require.True(t, s.isFirst("a", start))
	require.True(t, s.isFirst("b", start.Add(time.Minute)))
	require.False(t, s.isFirst("a", start.Add(replayWindow)))
	require.True(t, s.isFirst("c", start.Add(replayWindow+time.Second)))
	require.Equal(t, []string{"b", "c"}, s.seenAt.Keys(), "the entry of a has expired")
}

// A failed click may be repeated, and the failed one does not shorten how long the second is kept.
func TestFailedClickCanBeRepeated(t *testing.T) {
	var s replayCache
	start := time.Now()
	require.True(t, s.isFirst("a", start))
	s.forget("a")
	later := start.Add(10 * time.Minute)
	require.True(t, s.isFirst("a", later))
	require.False(t, s.isFirst("a", later.Add(2*time.Minute)), "the first entry has expired, the second has not")
}
