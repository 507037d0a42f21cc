package ratelimit_test

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/ratelimit"
)

func TestEachCallerHasItsOwnLimit(t *testing.T) {
	var l ratelimit.PerCaller
	limit := ratelimit.Limit{Rate: 0.001, Burst: 2}
	require.True(t, l.Allow("alice", limit))
	require.True(t, l.Allow("alice", limit))
	require.False(t, l.Allow("alice", limit), "the burst is used")
	require.True(t, l.Allow("bob", limit), "another caller's calls do not count")
}

func TestManyCallersDoNotResetOneThatKeepsCalling(t *testing.T) {
	var l ratelimit.PerCaller
	limit := ratelimit.Limit{Rate: 0.001, Burst: 1}
	require.True(t, l.Allow("alice", limit))
	for i := range 20_000 {
		l.Allow(strconv.Itoa(i), limit)
		if i%1000 == 0 {
			require.False(t, l.Allow("alice", limit), "after %d other callers", i)
		}
	}
	require.True(t, l.Allow("0", limit), "the caller that was silent longest is forgotten")
}
