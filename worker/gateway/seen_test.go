package gateway

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Somebody who clicks fifty thousand times takes nobody else's click away.
func TestAFullMemoryOfClicksTakesTheNextOne(t *testing.T) {
	var s seen
	now := time.Now()
	for i := range maxSeen + 1000 {
		require.True(t, s.first(strconv.Itoa(i), now), "click %d", i)
	}
	require.True(t, s.first("of an approver", now), "a click is taken while the memory is full")
	require.False(t, s.first("of an approver", now), "and not twice")
	require.False(t, s.first(strconv.Itoa(maxSeen), now), "what is recent is still known")
	require.Len(t, s.order, maxSeen, "the memory is bounded")
	require.Len(t, s.by, maxSeen)
}

func TestAClickIsRememberedForAsLongAsItsSignatureIsTaken(t *testing.T) {
	var s seen
	start := time.Now()
	require.True(t, s.first("a", start))
	require.True(t, s.first("b", start.Add(time.Minute)))
	require.False(t, s.first("a", start.Add(seenFor)))
	require.True(t, s.first("c", start.Add(seenFor+time.Second)))
	require.NotContains(t, s.by, "a", "it has aged")
	require.Contains(t, s.by, "b")
	require.Len(t, s.order, 2)
}

// A click that failed may come again; that it was there before must not make the second one be forgotten early.
func TestAClickThatFailedMayComeAgain(t *testing.T) {
	var s seen
	start := time.Now()
	require.True(t, s.first("a", start))
	s.forget("a")
	later := start.Add(10 * time.Minute)
	require.True(t, s.first("a", later))
	require.False(t, s.first("a", later.Add(2*time.Minute)), "its first sight has aged, its second has not")
}
