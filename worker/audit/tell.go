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

// teller gathers the story of one incident from its runs.
type teller struct {
	o     Options
	story *Story
	names map[string]string // of targets, by their id
	// signals are the rules that fired, for the confidence.
	signals map[string]playbooks.CorrelationInput
	seen    map[string]bool // detections by id
	people  map[string]*Person
	configs map[string]bool
	effects map[string]*Effect // by lease
	// stored is what the incident wrote down about itself: compared, never told.
	stored *playbooks.Incident
	// reports are what playbooks told the incident, by run; facts what their own histories say.
	reports map[string]Ref
	votes   []castVote
}

// Tell tells the story. It never fails: what cannot be read is named in Problems.
func Tell(runs []Run, o Options) Story {
	t := newTeller(runs, o)
	return *t.story
}

func newTeller(runs []Run, o Options) *teller {
	t := &teller{
		o: o, names: map[string]string{}, signals: map[string]playbooks.CorrelationInput{}, seen: map[string]bool{}, people: map[string]*Person{}, configs: map[string]bool{},
		effects: map[string]*Effect{}, reports: map[string]Ref{},
		story: &Story{
			Version: Version, Incident: o.Incident, Status: "open", Source: o.Source, Reasons: []string{}, Configs: []string{}, Playbooks: []PlaybookFact{},
			People: []Person{}, Effects: []Effect{}, Evidence: []EvidenceFact{}, Acts: []ActFact{}, Lines: []Line{}, Histories: []HistoryFact{}, Problems: []Difference{},
		},
	}
	// Incidents first: they know the names of the targets. Then in the order in which they began.
	order := map[string]int{TypeIncident: -3, TypePlaybook: -2, TypeLease: -1}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, func(a, b Run) int {
		if a.Type != b.Type {
			return order[a.Type] - order[b.Type]
		}
		return began(a).Compare(began(b))
	})
	for i := range runs {
		r := &reader{teller: t, run: &runs[i], activities: map[int64]*task{}, plans: map[string]bool{}}
		t.story.Histories = append(t.story.Histories, HistoryFact{Workflow: runs[i].Workflow, Run: runs[i].ID, Type: runs[i].Type, Events: len(runs[i].Events), Open: runs[i].Open})
		r.gaps()
		switch runs[i].Type {
		case TypeIncident:
			r.incident()
		case TypePlaybook:
			r.playbook()
		case TypeLease:
			r.lease()
		default:
			r.other()
		}
	}
	t.finish()
	return t
}

// other tells of a workflow of another type only what went wrong: a thread shows what the story tells.
func (r *reader) other() {
	for _, e := range r.run.Events {
		r.common(e)
	}
}

func began(r Run) time.Time {
	if len(r.Events) == 0 {
		return time.Time{}
	}
	return r.Events[0].GetEventTime().AsTime()
}

// gaps names events that are missing from a history: they are numbered from 1 without one left out.
func (r *reader) gaps() {
	for i, e := range r.run.Events {
		if e.GetEventId() != int64(i+1) {
			r.problem(e, "the history of %s has event %d where event %d belongs: some are missing", r.run.Workflow, e.GetEventId(), i+1)
			return
		}
	}
	if len(r.run.Events) == 0 {
		r.story.Problems = append(r.story.Problems, Difference{What: "the history of " + r.run.Workflow + " is empty", Ref: Ref{Workflow: r.run.Workflow, Run: r.run.ID}})
	}
}

func (t *teller) finish() {
	s := t.story
	slices.SortStableFunc(s.Lines, func(a, b Line) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		if a.Workflow == b.Workflow && a.Run == b.Run {
			return cmp.Compare(a.Event, b.Event)
		}
		return cmp.Compare(rank(a.Kind), rank(b.Kind))
	})
	s.Configs = slices.Sorted(maps.Keys(t.configs))
	for _, name := range slices.Sorted(maps.Keys(t.people)) {
		s.People = append(s.People, *t.people[name])
	}
	for _, id := range slices.Sorted(maps.Keys(t.effects)) {
		s.Effects = append(s.Effects, *t.effects[id])
	}
	slices.SortStableFunc(s.Effects, func(a, b Effect) int { return a.AppliedAt.Compare(b.AppliedAt) })
	t.weigh()
}

func rank(k Kind) int {
	return slices.Index([]Kind{KindOpened, KindDetection, KindPlaybook, KindContext, KindEvidence, KindDecision, KindQuestion, KindVote, KindAnswer, KindGrant, KindEffect}, k)
}

// weigh recomputes what the detections say together, in the order in which they came.
func (t *teller) weigh() {
	signals := make([]playbooks.CorrelationInput, 0, len(t.signals))
	detected := slices.ContainsFunc(slices.Collect(maps.Values(t.signals)), func(s playbooks.CorrelationInput) bool { return s.Rule != sensors.RuleManualRequest })
	for _, key := range slices.Sorted(maps.Keys(t.signals)) {
		if detected && t.signals[key].Rule == sensors.RuleManualRequest {
			continue // what people ask for says nothing of what an attacker is after
		}
		signals = append(signals, t.signals[key])
	}
	v := playbooks.Correlate(signals)
	t.story.Objective, t.story.Severity, t.story.Confidence = v.Objective, v.Severity, v.Confidence
	t.story.Reasons = append(t.story.Reasons, v.Reasons...)
}

// person enters who did something, and how they were proved.
func (t *teller) person(name, proved, did string) {
	p := t.people[name]
	if p == nil {
		p = &Person{Name: name}
		t.people[name] = p
	}
	if proved != "" && !slices.Contains(p.Proved, proved) {
		p.Proved = append(p.Proved, proved)
	}
	if did != "" && !slices.Contains(p.Did, did) && len(p.Did) < 50 {
		p.Did = append(p.Did, did)
	}
}

// grantees enters the people of a grant, whose words are "name (how proved)".
func (t *teller) grantees(people []string, did string) string {
	var names []string
	for _, p := range people {
		name, proved, _ := strings.Cut(strings.TrimSuffix(p, ")"), " (")
		t.person(name, proved, did)
		names = append(names, p)
	}
	return strings.Join(names, ", ")
}

// targetName is a target as people say it.
func (t *teller) targetName(id string) string {
	if name, ok := t.names[id]; ok {
		return name
	}
	return display.ShortTargetID(id)
}

func (t *teller) learn(target playbooks.Target) {
	if target.UID != "" {
		t.names[target.ID()] = target.String()
	}
}

// unsigned reads a statement's body without believing it.
func unsigned(s attestation.Envelope, out any) error { return json.Unmarshal(s.Payload, out) } //nolint:wrapcheck // what it says is shown as unproved

func input(e *historypb.HistoryEvent) *historypb.WorkflowExecutionStartedEventAttributes {
	return e.GetWorkflowExecutionStartedEventAttributes()
}

// digest shortens a hash for a sentence; the whole of it stands in the details.
func digest(s string) string { return s[:min(12, len(s))] }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Unsigned reads a statement's body without believing it: for what records it and decides nothing by it.
func Unsigned(s attestation.Envelope, out any) error { return unsigned(s, out) }
