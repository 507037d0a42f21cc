package rules

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/yamlnode"
)

// Test is an event that a rule has to fire on, or not.
type Test struct {
	Name  string
	Fires bool

	node  *yaml.Node
	file  *file
	raw   json.RawMessage
	event sensors.Event
}

// TestResult is what became of one test.
type TestResult struct {
	Rule   string `json:"rule"`
	Name   string `json:"name,omitempty"`
	File   string `json:"file"`
	Line   int    `json:"line"`
	Fires  bool   `json:"fires"` // whether the rule should
	Passed bool   `json:"passed"`
	Why    string `json:"why,omitempty"` // it did not pass
	Quiet  bool   `json:"-"`             // it is of a source about which nobody asked
}

// testsField is a key with tests: `fires` and `silent`, each an event or a list of events that may be named.
func testsField(doc string, f *file, kind func() sensors.Kind, to *[]*Test) field {
	events := func(name, doc string, fires bool) field {
		return field{Name: name, Doc: doc, Required: kind != nil, Schema: eventsSchema, Read: func(r *reader, _, v *yaml.Node) {
			items := []*yaml.Node{v}
			if v.Kind == yaml.SequenceNode {
				items = v.Content
				if len(items) == 0 || len(items) > maxTestEvents {
					r.Errorf(yamlnode.At(v), "range", "", "`%s` has %d events: from 1 to %d", name, len(items), maxTestEvents)
				}
			}
			for _, n := range items {
				if t := readTest(f, n, fires); t != nil {
					*to = append(*to, t)
				}
			}
		}}
	}
	fields := []field{
		events("fires", "events on which the rule fires", true),
		events("silent", "events on which it does not", false),
	}
	return yamlnode.Nested("tests", doc, "`tests`", fields, nil)
}

func eventsSchema() object {
	one := yamlnode.Struct("event", "", new(testEvent)).Schema()
	return object{"oneOf": []any{one, object{"type": "array", "minItems": 1, "maxItems": maxTestEvents, "items": one}}}
}

// testEvent is an event with a name of its own.
type testEvent struct {
	Name string `json:"name,omitempty"`
	sensors.Event
}

func readTest(f *file, n *yaml.Node, fires bool) *Test {
	t := &Test{Fires: fires, node: n, file: f}
	before := len(f.r.Problems)
	value := f.r.Value(n)
	if n.Kind != yaml.MappingNode {
		f.errorf(n, "type", "write the event's fields: `{ process: { exe: /bin/sh } }`", "a test must be an event, not %s", yamlnode.Kind(n))
		return nil
	}
	if f.r.Fits(n, reflect.TypeFor[testEvent](), "an event"); len(f.r.Problems) > before {
		return nil
	}
	t.raw = value.JSON
	return t
}

// resolve makes the event, of the rule's kind unless it says another.
func (t *Test) resolve(kind sensors.Kind) {
	e := testEvent{Event: sensors.Event{ID: "test", Kind: kind}}
	if err := json.Unmarshal(t.raw, &e); err != nil {
		t.file.errorf(t.node, "test", "", "this is no event: %s", yamlnode.Clip(err.Error(), 100))
	}
	t.Name, t.event = e.Name, e.Event
}

func (r *Rule) resolveTests() {
	for _, t := range r.Tests {
		t.resolve(r.On)
	}
}

// prove runs tests of a rule, and tells those that fail at their place.
func (l *loader) prove(r *Rule, tests []*Test) bool {
	passed := true
	v := newEnv()
	for _, t := range tests {
		v.set(t.event)
		result := TestResult{Rule: r.Name, Name: t.Name, File: t.file.name, Line: yamlnode.At(t.node).Line, Fires: t.Fires, Quiet: t.file.quiet}
		result.Why = r.disproved(t, v)
		result.Passed = result.Why == ""
		if !result.Passed {
			passed = false
			name := ""
			if t.Name != "" {
				name = fmt.Sprintf(" `%s`", yamlnode.Clip(t.Name, 60))
			}
			t.file.errorf(t.node, "test", "", "test%s of rule `%s`: %s", name, r.Name, result.Why)
		}
		l.set.results = append(l.set.results, result)
	}
	return passed
}

// disproved says why a test fails; "" where it passes.
func (r *Rule) disproved(t *Test, v *env) string {
	if t.event.Kind != r.On {
		return fmt.Sprintf("the event is of the kind `%s`, and the rule is on `%s`", t.event.Kind, r.On)
	}
	if r.Disabled {
		if t.Fires {
			return "it should fire, and the rule is disabled"
		}
		return ""
	}
	fired, excepted, err := r.fires(v)
	switch {
	case err != nil:
		return fmt.Sprintf("it could not be evaluated: %v", err)
	case fired == t.Fires:
		return ""
	case fired:
		return "it should be silent, and it fired"
	case excepted != nil:
		return "it should fire, and an exception holds: " + excepted.At
	}
	return "it should fire, and the condition does not hold"
}

// Try evaluates one event and gives the rules that fire on it, and those of which only an exception kept it.
func (s *Set) Try(e sensors.Event) (fired, excepted []*Rule, errs []error) {
	v := newEnv()
	v.set(e)
	for _, r := range s.rules {
		if r.Disabled || r.On != e.Kind {
			continue
		}
		fires, by, err := r.fires(v)
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
