// Package auditor reads, verifies, records and archives the histories of incidents, from Temporal or the archive.
//
// It computes no timelines itself (package audit does), renders nothing, and changes no history: a difference between
// the records is reported, never repaired.
package auditor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.temporal.io/sdk/converter"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors/attestation"
	"stanch/worker/actions"
	"stanch/worker/archive"
	"stanch/worker/audit"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/worker/recorder"
)

// Auditor reconstructs and verifies timelines: from Temporal, and from the archive when Temporal no longer has an
// incident.
type Auditor struct {
	// HistoryExporter reads histories from Temporal; with nil, only the archive is read.
	HistoryExporter *archive.HistoryExporter
	Archive         archive.Store
	Converter       converter.DataConverter
	Keyring         attestation.Keyring
	Catalog         playbooks.Catalog
	Evidence        *activities.EvidenceStore
	archiveQueue    archiveQueue // for ArchiveClosed
}

// Open returns an auditor for the archive of a data directory, without a running Stanch.
func Open(dir string) (*Auditor, error) {
	for _, file := range []string{"authority.seed", "codec.key"} {
		if _, err := os.Stat(filepath.Join(dir, "keys", file)); err != nil {
			return nil, fmt.Errorf("find the archive's keys: %w", err)
		}
	}
	c, err := codec.Open(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err
	}
	auth, err := authority.OpenExisting(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names the file
	}
	return &Auditor{
		Archive: archive.Store{Dir: filepath.Join(dir, "archive")}, Converter: c.DataConverter(), Keyring: auth.Keyring(),
		Catalog:  actions.Catalog(),
		Evidence: &activities.EvidenceStore{Dir: filepath.Join(dir, "evidence")},
	}, nil
}

// ErrUnknownIncident means that neither Temporal nor the archive has the incident.
var ErrUnknownIncident = errors.New("unknown incident; `stanch incidents` lists the incidents")

// loadRuns returns an incident's histories from Temporal and the archive, and the archive's own differences.
func (a *Auditor) loadRuns(ctx context.Context, incident string, both bool) (live, archived []audit.WorkflowRun,
	differences []audit.Difference, err error,
) {
	if a.HistoryExporter != nil {
		if live, err = a.HistoryExporter.Export(ctx, incident); err != nil {
			return nil, nil, nil, err //nolint:wrapcheck // the error says what was done
		}
	}
	if includesIncidentRun(live) && !both {
		return live, nil, nil, nil
	}
	kept, err := a.Archive.Read(incident, a.Keyring)
	if errors.Is(err, archive.ErrNotFound) {
		if len(live) == 0 {
			return nil, nil, nil, fmt.Errorf("audit incident %s: %w", incident, ErrUnknownIncident)
		}
		return live, nil, nil, nil
	}
	if err != nil {
		// A damaged archive is a difference, and does not hide what Temporal still has.
		if !includesIncidentRun(live) {
			return nil, nil, nil, err //nolint:wrapcheck // the error names the file
		}
		return live, nil, []audit.Difference{{Description: err.Error()}}, nil
	}
	return live, kept.Runs, kept.Differences, nil
}

// includesIncidentRun reports whether Temporal still has the incident itself, and not only one of its leases.
func includesIncidentRun(runs []audit.WorkflowRun) bool {
	for _, r := range runs {
		if r.WorkflowType == audit.TypeIncident {
			return true
		}
	}
	return false
}

// auditOptions returns the options of a timeline.
func (a *Auditor) auditOptions(incident, source string) audit.Options {
	return audit.Options{
		IncidentID: incident, DataConverter: a.Converter, Keyring: a.Keyring, Catalog: a.Catalog,
		HistorySource: source,
	}
}

// Audit returns an incident's timeline, and verifies it on request.
func (a *Auditor) Audit(ctx context.Context, incident string, verify bool) (audit.Timeline, error) {
	live, archived, damaged, err := a.loadRuns(ctx, incident, verify)
	if err != nil {
		return audit.Timeline{}, err
	}
	runs, source := live, "temporal"
	if !includesIncidentRun(live) {
		runs, source = archived, "archive"
	}
	timeline, differences := audit.VerifyTimeline(runs, a.auditOptions(incident, source))
	if !verify {
		if source == "archive" {
			timeline.Problems = append(timeline.Problems, damaged...)
		}
		return timeline, nil
	}
	report := &audit.VerificationReport{Checked: []string{
		fmt.Sprintf("%d histories with %d events: every payload was decrypted; every attestation, vote, grant, token and "+
			"receipt is signed by the authority and matches its use", len(runs), countEvents(runs)),
	}}
	if timeline.Status == "closed" {
		report.Checked = append(report.Checked, "the incident's stored summary against the histories")
	}
	report.Differences = append(report.Differences, differences...)
	report.Differences = append(report.Differences, damaged...)
	switch {
	case archived == nil && damaged == nil:
		report.Checked = append(report.Checked, "the archive was not checked: none exists yet")
	case source == "archive":
		report.Checked = append(report.Checked,
			"the archive against its signed statement (Temporal no longer has the incident)")
	case archived != nil:
		report.Checked = append(report.Checked,
			"the archive against its signed statement, and Temporal's histories against the archive")
		report.Differences = append(report.Differences, archive.CompareHistories(live, archived)...)
	}
	checked, differ := a.verifyEvidence(incident, timeline)
	report.Checked = append(report.Checked, checked...)
	report.Differences = append(report.Differences, differ...)
	report.OK = len(report.Differences) == 0
	if report.Differences == nil {
		report.Differences = []audit.Difference{}
	}
	timeline.Verification = report
	return timeline, nil
}

// BuildRecording returns the recording of an incident, encoded as a file.
func (a *Auditor) BuildRecording(ctx context.Context, incident string, anonymise bool) ([]byte, error) {
	live, archived, _, err := a.loadRuns(ctx, incident, false)
	if err != nil {
		return nil, err
	}
	if !includesIncidentRun(live) {
		live = archived
	}
	r, err := recorder.FromHistories(live, incident, a.Converter)
	if err == nil && anonymise {
		r, err = recording.Anonymize(r)
	}
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names the incident
	}
	return recording.Encode(r) //nolint:wrapcheck // the error says what was done
}

func countEvents(runs []audit.WorkflowRun) int {
	n := 0
	for _, r := range runs {
		n += len(r.Events)
	}
	return n
}
