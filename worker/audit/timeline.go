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

// timelineBuilder builds the timeline of one incident from its runs.
type timelineBuilder struct {
	options     Options
	timeline    *Timeline
	targetNames map[string]string // by target id
	// correlationInputs are the rules that matched, for the confidence.
	correlationInputs map[string]playbooks.CorrelationInput
	seenDetections    map[string]bool // by detection id
	personsByName     map[string]*Person
	configHashes      map[string]bool
	effectsByLease    map[string]*ContainmentEffect // by lease id
	// storedIncident is the incident's own summary, for comparison only.
	storedIncident *playbooks.Incident
	// playbookReportRefs are the events with the reports of playbooks to the incident, by run.
	playbookReportRefs map[string]EventRef
	castVotes          []provedVote
}

// BuildTimeline reconstructs the timeline. It never fails: Problems lists what could not be read.
func BuildTimeline(runs []WorkflowRun, o Options) Timeline {
	t := newTimelineBuilder(runs, o)
	return *t.timeline
}

func newTimelineBuilder(runs []WorkflowRun, o Options) *timelineBuilder {
	t := &timelineBuilder{
		options: o, targetNames: map[string]string{}, correlationInputs: map[string]playbooks.CorrelationInput{},
		seenDetections: map[string]bool{}, personsByName: map[string]*Person{}, configHashes: map[string]bool{},
		effectsByLease: map[string]*ContainmentEffect{}, playbookReportRefs: map[string]EventRef{},
		timeline: &Timeline{
			Version: FormatVersion, IncidentID: o.IncidentID, Status: "open", Source: o.HistorySource, Reasons: []string{},
			ConfigHashes: []string{}, Playbooks: []PlaybookRecord{},
			People: []Person{}, Effects: []ContainmentEffect{}, Evidence: []EvidenceRecord{},
			ManifestRecords: []ManifestRecord{}, Entries: []TimelineEntry{}, Histories: []HistoryRecord{},
			Problems: []Difference{},
		},
	}
	// Incidents come first because they contain the names of targets, then the order of their starts.
	order := map[string]int{TypeIncident: -3, TypePlaybook: -2, TypeLease: -1}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, func(a, b WorkflowRun) int {
		if a.WorkflowType != b.WorkflowType {
			return order[a.WorkflowType] - order[b.WorkflowType]
		}
		return startTime(a).Compare(startTime(b))
	})
	for i := range runs {
		r := &historyReader{
			timelineBuilder: t, run: &runs[i], scheduledActivities: map[int64]*activityTask{},
			decidedPlans: map[string]bool{},
		}
		t.timeline.Histories = append(t.timeline.Histories, HistoryRecord{
			WorkflowID: runs[i].WorkflowID,
			RunID:      runs[i].RunID, WorkflowType: runs[i].WorkflowType, EventCount: len(runs[i].Events),
			IsOpen: runs[i].IsOpen,
		})
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

// addOtherWorkflow reports only failures of workflows of other types, which only display the incident.
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

// addEventGaps reports missing events: the events of a history are numbered from 1 without gaps.
func (r *historyReader) addEventGaps() {
	for i, e := range r.run.Events {
		if e.GetEventId() != int64(i+1) {
			r.addProblem(e, "the history of %s has event %d instead of event %d; events are missing", r.run.WorkflowID,
				e.GetEventId(), i+1)
			return
		}
	}
	if len(r.run.Events) == 0 {
		r.timeline.Problems = append(r.timeline.Problems, Difference{Description: "the history of " + r.run.WorkflowID +
			" is empty", EventRef: EventRef{WorkflowID: r.run.WorkflowID, RunID: r.run.RunID}})
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
	return slices.Index([]EntryKind{
		KindOpened, KindDetection, KindPlaybook, KindContext, KindEvidence, KindDecision,
		KindApprovalRequest, KindVote, KindApprovalResult, KindGrant, KindEffect,
	}, k)
}

// correlateDetections recomputes the correlation of the detections, in the order of their arrival.
func (t *timelineBuilder) correlateDetections() {
	signals := make([]playbooks.CorrelationInput, 0, len(t.correlationInputs))
	detected := slices.ContainsFunc(slices.Collect(maps.Values(t.correlationInputs)),
		func(s playbooks.CorrelationInput) bool { return s.Rule != sensors.RuleManualRequest })
	for _, key := range slices.Sorted(maps.Keys(t.correlationInputs)) {
		if detected && t.correlationInputs[key].Rule == sensors.RuleManualRequest {
			continue // a manual request says nothing about the attacker's objective
		}
		signals = append(signals, t.correlationInputs[key])
	}
	v := playbooks.Correlate(signals)
	t.timeline.Objective, t.timeline.Severity, t.timeline.Confidence = v.Objective, v.Severity, v.Confidence
	t.timeline.Reasons = append(t.timeline.Reasons, v.Reasons...)
}

// addPersonAction adds a person's action and authentication.
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

// addGrantees adds the people of a grant, given as "NAME (AUTHENTICATION)".
func (t *timelineBuilder) addGrantees(people []string, did string) string {
	var names []string
	for _, p := range people {
		name, proved, _ := strings.Cut(strings.TrimSuffix(p, ")"), " (")
		t.addPersonAction(name, proved, did)
		names = append(names, p)
	}
	return strings.Join(names, ", ")
}

// targetName returns the name of a target.
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

// decodeUnverified decodes a statement's body without verifying the signature.
func decodeUnverified(
	s attestation.Envelope,
	out any,
) error {
	return json.Unmarshal(s.Payload, out)
} //nolint:wrapcheck // shown as unverified

func startedAttributes(e *historypb.HistoryEvent) *historypb.WorkflowExecutionStartedEventAttributes {
	return e.GetWorkflowExecutionStartedEventAttributes()
}

// shortHash returns the first 12 characters of a hash, for sentences; the details contain the complete hash.
func shortHash(s string) string { return s[:min(12, len(s))] }

func pluralize(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// DecodeUnverified decodes a statement's body without verifying the signature: for records only, never for decisions.
func DecodeUnverified(s attestation.Envelope, out any) error { return decodeUnverified(s, out) }
