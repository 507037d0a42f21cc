package activities_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/activities"
	lacking "stanch/testenv/prereq"
	"stanch/testenv/signer"
)

const testIncidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

// newFilledStore returns a store with three artifacts and two audit records of one incident.
func newFilledStore(t testing.TB) (*activities.EvidenceStore, *signer.Signer) {
	t.Helper()
	a := signer.New(t)
	s := &activities.EvidenceStore{Dir: t.TempDir(), Authority: a}
	for _, text := range []string{"first", "second", "third"} {
		_, err := s.StoreArtifact(testIncidentID, "pod.logs", "pod:1", activities.Artifact{
			Name: text + ".txt",
			Data: []byte(text), CapturedFrom: "API server",
		}, time.Now())
		require.NoError(t, err)
	}
	for _, kind := range []activities.ManifestEntryKind{activities.EntryKindEffect, activities.EntryKindUndo} {
		_, err := s.Append(testIncidentID, kind, activities.AuditRecord{
			Action: "pod.isolate", Target: "pod:1",
			LeaseID: "LSE-1",
		})
		require.NoError(t, err)
	}
	return s, a
}

func readManifestFile(s *activities.EvidenceStore) string {
	return filepath.Join(s.Dir, "incidents", testIncidentID+".jsonl")
}

func verifyStore(t testing.TB, s *activities.EvidenceStore, a *signer.Signer,
	head string,
) []activities.IntegrityFinding {
	t.Helper()
	_, found, err := s.Verify(testIncidentID, a.Keyring(), head)
	require.NoError(t, err)
	return found
}

func TestStoredEvidenceVerifies(t *testing.T) {
	s, a := newFilledStore(t)
	lines, found, err := s.Verify(testIncidentID, a.Keyring(), "")
	require.NoError(t, err)
	require.Empty(t, found)
	require.Len(t, lines, 5)
	require.Empty(t, verifyStore(t, s, a, activities.LastLineHash(lines)))
}

func TestVerifyFindsAnyFlippedByteOfManifest(t *testing.T) {
	s, a := newFilledStore(t)
	whole, err := os.ReadFile(readManifestFile(s))
	require.NoError(t, err)
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for i := range whole {
		if i%7 != 0 && i < last { // no later line protects the last one, so every byte of it is changed
			continue
		}
		changed := bytes.Clone(whole)
		changed[i] ^= 1
		_, found := activities.ReadManifest(testIncidentID, changed, a.Keyring())
		require.NotEmpty(t, found, "byte %d (%q) was flipped", i, whole[i])
	}
}

func TestVerifyFindsFlippedByteOfArtifact(t *testing.T) {
	s, a := newFilledStore(t)
	blobs, err := filepath.Glob(filepath.Join(s.Dir, "blobs", "*", "*"))
	require.NoError(t, err)
	require.Len(t, blobs, 3)
	for _, blob := range blobs {
		whole, err := os.ReadFile(blob)
		require.NoError(t, err)
		changed := bytes.Clone(whole)
		changed[len(changed)-1] ^= 1
		require.NoError(t, os.Chmod(blob, 0o600))
		require.NoError(t, os.WriteFile(blob, changed, 0o600))
		require.ErrorContains(t, joinFindings(verifyStore(t, s, a, "")), filepath.Base(blob))
		require.NoError(t, os.WriteFile(blob, whole, 0o600))
	}
	require.NoError(t, os.Remove(blobs[0]))
	require.ErrorContains(t, joinFindings(verifyStore(t, s, a, "")), "missing from the store")
}

func TestVerifyFindsRemovedSwappedAndTruncatedEntries(t *testing.T) {
	s, a := newFilledStore(t)
	whole, err := os.ReadFile(readManifestFile(s))
	require.NoError(t, err)
	all, _, err := s.Manifest(testIncidentID, a.Keyring())
	require.NoError(t, err)
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	for name, changed := range map[string][]string{
		"one in the middle is gone": {lines[0], lines[2], lines[3], lines[4]},
		"the first is gone":         lines[1:],
		"two are swapped":           {lines[0], lines[2], lines[1], lines[3], lines[4]},
		"one is doubled":            {lines[0], lines[0], lines[1], lines[2], lines[3], lines[4]},
	} {
		_, found := activities.ReadManifest(testIncidentID, []byte(strings.Join(changed, "")), a.Keyring())
		require.NotEmpty(t, found, name)
	}
	// A removed end is detected with a head that was kept elsewhere.
	require.NoError(t, os.WriteFile(readManifestFile(s), []byte(strings.Join(lines[:3], "")), 0o600))
	require.Empty(t, verifyStore(t, s, a, ""))
	require.ErrorContains(t, joinFindings(verifyStore(t, s, a, activities.LastLineHash(all))), "removed or replaced")
}

func TestVerifyRejectsManifestOfAnotherKeyOrIncident(t *testing.T) {
	s, a := newFilledStore(t)
	other := signer.New(t)
	require.ErrorContains(t, joinFindings(verifyStore(t, s, other, "")), "unknown key")
	whole, err := os.ReadFile(readManifestFile(s))
	require.NoError(t, err)
	_, found := activities.ReadManifest("INC-01ARZ3NDEKTSV4RRFFQ69G5FAW", whole, a.Keyring())
	require.ErrorContains(t, joinFindings(found), "belongs to the manifest of")
}

// A line that someone inserted at the start proves nothing, and does not invalidate the lines after it.
func TestEachManifestEntryIsVerifiedSeparately(t *testing.T) {
	s, a := newFilledStore(t)
	whole, err := os.ReadFile(readManifestFile(s))
	require.NoError(t, err)
	stranger := signer.New(t)
	theirs := &activities.EvidenceStore{Dir: t.TempDir(), Authority: stranger}
	_, err = theirs.StoreArtifact(testIncidentID, "pod.logs", "pod:1", activities.Artifact{
		Name: "first.txt",
		Data: []byte("planted"),
	}, time.Now())
	require.NoError(t, err)
	forged, err := os.ReadFile(readManifestFile(theirs))
	require.NoError(t, err)
	lines, found := activities.ReadManifest(testIncidentID, append(forged, whole...), a.Keyring())
	require.NotEmpty(t, found)
	require.Len(t, lines, 6)
	for i, l := range lines {
		require.Equal(t, i > 0, l.SignatureValid, "line %d", i+1)
	}
	// A line that is signed for another incident, or encoded differently, proves nothing either.
	for _, c := range []struct{ of, text string }{
		{"INC-01ARZ3NDEKTSV4RRFFQ69G5FAW", string(whole)},
		{testIncidentID, strings.ReplaceAll(string(whole), `{"payload_type"`, `{ "payload_type"`)},
	} {
		lines, _ = activities.ReadManifest(c.of, []byte(c.text), a.Keyring())
		require.Len(t, lines, 5)
		for _, l := range lines {
			require.False(t, l.SignatureValid)
		}
	}
}

// An entry that a crash cut off was never acknowledged: it is removed, and the chain continues.
func TestIncompleteLastEntryIsRemoved(t *testing.T) {
	s, a := newFilledStore(t)
	whole, err := os.ReadFile(readManifestFile(s))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(readManifestFile(s), append(bytes.Clone(whole), whole[:200]...), 0o600))
	require.ErrorContains(t, joinFindings(verifyStore(t, s, a, "")), "incomplete")
	_, err = s.Append(testIncidentID, activities.EntryKindEffect, activities.AuditRecord{Action: "after"})
	require.NoError(t, err)
	require.Empty(t, verifyStore(t, s, a, ""))
}

func TestRetriedEntryIsAppendedOnce(t *testing.T) {
	s, a := newFilledStore(t)
	piece := activities.Artifact{Name: "first.txt", Data: []byte("first"), CapturedFrom: "API server"}
	again, err := s.StoreArtifact(testIncidentID, "pod.logs", "pod:1", piece, time.Now())
	require.NoError(t, err)
	lines, _, err := s.Manifest(testIncidentID, a.Keyring())
	require.NoError(t, err)
	require.Len(t, lines, 5)
	require.Equal(t, lines[0].Hash, again.ManifestEntryHash)
}

// Two replicas write the same manifest on a shared volume.
func TestReplicasAppendToOneManifest(t *testing.T) {
	s, a := newFilledStore(t)
	var all sync.WaitGroup
	for n := range 8 {
		store := &activities.EvidenceStore{Dir: s.Dir, Authority: a}
		all.Go(func() {
			for i := range 10 {
				if _, err := store.Append(testIncidentID, activities.EntryKindEffect,
					activities.AuditRecord{Action: strings.Repeat("x", n*10+i+1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	lines, found, err := s.Verify(testIncidentID, a.Keyring(), "")
	require.NoError(t, err)
	require.Empty(t, found)
	require.Len(t, lines, 85)
}

// A process that never releases the lock delays others only for a limited time.
func TestManifestLockTimesOut(t *testing.T) {
	s, a := newFilledStore(t)
	f, err := os.Open(readManifestFile(s))
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	_, err = s.Append(testIncidentID, activities.EntryKindEffect, activities.AuditRecord{Action: "meanwhile"})
	require.ErrorContains(t, err, "another process has locked it")
	require.NoError(t, f.Close())
	_, err = s.Append(testIncidentID, activities.EntryKindEffect, activities.AuditRecord{Action: "afterwards"})
	require.NoError(t, err)
	require.Empty(t, verifyStore(t, s, a, ""))
}

func TestPutRejectsArtifactWithWrongHash(t *testing.T) {
	s, _ := newFilledStore(t)
	_, err := s.StoreArtifact(testIncidentID, "process.snapshot", "pod:1", activities.Artifact{
		Name: "exe",
		Data: []byte("x"), CapturedFrom: "node a", SHA256: strings.Repeat("0", 64),
	}, time.Now())
	require.ErrorContains(t, err, "at the source")
}

// On a full disk, storing returns an error, leaves no partial file, and the existing evidence still verifies.
func TestFullDiskLeavesNoPartialFile(t *testing.T) {
	lacking.RequireRoot(t)
	a := signer.New(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		lacking.SkipOrFail(t, "the right to mount a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := &activities.EvidenceStore{Dir: dir, Authority: a}
	put := func(size int) error {
		_, err := s.StoreArtifact(testIncidentID, "pod.logs", "pod:1", activities.Artifact{
			Name: "log",
			Data: bytes.Repeat([]byte("x"), size),
		}, time.Now())
		return err
	}
	require.NoError(t, put(1000))
	require.ErrorIs(t, put(1<<20), unix.ENOSPC)
	stored := 0
	require.NoError(t, filepath.WalkDir(filepath.Join(dir, "blobs"), func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			stored++
			require.NotEqual(t, '.', rune(e.Name()[0]), "%s is left", name)
		}
		return err
	}))
	require.Equal(t, 1, stored, "only the first artifact is there")
	var noteErr error
	for n := 0; n < 5000 && noteErr == nil; n++ { // until not even one line fits
		_, noteErr = s.Append(testIncidentID, activities.EntryKindEffect,
			activities.AuditRecord{Note: strings.Repeat("y", n%4000)})
	}
	require.ErrorIs(t, noteErr, unix.ENOSPC)
	_, found, err := s.Verify(testIncidentID, a.Keyring(), "")
	require.NoError(t, err)
	require.Empty(t, found)
}

type manifestProblem string

func (p manifestProblem) Error() string { return string(p) }

// joinFindings returns the findings as one error.
func joinFindings(found []activities.IntegrityFinding) error {
	if len(found) == 0 {
		return nil
	}
	var text []string
	for _, f := range found {
		text = append(text, f.String())
	}
	return manifestProblem(strings.Join(text, "\n"))
}

func FuzzReadManifest(f *testing.F) {
	s, a := newFilledStore(f)
	whole, err := os.ReadFile(readManifestFile(s))
	require.NoError(f, err)
	f.Add(whole)
	f.Add([]byte("{}\n"))
	f.Add([]byte("\n\n{"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		lines, found := activities.ReadManifest(testIncidentID, raw, a.Keyring())
		if !bytes.HasPrefix(whole, raw) && len(found) == 0 && len(lines) > 0 {
			t.Fatalf("%q passes", raw)
		}
	})
}
