package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/worker/archive"
	"stanch/worker/audit"
	"stanch/worker/authority"
)

const (
	told   = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"
	joined = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAW"
)

// custody is an incident whose history, manifest and archive say the same.
type custody struct {
	*Auditor
	t     *testing.T
	story audit.Story
}

func newCustody(t *testing.T) *custody {
	t.Helper()
	a, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	store := &activities.EvidenceStore{Dir: t.TempDir(), Authority: a}
	c := &custody{t: t, Auditor: &Auditor{Archive: archive.Store{Dir: t.TempDir()}, Keys: a.Keys(), Evidence: store}}
	ref, err := store.StoreArtifact(t.Context(), told, "pod.logs", "pod:1", activities.Artifact{Name: "log.txt", Data: []byte("log")}, time.Now())
	require.NoError(t, err)
	c.story.Evidence = []audit.EvidenceFact{{EvidenceRef: ref}}
	for _, act := range []audit.ActFact{{What: "the answer", Incident: told}, {What: "applying pod.isolate", Incident: told}, {What: "undoing pod.isolate", Incident: told}, {What: "what was joined", Incident: joined}} {
		act.Entry, err = store.Append(act.Incident, activities.EntryKindEffect, activities.AuditRecord{Action: act.What})
		require.NoError(t, err)
		c.story.Acts = append(c.story.Acts, act)
	}
	require.NoError(t, c.Archive.Write(told, nil, a, time.Now()))
	require.NoError(t, c.noteArchive(told))
	return c
}

func (c *custody) manifest(incident string) string {
	return filepath.Join(c.Evidence.Dir, "incidents", incident+".jsonl")
}

// cut takes lines off the manifest's end.
func (c *custody) cut(n int) {
	raw, err := os.ReadFile(c.manifest(told))
	require.NoError(c.t, err)
	lines := bytes.SplitAfter(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
	require.NoError(c.t, os.WriteFile(c.manifest(told), bytes.Join(lines[:len(lines)-n], nil), 0o600))
}

// differences is what an audit names, a line each.
func (c *custody) differences() string {
	_, differences := c.verifyEvidence(told, c.story)
	var text strings.Builder
	for _, d := range differences {
		text.WriteString(d.What + "\n")
	}
	return text.String()
}

func TestAManifestWhoseEndWasCutOffDiffersFromTheHistory(t *testing.T) {
	c := newCustody(t)
	require.Empty(t, c.differences())
	c.cut(2) // the archive's line, and the undoing's
	require.Equal(t, "the history says that undoing pod.isolate was entered into the manifest of "+told+" as line "+c.story.Acts[2].Entry+", which is not there: it was cut off or replaced\n", c.differences())
	c.cut(2)
	require.Contains(t, c.differences(), "that the answer was entered")
	require.NoError(t, os.Remove(c.manifest(told)))
	require.Contains(t, c.differences(), "evidence log.txt with SHA-256 "+c.story.Evidence[0].SHA256+" is not in the manifest")
}

// A piece that is entered anew under another key is not the line that the history names.
func TestAManifestThatWasReplacedDiffersFromTheHistory(t *testing.T) {
	c := newCustody(t)
	require.NoError(t, os.Remove(c.manifest(told)))
	_, err := c.Evidence.StoreArtifact(t.Context(), told, "pod.logs", "pod:1", activities.Artifact{Name: "log.txt", Data: []byte("log")}, time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.Contains(t, c.differences(), "evidence log.txt was entered into the manifest as line "+c.story.Evidence[0].ManifestEntryHash)
}

func TestTheManifestOfALeaseThatWasJoinedIsReadToo(t *testing.T) {
	c := newCustody(t)
	require.NoError(t, os.Remove(c.manifest(joined)))
	require.Contains(t, c.differences(), "what was joined was entered into the manifest of "+joined)
}

func TestAnArchiveThatIsGoneIsADifference(t *testing.T) {
	c := newCustody(t)
	sum, err := c.Archive.Sum(told)
	require.NoError(t, err)
	path, err := c.Archive.Path(told)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.Equal(t, "the manifest names an archive that is not here: SHA-256 "+sum+"\n", c.differences())
	require.NoError(t, os.WriteFile(path, []byte("another"), 0o600))
	require.Contains(t, c.differences(), "the manifest says "+sum)
}

// A full disk is said by the history itself: it is told, and is no difference.
func TestWhatCouldNotBeEnteredIsToldWithItsReason(t *testing.T) {
	c := newCustody(t)
	c.story.Acts = append(c.story.Acts, audit.ActFact{What: "extending it", Incident: told, Unrecorded: "no space left on device"})
	checked, differences := c.verifyEvidence(told, c.story)
	require.Empty(t, differences)
	require.Contains(t, strings.Join(checked, "\n"), "extending it (no space left on device)")
	require.Contains(t, checked[0], "and 4 acts")
}
