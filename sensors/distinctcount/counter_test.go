package distinctcount_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/distinctcount"
)

func TestCounterCountsDistinctValuesPerActorInWindow(t *testing.T) {
	w := distinctcount.New(distinctcount.Options{Window: time.Minute})
	begin := time.Unix(1000, 0)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	require.Equal(t, 1, w.Add("alice", "a", at(0)))
	require.Equal(t, 1, w.Add("alice", "a", at(1)), "the same value again")
	require.Equal(t, 2, w.Add("alice", "b", at(30)))
	require.Equal(t, 1, w.Add("bob", "a", at(30)), "another actor")
	require.Equal(t, 3, w.Add("alice", "c", at(61)), "a was seen again a minute ago")
	require.Equal(t, 3, w.Add("alice", "d", at(62)), "a is outside the window")
	require.Equal(t, 4, w.Add("alice", "e", at(20)), "late, and out of order")
	require.Equal(t, 1, w.Add("alice", "f", at(1000)))
}

func TestCounterMemoryIsBounded(t *testing.T) {
	w := distinctcount.New(distinctcount.Options{MaxActors: 3, MaxItemsPerActor: 5})
	now := time.Unix(1000, 0)
	for i := range 100 {
		n := w.Add("alice", fmt.Sprint(i), now)
		require.Equal(t, min(i+1, 5), n, "the newest five are kept")
	}
	for i := range 3 {
		w.Add(fmt.Sprint("other", i), "x", now)
	}
	require.Equal(t, 1, w.Add("alice", "y", now), "three others were there since")
	require.Equal(t, 2, w.Add("other2", "y", now))
}
