package auditor

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
	auditedIncidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"
	joinedIncidentID  = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAW"
)

// auditFixture is an incident whose history, manifest and archive agree.
type auditFixture struct {
	*Auditor
	t        *testing.T
	timeline audit.Timeline
}

func newAuditFixture(t *testing.T) *auditFixture {
	t.Helper()
	a, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	store := &activities.EvidenceStore{Dir: t.TempDir(), Authority: a}
	c := &auditFixture{t: t, Auditor: &Auditor{
		Archive: archive.Store{Dir: t.TempDir()}, Keyring: a.Keyring(),
		Evidence: store,
	}}
	ref, err := store.StoreArtifact(auditedIncidentID, "pod.logs", "pod:1",
		activities.Artifact{Name: "log.txt", Data: []byte("log")}, time.Now())
	require.NoError(t, err)
	c.timeline.Evidence = []audit.EvidenceRecord{{EvidenceRef: ref}}
	for _, act := range []audit.ManifestRecord{
		{Description: "the decision", IncidentID: auditedIncidentID},
		{Description: "applying pod.isolate", IncidentID: auditedIncidentID},
		{
			Description: "undoing pod.isolate",
			IncidentID:  auditedIncidentID,
		},
		{Description: "what was joined", IncidentID: joinedIncidentID},
	} {
		act.EntryHash, err = store.Append(act.IncidentID, activities.EntryKindEffect,
			activities.AuditRecord{Action: act.Description})
		require.NoError(t, err)
		c.timeline.ManifestRecords = append(c.timeline.ManifestRecords, act)
	}
	require.NoError(t, c.Archive.Write(auditedIncidentID, nil, a, time.Now()))
	require.NoError(t, c.recordArchiveInManifest(auditedIncidentID))
	return c
}

func (c *auditFixture) manifestPath(incident string) string {
	return filepath.Join(c.Evidence.Dir, "incidents", incident+".jsonl")
}

// truncateManifest removes lines from the manifest's end.
func (c *auditFixture) truncateManifest(n int) {
	raw, err := os.ReadFile(c.manifestPath(auditedIncidentID))
	require.NoError(c.t, err)
	lines := bytes.SplitAfter(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
	require.NoError(c.t, os.WriteFile(c.manifestPath(auditedIncidentID), bytes.Join(lines[:len(lines)-n], nil), 0o600))
}

// auditDifferences returns the differences that an audit finds, a line each.
func (c *auditFixture) auditDifferences() string {
	_, differences := c.verifyEvidence(auditedIncidentID, c.timeline)
	var text strings.Builder
	for _, d := range differences {
		text.WriteString(d.Description + "\n")
	}
	return text.String()
}

func TestAuditReportsTruncatedManifest(t *testing.T) {
	c := newAuditFixture(t)
	require.Empty(t, c.auditDifferences())
	c.truncateManifest(2) // the lines of the archive and of the undo
	require.Equal(t, "the history records that undoing pod.isolate was written to the manifest of "+auditedIncidentID+" "+
		"as line "+c.timeline.ManifestRecords[2].EntryHash+", which is missing: the manifest was truncated or replaced\n",
		c.auditDifferences())
	c.truncateManifest(2)
	require.Contains(t, c.auditDifferences(), "that the decision was written")
	require.NoError(t, os.Remove(c.manifestPath(auditedIncidentID)))
	require.Contains(t, c.auditDifferences(), "evidence log.txt with SHA-256 "+c.timeline.Evidence[0].SHA256+
		" is not in the manifest")
}

// A line that is signed again with another key is not the line in the history.
func TestAuditReportsReplacedManifest(t *testing.T) {
	c := newAuditFixture(t)
	require.NoError(t, os.Remove(c.manifestPath(auditedIncidentID)))
	_, err := c.Evidence.StoreArtifact(auditedIncidentID, "pod.logs", "pod:1",
		activities.Artifact{Name: "log.txt", Data: []byte("log")}, time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.Contains(t, c.auditDifferences(),
		"the history records evidence log.txt as line "+c.timeline.Evidence[0].ManifestEntryHash)
}

func TestAuditReadsManifestOfJoinedLease(t *testing.T) {
	c := newAuditFixture(t)
	require.NoError(t, os.Remove(c.manifestPath(joinedIncidentID)))
	require.Contains(t, c.auditDifferences(), "what was joined was written to the manifest of "+joinedIncidentID)
}

func TestAuditReportsMissingArchive(t *testing.T) {
	c := newAuditFixture(t)
	sum, err := c.Archive.FileSHA256(auditedIncidentID)
	require.NoError(t, err)
	path, err := c.Archive.FilePath(auditedIncidentID)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.Equal(t, "the manifest lists an archive that is missing: SHA-256 "+sum+"\n", c.auditDifferences())
	require.NoError(t, os.WriteFile(path, []byte("another"), 0o600))
	require.Contains(t, c.auditDifferences(), "the manifest lists "+sum)
}

// If a full disk prevented an entry, the history says so: the timeline shows it, and it is no difference.
func TestAuditShowsUnrecordedActionWithReason(t *testing.T) {
	c := newAuditFixture(t)
	c.timeline.ManifestRecords = append(c.timeline.ManifestRecords, audit.ManifestRecord{
		Description: "extending it",
		IncidentID:  auditedIncidentID, UnrecordedReason: "no space left on device",
	})
	checked, differences := c.verifyEvidence(auditedIncidentID, c.timeline)
	require.Empty(t, differences)
	require.Contains(t, strings.Join(checked, "\n"), "extending it (no space left on device)")
	require.Contains(t, checked[0], "the 4 actions")
}
