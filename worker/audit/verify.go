package audit

import (
	"fmt"
	"math"
	"slices"

	"stanch/playbooks"
)

// VerifyTimeline reconstructs the timeline and compares it with the incident's stored summary. What cannot be decrypted
// or proved is in the timeline's problems and among the differences.
func VerifyTimeline(runs []WorkflowRun, o Options) (Timeline, []Difference) {
	t := newTimelineBuilder(runs, o)
	return *t.timeline, slices.Concat(t.timeline.Problems, t.compareWithStored())
}

// compareWithStored returns the differences between the incident's stored summary and its histories.
func (t *timelineBuilder) compareWithStored() []Difference {
	stored, s := t.storedIncident, t.timeline
	if stored == nil {
		return nil // the incident is open: nothing is stored yet
	}
	var out []Difference
	at := EventRef{}
	for _, l := range s.Entries {
		if l.Kind == KindClosed {
			at = l.EventRef
		}
	}
	differ := func(format string, args ...any) {
		out = append(out, Difference{Description: "the stored incident differs from its history: " + fmt.Sprintf(format,
			args...), EventRef: at})
	}
	if stored.ID != s.IncidentID {
		differ("its ID is %s, but the history is for %s", stored.ID, s.IncidentID)
	}
	if stored.TotalDetections != s.DetectionCount {
		differ("it has %d detections, but the history has %d", stored.TotalDetections, s.DetectionCount)
	}
	if len(stored.Detections) < 50 && (stored.Objective != s.Objective ||
		math.Abs(stored.Confidence-s.Confidence) > 1e-9) {
		differ("it has the objective %s with confidence %.2f, but the detections have %s with %.2f", stored.Objective,
			stored.Confidence, s.Objective, s.Confidence)
	}
	comparePlaybooks(stored, s, differ)
	t.compareLeases(stored, differ)
	compareEvidence(stored, s, differ)
	return out
}

// differFunc records a difference of the stored incident.
type differFunc func(format string, args ...any)

func comparePlaybooks(stored *playbooks.Incident, s *Timeline, differ differFunc) {
	for _, p := range stored.Playbooks {
		i := slices.IndexFunc(s.Playbooks, func(f PlaybookRecord) bool { return f.PlaybookWorkflowID == p.WorkflowID })
		if i < 0 {
			differ("it lists the run %s, which has no history", p.WorkflowID)
			continue
		}
		if p.SourceHash != "" && p.SourceHash != s.Playbooks[i].SourceHash {
			differ("it lists playbook %s with SHA-256 %s, but the playbook that ran has %s", p.Playbook, shortHash(p.SourceHash),
				shortHash(s.Playbooks[i].SourceHash))
		}
		if !slices.EqualFunc(p.Steps, s.Playbooks[i].Steps, func(a, b playbooks.StepReport) bool {
			return a.Step == b.Step && a.Action == b.Action && a.Target == b.Target && a.Outcome == b.Outcome &&
				a.Reason == b.Reason && a.LeaseID == b.LeaseID
		}) {
			differ("the steps of playbook %s are not those that its run reported", p.Playbook)
		}
	}
}

func (t *timelineBuilder) compareLeases(stored *playbooks.Incident, differ differFunc) {
	for _, l := range stored.Leases {
		effect := t.effectsByLease[l.ID]
		if effect == nil {
			differ("it lists the lease %s, which has no history", l.ID)
			continue
		}
		if undone := effect.State == "undone"; l.Undone && !undone && effect.UndoneEvent == nil {
			differ("it reports lease %s as undone, but the lease's history reports it as %s", l.ID, effect.State)
		}
	}
}

func compareEvidence(stored *playbooks.Incident, s *Timeline, differ differFunc) {
	for _, ref := range stored.Evidence {
		if !slices.ContainsFunc(s.Evidence, func(e EvidenceRecord) bool {
			return e.SHA256 == ref.SHA256 && e.Name == ref.Name && e.SizeBytes == ref.SizeBytes
		}) {
			differ("it lists evidence %s with SHA-256 %s, which no activity stored", ref.Name, ref.SHA256)
		}
	}
	for _, e := range s.Evidence {
		if !slices.ContainsFunc(stored.Evidence, func(ref playbooks.EvidenceRef) bool { return e.SHA256 == ref.SHA256 }) {
			differ("it does not list evidence %s with SHA-256 %s", e.Name, e.SHA256)
		}
	}
}
