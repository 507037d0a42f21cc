package rules

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"stanch/sensors"
)

// kindRules are the rules for one kind of event, and the number of events that they evaluated.
type kindRules struct {
	rules    []*Rule
	counters counters
}

func (s *Set) indexRule(r *Rule) {
	if s.byKind[r.Kind] == nil {
		s.byKind[r.Kind] = &kindRules{}
	}
	s.byKind[r.Kind].rules = append(s.byKind[r.Kind].rules, r)
}

// evaluate reports whether a rule matches an event, and which exception suppressed it. An exception that fails to
// evaluate suppresses nothing: a broken exception must not disable a rule.
func (r *Rule) evaluate(v *conditionEnv) (fired bool, by *Exception, err error) {
	holds, err := r.compiled.evaluate(v)
	if err != nil || !holds {
		return false, nil, err
	}
	for _, exception := range r.Exceptions {
		excepted, failed := exception.matches(v)
		if excepted {
			return false, exception, nil
		}
		if failed != nil {
			err = fmt.Errorf("the exception at %s: %w", exception.Position, failed)
		}
	}
	return true, nil, err
}

// Evaluate returns the detections of one event. If a rule fails, the other rules are still evaluated, and the errors
// are returned in addition to the detections. It is safe for concurrent use.
func (s *Set) Evaluate(event sensors.Event) ([]sensors.Detection, []error) {
	candidates := s.byKind[event.Kind]
	if candidates == nil {
		return nil, nil
	}
	v, ok := s.envPool.Get().(*conditionEnv)
	if !ok {
		v = newConditionEnv()
	}
	v.setEvent(event)
	timed := candidates.counters.evaluated.Add(1)%timingSampleInterval == 1
	var out []sensors.Detection
	var errs []error
	for _, r := range candidates.rules {
		var begun time.Time
		if timed {
			begun = time.Now()
		}
		fired, by, err := r.evaluate(v)
		if timed {
			r.counters.sampled.Add(1)
			r.counters.sampledNanos.Add(uint64(time.Since(begun)))
		}
		switch {
		case fired:
			r.counters.fired.Add(1)
			out = append(out, r.newDetection(event))
		case by != nil:
			r.counters.excepted.Add(1)
		}
		if err != nil {
			r.counters.failed.Add(1)
			errs = append(errs, fmt.Errorf("rule %s on event %s: %w", r.Name, event.ID, err))
		}
	}
	s.envPool.Put(v)
	return out, errs
}

func (r *Rule) newDetection(event sensors.Event) sensors.Detection {
	sum := sha256.Sum256([]byte(event.ID + "\x00" + r.Name))
	severity, reasons := r.effectiveSeverity(cmp.Or(event.Container.Pod.Namespace, event.Audit.Namespace))
	return sensors.Detection{
		ID: hex.EncodeToString(sum[:12]), Rule: r.Name, Title: r.Title, Severity: severity, Confidence: r.Confidence,
		Objective: r.Objective, Technique: r.Technique, Reasons: append([]string{r.Reason}, reasons...), Source: "stanch",
		Time: event.Time, Node: event.Node, Event: event,
	}
}

// effectiveSeverity returns the severity in a namespace, and sentences that explain why the severity or confidence
// differs from the rule's own.
func (r *Rule) effectiveSeverity(namespace string) (severity sensors.Severity, reasons []string) {
	severity = r.Severity
	in, special := r.Namespaces.SeverityOf(namespace)
	if special {
		severity = in
	}
	var by *Override // the override whose severities are in force
	for _, o := range r.Overrides {
		if o.Severity != "" || o.Namespaces != nil {
			by = o
		}
		if o.Confidence != nil && *o.Confidence != r.original.confidence {
			reasons = append(reasons, withReason(fmt.Sprintf("The confidence was %s from %.2f to %.2f by the override at %s",
				raisedOrLowered(*o.Confidence > r.original.confidence), r.original.confidence, r.Confidence, o.Position), o))
		}
	}
	switch {
	case by != nil && severity != r.original.severity:
		where := ""
		if special {
			where = " in the namespace " + namespace
		}
		reasons = append(reasons, withReason(fmt.Sprintf("The severity was %s%s from %s to %s by the override at %s",
			raisedOrLowered(severity.Rank() > r.original.severity.Rank()), where, r.original.severity, severity, by.Position),
			by))
	case special && severity != r.original.severity:
		reasons = append(reasons, fmt.Sprintf("In the namespace %s the rule's severity is %s instead of %s.", namespace,
			severity, r.original.severity))
	}
	return severity, reasons
}

func raisedOrLowered(up bool) string {
	if up {
		return "raised"
	}
	return "lowered"
}

func withReason(sentence string, o *Override) string {
	if o.Reason == "" {
		return sentence + "."
	}
	return sentence + ": " + o.Reason
}
