package activities_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/testenv/signer"
)

const (
	mib        = 1 << 20
	junk       = "INC-01JUNK00000000"
	aboutTheft = "INC-01THEFT0000000"
)

// piece returns a piece of this size that is unlike every other.
func piece(name string, size int) activities.Piece {
	return activities.Piece{Name: name, Data: append([]byte(name), bytes.Repeat([]byte("x"), size-len(name))...)}
}

func TestJunkDoesNotKeepOutTheEvidenceOfTheAttackThatFollows(t *testing.T) {
	s := &activities.EvidenceStore{Dir: t.TempDir(), Authority: signer.New(t), Quota: activities.Quota{Total: 40 * mib, Incident: 20 * mib}}
	put := func(incident string, p activities.Piece) error {
		_, err := s.Put(t.Context(), incident, "process.snapshot", "pod:1", p, time.Now())
		return err
	}
	stored := 0
	for i := range 30 {
		err := put(junk, piece(fmt.Sprintf("junk-%d", i), 2*mib))
		if err == nil {
			stored++
			continue
		}
		refusal, ok := activities.AsRefusal(err)
		require.True(t, ok, err)
		require.Contains(t, refusal.Reason, "max_per_incident")
	}
	require.Equal(t, 9, stored, "the last tenth of an incident is kept for small pieces")
	require.NoError(t, put(junk, piece("processes", mib/2)), "a snapshot of the same incident still fits")
	require.NoError(t, put(aboutTheft, piece("processes-2", mib/2)))
	require.NoError(t, put(aboutTheft, piece("memory", 10*mib)))

	require.NoError(t, put(junk, piece("junk-0", 2*mib)), "what is stored already costs nothing")
	_, err := s.Put(t.Context(), "INC-01THIRD0000000", "a", "pod:1", piece("big", 10*mib), time.Now())
	require.ErrorContains(t, err, "max_total")
	require.NoError(t, put("INC-01THIRD0000000", piece("processes-3", mib/2)), "and small pieces of anybody fit into the last tenth of the store")
}

func TestEvidenceLeavesTheFileSystemItsReserve(t *testing.T) {
	s := &activities.EvidenceStore{Dir: t.TempDir(), Authority: signer.New(t), Quota: activities.Quota{MinFree: 1 << 60}}
	_, err := s.Put(t.Context(), junk, "a", "pod:1", piece("p", 100), time.Now())
	refusal, ok := activities.AsRefusal(err)
	require.True(t, ok, err)
	require.Contains(t, refusal.Reason, "stay free")
}
