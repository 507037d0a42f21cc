package audit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	historypb "go.temporal.io/api/history/v1"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
)

// timelineBuilder gathers the story of one incident from its runs.
type timelineBuilder struct {
	options     Options
	timeline    *Timeline
	targetNames map[string]string // of targets, by their id
	// correlationInputs are the rules that fired, for the confidence.
	correlationInputs map[string]playbooks.CorrelationInput
	seenDetections    map[string]bool // detections by id
	personsByName     map[string]*Person
	configHashes      map[string]bool
	effectsByLease    map[string]*ContainmentEffect // by lease
	// storedIncident is what the incident wrote down about itself: compared, never told.
	storedIncident *playbooks.Incident
	// playbookReportRefs are what playbooks told the incident, by run; facts what their own histories say.
	playbookReportRefs map[string]EventRef
	castVotes          []provedVote
}

// BuildTimeline tells the story. It never fails: what cannot be read is named in Problems.
func BuildTimeline(runs []WorkflowRun, o Options) Timeline {
	t := newTimelineBuilder(runs, o)
	return *t.timeline
}

func newTimelineBuilder(runs []WorkflowRun, o Options) *timelineBuilder {
	t := &timelineBuilder{
		options: o, targetNames: map[string]string{}, correlationInputs: map[string]playbooks.CorrelationInput{}, seenDetections: map[string]bool{}, personsByName: map[string]*Person{}, configHashes: map[string]bool{},
		effectsByLease: map[string]*ContainmentEffect{}, playbookReportRefs: map[string]EventRef{},
		timeline: &Timeline{
			Version: FormatVersion, IncidentID: o.IncidentID, Status: "open", Source: o.HistorySource, Reasons: []string{}, ConfigHashes: []string{}, Playbooks: []PlaybookRecord{},
			People: []Person{}, Effects: []ContainmentEffect{}, Evidence: []EvidenceRecord{}, ManifestRecords: []ManifestRecord{}, Entries: []TimelineEntry{}, Histories: []HistoryRecord{}, Problems: []Difference{},
		},
	}
	// Incidents first: they know the names of the targets. Then in the order in which they began.
	order := map[string]int{TypeIncident: -3, TypePlaybook: -2, TypeLease: -1}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, func(a, b WorkflowRun) int {
		if a.WorkflowType != b.WorkflowType {
			return order[a.WorkflowType] - order[b.WorkflowType]
		}
		return startTime(a).Compare(startTime(b))
	})
	for i := range runs {
		r := &historyReader{timelineBuilder: t, run: &runs[i], scheduledActivities: map[int64]*activityTask{}, decidedPlans: map[string]bool{}}
		t.timeline.Histories = append(t.timeline.Histories, HistoryRecord{WorkflowID: runs[i].WorkflowID, RunID: runs[i].RunID, WorkflowType: runs[i].WorkflowType, EventCount: len(runs[i].Events), IsOpen: runs[i].IsOpen})
		r.addEventGaps()
		switch runs[i].WorkflowType {
		case TypeIncident:
			r.readIncident()
		case TypePlaybook:
			r.readPlaybook()
		case TypeLease:
			r.readLease()
		default:
			r.addOtherWorkflow()
		}
	}
	t.finishTimeline()
	return t
}

// addOtherWorkflow tells of a workflow of another type only what went wrong: a thread shows what the story tells.
func (r *historyReader) addOtherWorkflow() {
	for _, e := range r.run.Events {
		r.addFailureEvents(e)
	}
}

func startTime(r WorkflowRun) time.Time {
	if len(r.Events) == 0 {
		return time.Time{}
	}
	return r.Events[0].GetEventTime().AsTime()
}

// addEventGaps names events that are missing from a history: they are numbered from 1 without one left out.
func (r *historyReader) addEventGaps() {
	for i, e := range r.run.Events {
		if e.GetEventId() != int64(i+1) {
			r.addProblem(e, "the history of %s has event %d where event %d belongs: some are missing", r.run.WorkflowID, e.GetEventId(), i+1)
			return
		}
	}
	if len(r.run.Events) == 0 {
		r.timeline.Problems = append(r.timeline.Problems, Difference{Description: "the history of " + r.run.WorkflowID + " is empty", EventRef: EventRef{WorkflowID: r.run.WorkflowID, RunID: r.run.RunID}})
	}
}

func (t *timelineBuilder) finishTimeline() {
	s := t.timeline
	slices.SortStableFunc(s.Entries, func(a, b TimelineEntry) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		if a.WorkflowID == b.WorkflowID && a.RunID == b.RunID {
			return cmp.Compare(a.EventID, b.EventID)
		}
		return cmp.Compare(entryOrder(a.Kind), entryOrder(b.Kind))
	})
	s.ConfigHashes = slices.Sorted(maps.Keys(t.configHashes))
	for _, name := range slices.Sorted(maps.Keys(t.personsByName)) {
		s.People = append(s.People, *t.personsByName[name])
	}
	for _, id := range slices.Sorted(maps.Keys(t.effectsByLease)) {
		s.Effects = append(s.Effects, *t.effectsByLease[id])
	}
	slices.SortStableFunc(s.Effects, func(a, b ContainmentEffect) int { return a.AppliedAt.Compare(b.AppliedAt) })
	t.correlateDetections()
}

func entryOrder(k EntryKind) int {
	return slices.Index([]EntryKind{KindOpened, KindDetection, KindPlaybook, KindContext, KindEvidence, KindDecision, KindApprovalRequest, KindVote, KindApprovalResult, KindGrant, KindEffect}, k)
}

// correlateDetections recomputes what the detections say together, in the order in which they came.
func (t *timelineBuilder) correlateDetections() {
	signals := make([]playbooks.CorrelationInput, 0, len(t.correlationInputs))
	detected := slices.ContainsFunc(slices.Collect(maps.Values(t.correlationInputs)), func(s playbooks.CorrelationInput) bool { return s.Rule != sensors.RuleManualRequest })
	for _, key := range slices.Sorted(maps.Keys(t.correlationInputs)) {
		if detected && t.correlationInputs[key].Rule == sensors.RuleManualRequest {
			continue // what people ask for says nothing of what an attacker is after
		}
		signals = append(signals, t.correlationInputs[key])
	}
	v := playbooks.Correlate(signals)
	t.timeline.Objective, t.timeline.Severity, t.timeline.Confidence = v.Objective, v.Severity, v.Confidence
	t.timeline.Reasons = append(t.timeline.Reasons, v.Reasons...)
}

// addPersonAction enters who did something, and how they were proved.
func (t *timelineBuilder) addPersonAction(name, proved, did string) {
	p := t.personsByName[name]
	if p == nil {
		p = &Person{Name: name}
		t.personsByName[name] = p
	}
	if proved != "" && !slices.Contains(p.AuthenticatedBy, proved) {
		p.AuthenticatedBy = append(p.AuthenticatedBy, proved)
	}
	if did != "" && !slices.Contains(p.Actions, did) && len(p.Actions) < 50 {
		p.Actions = append(p.Actions, did)
	}
}

// addGrantees enters the people of a grant, whose words are "name (how proved)".
func (t *timelineBuilder) addGrantees(people []string, did string) string {
	var names []string
	for _, p := range people {
		name, proved, _ := strings.Cut(strings.TrimSuffix(p, ")"), " (")
		t.addPersonAction(name, proved, did)
		names = append(names, p)
	}
	return strings.Join(names, ", ")
}

// targetName is a target as people say it.
func (t *timelineBuilder) targetName(id string) string {
	if name, ok := t.targetNames[id]; ok {
		return name
	}
	return display.ShortTargetID(id)
}

func (t *timelineBuilder) rememberTarget(target playbooks.Target) {
	if target.UID != "" {
		t.targetNames[target.ID()] = target.String()
	}
}

// decodeUnverified reads a statement's body without believing it.
func decodeUnverified(s attestation.Envelope, out any) error { return json.Unmarshal(s.Payload, out) } //nolint:wrapcheck // what it says is shown as unproved

func startedAttributes(e *historypb.HistoryEvent) *historypb.WorkflowExecutionStartedEventAttributes {
	return e.GetWorkflowExecutionStartedEventAttributes()
}

// shortHash shortens a hash for a sentence; the whole of it stands in the details.
func shortHash(s string) string { return s[:min(12, len(s))] }

func pluralize(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// DecodeUnverified reads a statement's body without believing it: for what records it and decides nothing by it.
func DecodeUnverified(s attestation.Envelope, out any) error { return decodeUnverified(s, out) }
