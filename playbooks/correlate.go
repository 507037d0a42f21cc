package playbooks

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/sensors"
	"stanch/sensors/duration"
)

// CorrelationInput is what correlation needs to know of a detection. Guards build it from attestations alone, so that a
// confidence that permits an automatic effect rests on nothing that was not attested.
type CorrelationInput struct {
	Rule       string
	Objective  sensors.Objective
	Confidence float64
	Severity   sensors.Severity
	// Title and At make better reasons; without them the rule's name and no order is told.
	Title      string
	DetectedAt time.Time
	// Reason is the first of the detection's reasons, a sentence.
	Reason string
}

// Correlation is what the detections say together.
type Correlation struct {
	Objective  sensors.Objective
	Severity   sensors.Severity
	Confidence float64
	Reasons    []string
}

// maxConfidence: nothing that a machine concludes is certain.
const maxConfidence = 0.99

// Correlate weighs signals: repetition of a rule counts once, several rules of one objective count as the surest
// of them, and each further objective adds what is left of the doubt (1-(1-a)(1-b)…).
func Correlate(signals []CorrelationInput) Correlation {
	best := map[sensors.Objective]CorrelationInput{}
	v := Correlation{}
	for _, s := range signals {
		if b, ok := best[s.Objective]; !ok || s.Confidence > b.Confidence || (s.Confidence == b.Confidence && s.Rule < b.Rule) {
			best[s.Objective] = s
		}
		if s.Severity.Rank() > v.Severity.Rank() {
			v.Severity = s.Severity
		}
	}
	var order []sensors.Objective
	for _, o := range sensors.Objectives {
		if _, ok := best[o]; ok {
			order = append(order, o)
		}
	}
	// Objectives that a foreign source made up come last, by name.
	var foreign []sensors.Objective
	for o := range best {
		if !slices.Contains(order, o) {
			foreign = append(foreign, o)
		}
	}
	slices.Sort(foreign)
	order = append(order, foreign...)

	doubt := 1.0
	var names []string
	for _, o := range order {
		s := best[o]
		doubt *= 1 - min(max(s.Confidence, 0), 1)
		if v.Objective == "" || s.Confidence > best[v.Objective].Confidence {
			v.Objective = o
		}
		names = append(names, string(o))
		v.Reasons = append(v.Reasons, describeStrongestRule(s))
	}
	v.Confidence = min(1-doubt, maxConfidence)
	if story := describeObjectiveOrder(best); story != "" {
		v.Reasons = append(v.Reasons, story)
	}
	if len(order) > 1 {
		v.Reasons = append(v.Reasons, fmt.Sprintf("%d tactics in one window (%s) are more than one that is repeated: together %.2f.", len(order), strings.Join(names, ", "), v.Confidence))
	}
	return v
}

// describeStrongestRule says what the surest rule of an objective says by itself.
func describeStrongestRule(s CorrelationInput) string {
	name := s.Title
	if name == "" {
		name = "The rule " + s.Rule
	}
	text := fmt.Sprintf("%s: by itself %.2f sure of %s.", name, s.Confidence, s.Objective)
	if s.Reason != "" {
		text += " " + s.Reason
	}
	return text
}

// describeObjectiveOrder tells in which order the objectives appeared, where that is known of two at least.
func describeObjectiveOrder(best map[sensors.Objective]CorrelationInput) string {
	var all []CorrelationInput
	for _, s := range best {
		if !s.DetectedAt.IsZero() && s.Title != "" {
			all = append(all, s)
		}
	}
	if len(all) < 2 {
		return ""
	}
	slices.SortFunc(all, func(a, b CorrelationInput) int {
		return cmp.Or(a.DetectedAt.Compare(b.DetectedAt), cmp.Compare(a.Rule, b.Rule))
	})
	var steps []string
	for _, s := range all {
		steps = append(steps, fmt.Sprintf("%s (%s)", s.Title, s.Objective))
	}
	took := duration.Format(all[len(all)-1].DetectedAt.Sub(all[0].DetectedAt).Round(time.Second))
	return fmt.Sprintf("They form a chain, within %s: %s.", took, strings.Join(steps, " → "))
}
