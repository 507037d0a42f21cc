package worker

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
	"stanch/worker/archive"
	"stanch/worker/audit"
	"stanch/worker/authority"
	"stanch/worker/recorder"
)

// Auditor tells and verifies stories: from Temporal, and from the archive once Temporal no longer has an incident.
type Auditor struct {
	// Collect gets histories from Temporal; nil reads the archive alone.
	Collect   *archive.Collector
	Archive   archive.Store
	Converter converter.DataConverter
	Keys      attestation.Keyring
	Catalogue playbooks.Catalog
	Evidence  *activities.EvidenceStore
	line      queue // of ArchiveClosed, which is called by one at a time
}

// OpenAuditor reads the archive of a data directory without a running Stanch.
func OpenAuditor(dir string) (*Auditor, error) {
	for _, file := range []string{"authority.seed", "codec.key"} {
		if _, err := os.Stat(filepath.Join(dir, "keys", file)); err != nil {
			return nil, fmt.Errorf("find the keys to read the archive with: %w", err)
		}
	}
	c, err := PayloadCodec(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err
	}
	auth, err := authority.Read(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the file
	}
	return &Auditor{
		Archive: archive.Store{Dir: filepath.Join(dir, "archive")}, Converter: c.Converter(), Keys: auth.Keys(), Catalogue: Catalogue(),
		Evidence: &activities.EvidenceStore{Dir: filepath.Join(dir, "evidence")},
	}, nil
}

// auditor is the running worker's.
func (w *Worker) auditor() *Auditor {
	return &Auditor{
		Collect: &archive.Collector{Temporal: w.Client, Converter: w.converter()}, Archive: archive.Store{Dir: filepath.Join(w.Dir, "archive")},
		Converter: w.converter(), Keys: w.Authority.Keys(), Catalogue: w.Set.Catalog(), Evidence: w.Set.Evidence,
	}
}

func (w *Worker) converter() converter.DataConverter {
	if w.Converter == nil {
		return converter.GetDefaultDataConverter()
	}
	return w.Converter
}

// ErrNoIncident says that no source of incidents has one.
var ErrNoIncident = errors.New("it is not known; `stanch incidents` lists what there is")

// runs gives an incident's histories from where they are. Differences are the archive's own.
func (a *Auditor) runs(ctx context.Context, incident string, both bool) (live, archived []audit.Run, differences []audit.Difference, err error) {
	if a.Collect != nil {
		if live, err = a.Collect.Collect(ctx, incident); err != nil {
			return nil, nil, nil, err //nolint:wrapcheck // it says what was done
		}
	}
	if whole(live) && !both {
		return live, nil, nil, nil
	}
	kept, err := a.Archive.Read(incident, a.Keys)
	if errors.Is(err, archive.ErrNone) {
		if len(live) == 0 {
			return nil, nil, nil, fmt.Errorf("incident %s: %w", incident, ErrNoIncident)
		}
		return live, nil, nil, nil
	}
	if err != nil {
		// A damaged archive is a difference and hides nothing of what Temporal still has.
		if !whole(live) {
			return nil, nil, nil, err //nolint:wrapcheck // it names the file
		}
		return live, nil, []audit.Difference{{What: err.Error()}}, nil
	}
	return live, kept.Runs, kept.Differences, nil
}

// whole tells whether Temporal still has the incident itself and not only some lease of it.
func whole(runs []audit.Run) bool {
	for _, r := range runs {
		if r.Type == audit.TypeIncident {
			return true
		}
	}
	return false
}

// options are what a story is told with.
func (a *Auditor) options(incident, source string) audit.Options {
	return audit.Options{Incident: incident, Converter: a.Converter, Keys: a.Keys, Catalogue: a.Catalogue, Source: source}
}

// Audit tells an incident's story, and verifies it if asked.
func (a *Auditor) Audit(ctx context.Context, incident string, verify bool) (audit.Story, error) {
	live, archived, damaged, err := a.runs(ctx, incident, verify)
	if err != nil {
		return audit.Story{}, err
	}
	runs, source := live, "temporal"
	if !whole(live) {
		runs, source = archived, "archive"
	}
	story, differences := audit.Check(runs, a.options(incident, source))
	if !verify {
		if source == "archive" {
			story.Problems = append(story.Problems, damaged...)
		}
		return story, nil
	}
	report := &audit.VerifiedReport{Checked: []string{
		fmt.Sprintf("%d histories with %d events: every payload decrypts, every attestation, vote, grant, token and receipt is signed by the authority and is about what it is used for", len(runs), events(runs)),
	}}
	if story.Status == "closed" {
		report.Checked = append(report.Checked, "the incident's stored summary against the histories")
	}
	report.Differences = append(report.Differences, differences...)
	report.Differences = append(report.Differences, damaged...)
	switch {
	case archived == nil && damaged == nil:
		report.Checked = append(report.Checked, "there is no archive yet to compare with")
	case source == "archive":
		report.Checked = append(report.Checked, "the archive against its signed statement (Temporal no longer has the incident)")
	case archived != nil:
		report.Checked = append(report.Checked, "the archive against its signed statement, and Temporal's histories against the archive")
		report.Differences = append(report.Differences, archive.Compare(live, archived)...)
	}
	checked, differ := a.verifyEvidence(incident, story)
	report.Checked = append(report.Checked, checked...)
	report.Differences = append(report.Differences, differ...)
	report.OK = len(report.Differences) == 0
	if report.Differences == nil {
		report.Differences = []audit.Difference{}
	}
	story.Verified = report
	return story, nil
}

// Record makes a recording of an incident, ready to be written to a file.
func (a *Auditor) Record(ctx context.Context, incident string, anonymise bool) ([]byte, error) {
	live, archived, _, err := a.runs(ctx, incident, false)
	if err != nil {
		return nil, err
	}
	if !whole(live) {
		live = archived
	}
	r, err := recorder.From(live, incident, a.Converter)
	if err == nil && anonymise {
		r, err = recording.Anonymize(r)
	}
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the incident
	}
	return recording.Encode(r) //nolint:wrapcheck // it says what was done
}

func events(runs []audit.Run) int {
	n := 0
	for _, r := range runs {
		n += len(r.Events)
	}
	return n
}
