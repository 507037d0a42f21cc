package rules

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"stanch/sensors"
)

// kindRules are the rules on one kind of event, with how many events they saw.
type kindRules struct {
	rules []*Rule
	count counters
}

func (s *Set) index(r *Rule) {
	if s.byKind[r.On] == nil {
		s.byKind[r.On] = &kindRules{}
	}
	s.byKind[r.On].rules = append(s.byKind[r.On].rules, r)
}

// fires tells whether a rule fires on an event, and if not, which exception kept it. An exception that cannot be
// evaluated excepts nothing: nobody silences a rule by breaking it.
func (r *Rule) fires(v *env) (fired bool, by *Exception, err error) {
	holds, err := r.condition.holds(v)
	if err != nil || !holds {
		return false, nil, err
	}
	for _, exception := range r.Exceptions {
		excepted, failed := exception.excepts(v)
		if excepted {
			return false, exception, nil
		}
		if failed != nil {
			err = fmt.Errorf("the exception at %s: %w", exception.At, failed)
		}
	}
	return true, nil, err
}

// Evaluate gives the detections of one event. A rule that fails on an event does not keep others from it; the
// errors of all are returned beside what fired.
func (s *Set) Evaluate(event sensors.Event) ([]sensors.Detection, []error) {
	candidates := s.byKind[event.Kind]
	if candidates == nil {
		return nil, nil
	}
	v, ok := s.scratch.Get().(*env)
	if !ok {
		v = newEnv()
	}
	v.set(event)
	timed := candidates.count.seen.Add(1)%sampleEvery == 1
	var out []sensors.Detection
	var errs []error
	for _, r := range candidates.rules {
		var begun time.Time
		if timed {
			begun = time.Now()
		}
		fired, by, err := r.fires(v)
		if timed {
			r.count.sampled.Add(1)
			r.count.nanos.Add(uint64(time.Since(begun))) //nolint:gosec // time goes on
		}
		switch {
		case fired:
			r.count.fired.Add(1)
			out = append(out, r.detection(event))
		case by != nil:
			r.count.excepted.Add(1)
		}
		if err != nil {
			r.count.failed.Add(1)
			errs = append(errs, fmt.Errorf("rule %s on event %s: %w", r.Name, event.ID, err))
		}
	}
	s.scratch.Put(v)
	return out, errs
}

func (r *Rule) detection(event sensors.Event) sensors.Detection {
	sum := sha256.Sum256([]byte(event.ID + "\x00" + r.Name))
	severity, reasons := r.weigh(cmp.Or(event.Container.Pod.Namespace, event.Audit.Namespace))
	return sensors.Detection{
		ID: hex.EncodeToString(sum[:12]), Rule: r.Name, Title: r.Title, Severity: severity, Confidence: r.Confidence,
		Objective: r.Objective, Technique: r.Technique, Reasons: append([]string{r.Reason}, reasons...), Source: "stanch",
		Time: event.Time, Node: event.Node, Event: event,
	}
}

// weigh gives the severity in a namespace, and sentences that say why it, or the confidence, is not the rule's own.
func (r *Rule) weigh(namespace string) (severity sensors.Severity, reasons []string) {
	severity = r.Severity
	in, special := r.Namespaces.Of(namespace)
	if special {
		severity = in
	}
	var by *Override // whose severities are in force
	for _, o := range r.Overrides {
		if o.Severity != "" || o.Namespaces != nil {
			by = o
		}
		if o.Confidence != nil && *o.Confidence != r.written.confidence {
			reasons = append(reasons, because(fmt.Sprintf("The confidence was %s from %.2f to %.2f by the override at %s", way(*o.Confidence > r.written.confidence), r.written.confidence, r.Confidence, o.At), o))
		}
	}
	switch {
	case by != nil && severity != r.written.severity:
		where := ""
		if special {
			where = " in the namespace " + namespace
		}
		reasons = append(reasons, because(fmt.Sprintf("The severity was %s%s from %s to %s by the override at %s", way(severity.Rank() > r.written.severity.Rank()), where, r.written.severity, severity, by.At), by))
	case special && severity != r.written.severity:
		reasons = append(reasons, fmt.Sprintf("In the namespace %s the rule's severity is %s instead of %s.", namespace, severity, r.written.severity))
	}
	return severity, reasons
}

func way(up bool) string {
	if up {
		return "raised"
	}
	return "lowered"
}

func because(sentence string, o *Override) string {
	if o.Because == "" {
		return sentence + "."
	}
	return sentence + ": " + o.Because
}
