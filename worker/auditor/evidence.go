package auditor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/worker/audit"
)

// verifyEvidence compares each artifact and each recorded action in the history with the store, and the manifest with
// itself and with the history. It returns what it compared, and the differences.
func (a *Auditor) verifyEvidence(incident string, timeline audit.Timeline) (checked []string, out []audit.Difference) {
	v := &evidenceVerifier{Auditor: a, incident: incident, timeline: timeline}
	lines, findings, err := a.Evidence.Verify(incident, a.Keyring, "")
	if err != nil {
		v.differ(audit.EventRef{}, "the evidence manifest cannot be read: %v", err)
	}
	for _, f := range findings {
		v.differ(audit.EventRef{}, "verify the evidence: %s", f)
	}
	v.readManifest(lines)
	v.manifests = &manifestIndex{
		Auditor: a, provedLineHashes: map[string]map[string]bool{incident: provedHashes(lines)},
	}
	v.compareArtifacts()
	entered, unrecorded := v.compareActions()
	checked = []string{fmt.Sprintf("%d evidence artifact(s): their bytes against the SHA-256 in the history, the chain and "+
		"signatures of the manifest's %d lines, and the manifest against the evidence and the %d actions in the history",
		len(timeline.Evidence), len(lines), entered)}
	if len(unrecorded) > 0 {
		checked = append(checked, fmt.Sprintf(
			"%d actions could not be written to a manifest when they were done, according to the history: %s", len(unrecorded),
			strings.Join(unrecorded, "; ")))
	}
	return checked, v.differences
}

// evidenceVerifier compares one incident's evidence.
type evidenceVerifier struct {
	*Auditor
	incident    string
	timeline    audit.Timeline
	inManifest  map[string]bool // by evidenceKey
	manifests   *manifestIndex
	differences []audit.Difference
}

func (v *evidenceVerifier) differ(ref audit.EventRef, format string, args ...any) {
	v.differences = append(v.differences, audit.Difference{Description: fmt.Sprintf(format, args...), EventRef: ref})
}

func evidenceKey(ref playbooks.EvidenceRef) string {
	return ref.Action + " " + ref.Target + " " + ref.SHA256
}

// readManifest reads the lines of the manifest whose signatures are valid, and compares the evidence and the archive in
// them with the history.
func (v *evidenceVerifier) readManifest(lines []activities.ManifestLine) {
	var archived []string
	inHistory := map[string]bool{}
	v.inManifest = map[string]bool{}
	for _, e := range v.timeline.Evidence {
		inHistory[evidenceKey(e.EvidenceRef)] = true
	}
	for _, l := range lines {
		if !l.SignatureValid {
			continue // a finding reports it already: the line proves nothing
		}
		switch {
		case l.Entry.Kind == activities.EntryKindEvidence && l.Entry.Evidence != nil:
			ref := *l.Entry.Evidence
			v.inManifest[evidenceKey(ref)] = true
			if !inHistory[evidenceKey(ref)] {
				v.differ(audit.EventRef{}, "line %d of the manifest lists evidence %s with SHA-256 %s, but no history does",
					l.Number, ref.Name, ref.SHA256)
			}
		case l.Entry.Kind == activities.EntryKindArchive && l.Entry.AuditRecord != nil:
			archived = append(archived, l.Entry.AuditRecord.SHA256)
		}
	}
	if what := v.compareArchive(v.incident, archived); what != "" {
		v.differ(audit.EventRef{}, "%s", what)
	}
}

// compareArtifacts compares the artifacts in the history with the manifest and with their bytes.
func (v *evidenceVerifier) compareArtifacts() {
	for _, e := range v.timeline.Evidence {
		switch {
		case !v.inManifest[evidenceKey(e.EvidenceRef)]:
			v.differ(e.SourceEvent, "evidence %s with SHA-256 %s is not in the manifest", e.Name, e.SHA256)
		case e.ManifestEntryHash != "" && !v.manifests.hasEntry(v.incident, e.ManifestEntryHash):
			v.differ(e.SourceEvent, "the history records evidence %s as line %s of the manifest, which is missing", e.Name,
				e.ManifestEntryHash)
		}
		if _, err := v.Evidence.ReadArtifact(e.SHA256); err != nil {
			v.differ(e.SourceEvent, "evidence %s with SHA-256 %s: %v", e.Name, e.SHA256, err)
		}
	}
}

// compareActions compares the actions in the history with the manifests. It returns how many are in one, and those that
// could not be written.
func (v *evidenceVerifier) compareActions() (entered int, unrecorded []string) {
	for _, act := range v.timeline.ManifestRecords {
		switch {
		case act.EntryHash == "":
			unrecorded = append(unrecorded, fmt.Sprintf("%s (%s)", act.Description, act.UnrecordedReason))
			continue
		case !v.manifests.hasEntry(act.IncidentID, act.EntryHash):
			v.differ(act.SourceEvent, "the history records that %s was written to the manifest of %s as line %s, which is "+
				"missing: the manifest was truncated or replaced", act.Description, act.IncidentID, act.EntryHash)
		}
		entered++
	}
	return entered, unrecorded
}

// compareArchive compares the archive with its entry in the manifest. Each replica has its own archive, with its own
// entry.
func (a *Auditor) compareArchive(incident string, archived []string) string {
	if len(archived) == 0 {
		return ""
	}
	said := strings.Join(archived, " or ")
	switch sum, err := a.Archive.FileSHA256(incident); {
	case errors.Is(err, fs.ErrNotExist):
		return "the manifest lists an archive that is missing: SHA-256 " + said
	case err != nil:
		return fmt.Sprintf("the manifest lists an archive with SHA-256 %s, which cannot be read: %v", said, err)
	case !slices.Contains(archived, sum):
		return fmt.Sprintf("the archive has SHA-256 %s, but the manifest lists %s", sum, said)
	}
	return ""
}

// manifestIndex contains the manifests with an incident's actions: those of a joined lease are in another incident's.
type manifestIndex struct {
	*Auditor
	provedLineHashes map[string]map[string]bool // hashes of lines with valid signatures, by incident
}

func (m *manifestIndex) hasEntry(incident, entry string) bool {
	if _, read := m.provedLineHashes[incident]; !read {
		lines, _, err := m.Evidence.Manifest(incident, m.Keyring)
		if err != nil {
			lines = nil // then nothing in it can be verified
		}
		m.provedLineHashes[incident] = provedHashes(lines)
	}
	return m.provedLineHashes[incident][entry]
}

func provedHashes(lines []activities.ManifestLine) map[string]bool {
	out := map[string]bool{}
	for _, l := range lines {
		if l.SignatureValid {
			out[l.Hash] = true
		}
	}
	return out
}
