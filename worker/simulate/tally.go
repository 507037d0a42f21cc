package simulate

import (
	"fmt"
	"math"
	"slices"
)

// Tally is what a corpus sums up to. It has one size for any number of recordings.
type Tally struct {
	Incidents    int            `json:"incidents"`
	Failed       int            `json:"failed"` // could not be simulated to the end
	Contained    int            `json:"contained"`
	Containments int            `json:"containments"`
	Questions    int            `json:"questions"`
	Asked        int            `json:"asked"`    // incidents in which people would be asked
	Assumed      int            `json:"assumed"`  // incidents with answers that are not in the recording
	Missing      int            `json:"missing"`  // answers that are not in the recordings
	Untouched    int            `json:"no_match"` // no playbook matches
	Activities   int            `json:"activities"`
	Outcomes     map[string]int `json:"outcomes"` // of steps
	Playbooks    map[string]int `json:"playbooks"`
	// Containment is how long it takes to the first containment.
	Containment Times `json:"first_containment"`
	// Changed and ByKind are of incidents, with a baseline.
	Changed int             `json:"changed"`
	ByKind  map[string]Kind `json:"by_kind,omitempty"`
	against bool
}

// Kind is the changes of one kind.
type Kind struct {
	Incidents int      `json:"incidents"`
	First     []string `json:"first"` // the first recordings of it
}

// firstOf is how many recordings are named for each kind of change.
const firstOf = 5

// NewTally is a tally of nothing; against says that there is a baseline.
func NewTally(against bool) *Tally {
	return &Tally{Outcomes: map[string]int{}, Playbooks: map[string]int{}, ByKind: map[string]Kind{}, against: against}
}

// Add counts one outcome.
func (t *Tally) Add(o Outcome) {
	r := o.Result
	t.Incidents++
	if r.Error != "" {
		t.Failed++
	}
	t.Containments += len(r.Effects)
	t.Questions += len(r.Questions)
	t.Missing += len(r.Missing)
	t.Activities += r.Activities
	if r.FirstContainmentMS != nil {
		t.Contained++
		t.Containment.add(*r.FirstContainmentMS)
	}
	if len(r.Questions) > 0 {
		t.Asked++
	}
	if len(r.Missing) > 0 {
		t.Assumed++
	}
	if len(r.Playbooks) == 0 && r.Error == "" {
		t.Untouched++
	}
	for _, s := range r.Steps {
		t.Outcomes[string(s.Outcome)]++
	}
	for _, p := range r.Playbooks {
		t.Playbooks[p]++
	}
	if o.Change == nil {
		return
	}
	t.Changed++
	for _, name := range o.Change.Kinds {
		k := t.ByKind[name]
		k.Incidents++
		if len(k.First) < firstOf {
			k.First = append(k.First, r.Recording)
		}
		t.ByKind[name] = k
	}
}

// Summary is the tally in a sentence.
func (t *Tally) Summary() string {
	text := fmt.Sprintf("this edit changes %d of %s", t.Changed, plural(t.Incidents, "incident", "incidents"))
	if !t.against {
		text = fmt.Sprintf("%s: %s, %s", plural(t.Incidents, "incident", "incidents"), plural(t.Containments, "containment", "containments"), plural(t.Questions, "question", "questions"))
		if t.Missing > 0 {
			text += fmt.Sprintf("; %d answers are not in the recordings and were assumed", t.Missing)
		}
	}
	if t.Failed > 0 {
		text += fmt.Sprintf("; %d could not be simulated to the end", t.Failed)
	}
	return text
}

// Times are durations in bins that grow by a tenth, so that percentiles need no list of them.
type Times struct {
	Bins map[int]int `json:"-"`
	P50  int64       `json:"p50_ms"`
	P90  int64       `json:"p90_ms"`
	Max  int64       `json:"max_ms"`
	n    int
}

const growth = 1.1

func (t *Times) add(v int64) {
	if t.Bins == nil {
		t.Bins = map[int]int{}
	}
	t.n++
	t.Bins[bin(v)]++
	t.Max = max(t.Max, v)
	t.P50, t.P90 = t.at(0.5), t.at(0.9)
}

func bin(v int64) int {
	if v <= 0 {
		return 0
	}
	return 1 + int(math.Log(float64(v))/math.Log(growth))
}

// at is the upper end of the bin in which the share p of all lies.
func (t *Times) at(p float64) int64 {
	bins := make([]int, 0, len(t.Bins))
	for b := range t.Bins {
		bins = append(bins, b)
	}
	slices.Sort(bins)
	left := int(math.Ceil(p * float64(t.n)))
	for _, b := range bins {
		if left -= t.Bins[b]; left <= 0 {
			if b == 0 {
				return 0
			}
			return min(t.Max, int64(math.Pow(growth, float64(b))))
		}
	}
	return t.Max
}
