package authority_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/worker/authority"
)

const testIncidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

// Entries of a rotated key are still valid; those of a distrusted key are not.
func TestManifestVerifiesAfterKeyRotation(t *testing.T) {
	keys := t.TempDir()
	a, err := authority.OpenOrCreate(keys)
	require.NoError(t, err)
	s := &activities.EvidenceStore{Dir: t.TempDir(), Authority: a}
	found := func(a *authority.Authority) string {
		_, all, err := s.Verify(testIncidentID, a.Keyring(), "")
		require.NoError(t, err)
		var text []string
		for _, f := range all {
			text = append(text, f.String())
		}
		return strings.Join(text, "\n")
	}
	_, err = s.Append(testIncidentID, activities.EntryKindEffect, activities.AuditRecord{Action: "before"})
	require.NoError(t, err)
	before, after, err := authority.RotateSigningKey(keys, false)
	require.NoError(t, err)
	require.NotEqual(t, before, after)
	next, err := authority.OpenExisting(keys)
	require.NoError(t, err)
	require.Equal(t, after, next.KeyID())
	s.Authority = next
	_, err = s.Append(testIncidentID, activities.EntryKindUndo, activities.AuditRecord{Action: "after"})
	require.NoError(t, err)
	require.Empty(t, found(next))
	_, _, err = authority.RotateSigningKey(keys, true)
	require.NoError(t, err)
	last, err := authority.OpenExisting(keys)
	require.NoError(t, err)
	require.Contains(t, found(last), after)
	require.NotContains(t, found(last), before)
}

func TestRotationIsSignedByPreviousKey(t *testing.T) {
	dir := t.TempDir()
	first, err := authority.OpenOrCreate(dir)
	require.NoError(t, err)
	pinned := first.KeySet()
	for range 2 {
		_, _, err := authority.RotateSigningKey(dir, false)
		require.NoError(t, err)
	}
	_, after, err := authority.RotateSigningKey(dir, true)
	require.NoError(t, err)
	now, err := authority.OpenExisting(dir)
	require.NoError(t, err)
	followed, err := pinned.ApplyRotations(now.KeySetChain())
	require.NoError(t, err)
	require.Equal(t, after, followed.ActiveKeyID)
	require.EqualValues(t, 3, followed.Sequence)
	ring, err := followed.Keyring()
	require.NoError(t, err)
	require.Equal(t, now.Keyring(), ring)
}

// Stanch before data format 2 reads each line of the chain as a key set with a time.
func TestOlderStanchStopsWithSentence(t *testing.T) {
	dir := t.TempDir()
	_, err := authority.OpenOrCreate(dir)
	require.NoError(t, err)
	raw, err := os.ReadFile(filepath.Join(dir, "authority.chain"))
	require.NoError(t, err)
	var signed struct{ Body []byte }
	require.NoError(t, json.Unmarshal(raw, &signed))
	var set struct{ At time.Time }
	require.ErrorContains(t, json.Unmarshal(signed.Body, &set),
		"data format 2 requires a newer Stanch; run the one that wrote this directory")
}
