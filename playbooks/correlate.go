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

// CorrelationInput is what correlation uses of a detection. Guards build it from attestations only, so that the
// confidence that permits an automatic effect depends on attested data only.
type CorrelationInput struct {
	Rule       string
	Objective  sensors.Objective
	Confidence float64
	Severity   sensors.Severity
	// Title and DetectedAt improve the reasons. Without them, reasons use the rule's name and omit the order.
	Title      string
	DetectedAt time.Time
	// Reason is the first reason of the detection, one sentence.
	Reason string
}

// Correlation is the combined result of several detections.
type Correlation struct {
	Objective  sensors.Objective
	Severity   sensors.Severity
	Confidence float64
	Reasons    []string
}

// maxConfidence is below 1 because no automatic conclusion is certain.
const maxConfidence = 0.99

// Correlate combines detections. Repetitions of a rule count once; several rules of one objective count as the one with
// the highest confidence; objectives combine as independent evidence: 1-(1-a)(1-b)…, at most 0.99.
func Correlate(signals []CorrelationInput) Correlation {
	best := map[sensors.Objective]CorrelationInput{}
	v := Correlation{}
	for _, s := range signals {
		if b, ok := best[s.Objective]; !ok || s.Confidence > b.Confidence || (s.Confidence == b.Confidence &&
			s.Rule < b.Rule) {
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
	// Objectives that only an external source defines come last, by name.
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
		v.Reasons = append(v.Reasons,
			fmt.Sprintf("%d objectives in one window (%s) raise the confidence to %.2f.", len(order), strings.Join(names, ", "),
				v.Confidence))
	}
	return v
}

// describeStrongestRule returns what the rule with the highest confidence of an objective reports.
func describeStrongestRule(s CorrelationInput) string {
	name := s.Title
	if name == "" {
		name = "The rule " + s.Rule
	}
	text := fmt.Sprintf("%s: this detection alone gives a confidence of %.2f for %s.", name, s.Confidence, s.Objective)
	if s.Reason != "" {
		text += " " + s.Reason
	}
	return text
}

// describeObjectiveOrder returns the order in which the objectives appeared, if the times of at least two are known.
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
