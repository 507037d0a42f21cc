package simulate

import (
	"fmt"
	"math"
	"slices"
)

// Totals summarizes a corpus. Its size does not depend on the number of recordings.
type Totals struct {
	Incidents              int `json:"incidents"`
	FailedIncidents        int `json:"failed_incidents"` // could not be simulated to their end
	ContainedIncidents     int `json:"contained_incidents"`
	Containments           int `json:"containments"`
	ApprovalRequests       int `json:"approval_requests"`
	IncidentsWithApprovals int `json:"incidents_with_approvals"` // incidents with approval requests
	// incidents with results that are not in the recording
	IncidentsWithAssumptions int            `json:"incidents_with_assumptions"`
	AssumedResults           int            `json:"assumed_results"`         // results that are not in the recordings
	IncidentsWithoutMatch    int            `json:"incidents_without_match"` // no playbook matches
	ActivityCount            int            `json:"activity_count"`
	StepOutcomes             map[string]int `json:"step_outcomes"` // by outcome, number of steps
	PlaybookRuns             map[string]int `json:"playbook_runs"`
	// TimeToContainment is the time to the first containment.
	TimeToContainment DurationHistogram `json:"time_to_containment"`
	// ChangedIncidents and ChangesByKind count incidents, with a baseline.
	ChangedIncidents int                     `json:"changed_incidents"`
	ChangesByKind    map[string]ChangeTotals `json:"changes_by_kind,omitempty"`
	hasBaseline      bool
}

// ChangeTotals counts the changes of one kind.
type ChangeTotals struct {
	Incidents       int      `json:"incidents"`
	FirstRecordings []string `json:"first"` // the first recordings with it
}

// maxNamedRecordings is the maximum number of named recordings for each kind of change.
const maxNamedRecordings = 5

// NewTotals returns empty totals; against means that there is a baseline.
func NewTotals(against bool) *Totals {
	return &Totals{
		StepOutcomes: map[string]int{}, PlaybookRuns: map[string]int{},
		ChangesByKind: map[string]ChangeTotals{}, hasBaseline: against,
	}
}

// AddOutcome counts one outcome.
func (t *Totals) AddOutcome(o RecordingOutcome) {
	r := o.Result
	t.Incidents++
	if r.Error != "" {
		t.FailedIncidents++
	}
	t.Containments += len(r.Effects)
	t.ApprovalRequests += len(r.ApprovalRequests)
	t.AssumedResults += len(r.AssumedResults)
	t.ActivityCount += r.ActivityCount
	if r.FirstContainmentMS != nil {
		t.ContainedIncidents++
		t.TimeToContainment.addDuration(*r.FirstContainmentMS)
	}
	if len(r.ApprovalRequests) > 0 {
		t.IncidentsWithApprovals++
	}
	if len(r.AssumedResults) > 0 {
		t.IncidentsWithAssumptions++
	}
	if len(r.Playbooks) == 0 && r.Error == "" {
		t.IncidentsWithoutMatch++
	}
	for _, s := range r.Steps {
		t.StepOutcomes[string(s.Outcome)]++
	}
	for _, p := range r.Playbooks {
		t.PlaybookRuns[p]++
	}
	if o.Change == nil {
		return
	}
	t.ChangedIncidents++
	for _, name := range o.Change.Kinds {
		k := t.ChangesByKind[name]
		k.Incidents++
		if len(k.FirstRecordings) < maxNamedRecordings {
			k.FirstRecordings = append(k.FirstRecordings, r.RecordingFile)
		}
		t.ChangesByKind[name] = k
	}
}

// Summarize returns the totals in one sentence.
func (t *Totals) Summarize() string {
	text := fmt.Sprintf("this edit changes %d of %s", t.ChangedIncidents, Pluralize(t.Incidents, "incident", "incidents"))
	if !t.hasBaseline {
		text = fmt.Sprintf("%s: %s, %s", Pluralize(t.Incidents, "incident", "incidents"),
			Pluralize(t.Containments, "containment", "containments"), Pluralize(t.ApprovalRequests, "approval request",
				"approval requests"))
		if t.AssumedResults > 0 {
			text += fmt.Sprintf("; %d results are not in the recordings and were assumed", t.AssumedResults)
		}
	}
	if t.FailedIncidents > 0 {
		text += fmt.Sprintf("; %d could not be simulated to the end", t.FailedIncidents)
	}
	return text
}

// DurationHistogram counts durations in bins that grow by a tenth, so that percentiles need no list.
type DurationHistogram struct {
	Bins  map[int]int `json:"-"`
	P50   int64       `json:"p50_ms"`
	P90   int64       `json:"p90_ms"`
	Max   int64       `json:"max_ms"`
	count int
}

const binGrowth = 1.1

func (t *DurationHistogram) addDuration(v int64) {
	if t.Bins == nil {
		t.Bins = map[int]int{}
	}
	t.count++
	t.Bins[binFor(v)]++
	t.Max = max(t.Max, v)
	t.P50, t.P90 = t.percentile(0.5), t.percentile(0.9)
}

func binFor(v int64) int {
	if v <= 0 {
		return 0
	}
	return 1 + int(math.Log(float64(v))/math.Log(binGrowth))
}

// percentile returns the upper end of the bin that contains the fraction p.
func (t *DurationHistogram) percentile(p float64) int64 {
	bins := make([]int, 0, len(t.Bins))
	for b := range t.Bins {
		bins = append(bins, b)
	}
	slices.Sort(bins)
	left := int(math.Ceil(p * float64(t.count)))
	for _, b := range bins {
		if left -= t.Bins[b]; left <= 0 {
			if b == 0 {
				return 0
			}
			return min(t.Max, int64(math.Pow(binGrowth, float64(b))))
		}
	}
	return t.Max
}
