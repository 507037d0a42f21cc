package rules

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// RuleTest is an event that a rule must match, or must not match.
type RuleTest struct {
	Name       string
	ShouldFire bool

	node     *yaml.Node
	file     *packFile
	rawEvent json.RawMessage
	event    sensors.Event
}

// TestResult is the result of one RuleTest.
type TestResult struct {
	Rule          string `json:"rule"`
	Name          string `json:"name,omitempty"`
	File          string `json:"file"`
	Line          int    `json:"line"`
	ShouldFire    bool   `json:"should_fire"` // whether the rule must match
	Passed        bool   `json:"passed"`
	FailureReason string `json:"failure_reason,omitempty"` // why it did not pass
	Suppressed    bool   `json:"-"`                        // it is from a source with SuppressProblems
}

// testsField returns a field with tests: `fires` and `silent`, each an event or a list of events, which may have
// names.
func testsField(doc string, f *packFile, kind func() sensors.Kind, to *[]*RuleTest) yamlField {
	events := func(name, doc string, fires bool) yamlField {
		return yamlField{
			Name: name, Doc: doc, Required: kind != nil, Schema: eventsSchema,
			Read: func(r *yamlReader, _, v *yaml.Node) {
				items := []*yaml.Node{v}
				if v.Kind == yaml.SequenceNode {
					items = v.Content
					if len(items) == 0 || len(items) > maxTestEvents {
						r.Errorf(yamlnode.PositionOf(v), "range", "", "`%s` has %d events; it must have between 1 and %d", name,
							len(items),
							maxTestEvents)
					}
				}
				for _, n := range items {
					if t := readTest(f, n, fires); t != nil {
						*to = append(*to, t)
					}
				}
			},
		}
	}
	fields := []yamlField{
		events("fires", "events on which the rule fires", true),
		events("silent", "events on which the rule does not fire", false),
	}
	return yamlnode.MappingField("tests", doc, "`tests`", fields, nil)
}

func eventsSchema() schemaObject {
	one := yamlnode.StructField("event", "", new(namedEvent)).Schema()
	return schemaObject{"oneOf": []any{one, schemaObject{
		"type": "array", "minItems": 1, "maxItems": maxTestEvents,
		"items": one,
	}}}
}

// namedEvent is an event with an optional name.
type namedEvent struct {
	Name string `json:"name,omitempty"`
	sensors.Event
}

func readTest(f *packFile, n *yaml.Node, fires bool) *RuleTest {
	t := &RuleTest{ShouldFire: fires, node: n, file: f}
	before := len(f.reader.Problems)
	value := f.reader.ReadValue(n)
	if n.Kind != yaml.MappingNode {
		f.errorf(n, "type", "write the event's fields: `{ process: { exe: /bin/sh } }`", "a test must be an event, not %s",
			yamlnode.DescribeKind(n))
		return nil
	}
	if f.reader.CheckType(n, reflect.TypeFor[namedEvent](), "an event"); len(f.reader.Problems) > before {
		return nil
	}
	t.rawEvent = value.JSON
	return t
}

// buildEvent decodes the event. Its default kind is that of the rule.
func (t *RuleTest) buildEvent(kind sensors.Kind) {
	e := namedEvent{Event: sensors.Event{ID: "test", Kind: kind}}
	if err := json.Unmarshal(t.rawEvent, &e); err != nil {
		t.file.errorf(t.node, "test", "", "invalid event: %s", truncate.Text(err.Error(), 100))
	}
	t.Name, t.event = e.Name, e.Event
}

func (r *Rule) buildTestEvents() {
	for _, t := range r.Tests {
		t.buildEvent(r.Kind)
	}
}

// runTests runs tests of a rule, reports the failures at their positions, and returns whether all passed.
func (l *loader) runTests(r *Rule, tests []*RuleTest) bool {
	passed := true
	v := newConditionEnv()
	for _, t := range tests {
		v.setEvent(t.event)
		result := TestResult{
			Rule: r.Name, Name: t.Name, File: t.file.name, Line: yamlnode.PositionOf(t.node).Line,
			ShouldFire: t.ShouldFire, Suppressed: t.file.suppressProblems,
		}
		result.FailureReason = r.testFailure(t, v)
		result.Passed = result.FailureReason == ""
		if !result.Passed {
			passed = false
			name := ""
			if t.Name != "" {
				name = fmt.Sprintf(" `%s`", truncate.Text(t.Name, 60))
			}
			t.file.errorf(t.node, "test", "", "test%s of rule `%s`: %s", name, r.Name, result.FailureReason)
		}
		l.set.testResults = append(l.set.testResults, result)
	}
	return passed
}

// testFailure says why a test fails, or returns "" if it passes.
func (r *Rule) testFailure(t *RuleTest, v *conditionEnv) string {
	if t.event.Kind != r.Kind {
		return fmt.Sprintf("the event is of kind `%s`, but the rule evaluates `%s`", t.event.Kind, r.Kind)
	}
	if r.Disabled {
		if t.ShouldFire {
			return "it should fire, but the rule is disabled"
		}
		return ""
	}
	fired, excepted, err := r.evaluate(v)
	switch {
	case err != nil:
		return fmt.Sprintf("it could not be evaluated: %v", err)
	case fired == t.ShouldFire:
		return ""
	case fired:
		return "it should not fire, but it did"
	case excepted != nil:
		return "it should fire, but an exception applies: " + excepted.Position
	}
	return "it should fire, but the condition is false"
}

// Replay evaluates one event. It returns the rules that match, the rules that an exception suppressed, and the errors
// of rules that failed. It does not change the counters, and it ignores disabled rules.
func (s *Set) Replay(e sensors.Event) (fired, excepted []*Rule, errs []error) {
	v := newConditionEnv()
	v.setEvent(e)
	for _, r := range s.rules {
		if r.Disabled || r.Kind != e.Kind {
			continue
		}
		fires, by, err := r.evaluate(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %s: %w", r.Name, err))
		}
		if fires {
			fired = append(fired, r)
		} else if by != nil {
			excepted = append(excepted, r)
		}
	}
	return slices.Clip(fired), slices.Clip(excepted), errs
}
