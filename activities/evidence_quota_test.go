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
	mebibyte        = 1 << 20
	junkIncidentID  = "INC-01JUNK00000000"
	theftIncidentID = "INC-01THEFT0000000"
)

// newArtifact returns an artifact of this size with unique content.
func newArtifact(name string, size int) activities.Artifact {
	return activities.Artifact{Name: name, Data: append([]byte(name), bytes.Repeat([]byte("x"), size-len(name))...)}
}

func TestQuotaReservesRoomForSmallEvidence(t *testing.T) {
	s := &activities.EvidenceStore{
		Dir: t.TempDir(), Authority: signer.New(t),
		Quota: activities.Quota{MaxTotalBytes: 40 * mebibyte, MaxIncidentBytes: 20 * mebibyte},
	}
	put := func(incident string, p activities.Artifact) error {
		_, err := s.StoreArtifact(incident, "process.snapshot", "pod:1", p, time.Now())
		return err
	}
	stored := 0
	for i := range 30 {
		err := put(junkIncidentID, newArtifact(fmt.Sprintf("junk-%d", i), 2*mebibyte))
		if err == nil {
			stored++
			continue
		}
		refusal, ok := activities.AsRefusal(err)
		require.True(t, ok, err)
		require.Contains(t, refusal.Reason, "max_per_incident")
	}
	require.Equal(t, 9, stored, "the last tenth of an incident is kept for small pieces")
	require.NoError(t, put(junkIncidentID, newArtifact("processes", mebibyte/2)),
		"a snapshot of the same incident still fits")
	require.NoError(t, put(theftIncidentID, newArtifact("processes-2", mebibyte/2)))
	require.NoError(t, put(theftIncidentID, newArtifact("memory", 10*mebibyte)))

	require.NoError(t, put(junkIncidentID, newArtifact("junk-0", 2*mebibyte)), "what is stored already costs nothing")
	_, err := s.StoreArtifact("INC-01THIRD0000000", "a", "pod:1", newArtifact("big", 10*mebibyte), time.Now())
	require.ErrorContains(t, err, "max_total")
	require.NoError(t, put("INC-01THIRD0000000", newArtifact("processes-3", mebibyte/2)),
		"and small pieces of anybody fit into the last tenth of the store")
}

func TestEvidenceStoreKeepsFreeSpace(t *testing.T) {
	s := &activities.EvidenceStore{
		Dir: t.TempDir(), Authority: signer.New(t),
		Quota: activities.Quota{MinFreeBytes: 1 << 60},
	}
	_, err := s.StoreArtifact(junkIncidentID, "a", "pod:1", newArtifact("p", 100), time.Now())
	refusal, ok := activities.AsRefusal(err)
	require.True(t, ok, err)
	require.Contains(t, refusal.Reason, "are reserved")
}
