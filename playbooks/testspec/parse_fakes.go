package testspec

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"stanch/playbooks"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// fakeableOutcomes returns the outcomes that an action itself can return. Guards, approvals and conditions set the
// others.
func fakeableOutcomes() []playbooks.Outcome {
	return []playbooks.Outcome{
		playbooks.OutcomeSucceeded, playbooks.OutcomeChanged, playbooks.OutcomeUnchanged,
		playbooks.OutcomeUnverified, playbooks.OutcomeRefused, playbooks.OutcomeFailed,
	}
}

func (f *FakeResult) fakeResultFields() []yamlnode.Field {
	return withPositions(f.positions,
		yamlnode.StringField("target", "only for this target: its name, namespace/name or id", &f.Target),
		yamlnode.IntField("call", "apply only to this call of the action on a target, counted from 1", &f.CallNumber, 1,
			1000),
		yamlnode.EnumField("outcome", "the outcome; default changed", &f.Outcome, fakeableOutcomes()),
		yamlnode.StringField("reason", "why", &f.Reason),
		yamlnode.AnyField("outputs", "the outputs; missing fields are empty", &f.Outputs),
		yamlnode.StringListField("changes", "the changes that a plan lists", &f.PlannedChanges),
		yamlnode.DurationField("takes", "the duration; if it exceeds the timeout, the action fails", &f.Delay),
		yamlnode.IntField("fails", "the number of attempts that fail before one succeeds", &f.FailureCount, 0, 100),
	)
}

// fakeResultsField parses the results of actions: for each action one result, or a list whose first matching result is
// used.
func (t *TestCase) fakeResultsField() yamlnode.Field {
	schema := func() yamlnode.Object {
		one := yamlnode.Schema((&FakeResult{positions: keyPositions{}}).fakeResultFields())
		return yamlnode.Object{
			"type":                 "object",
			"additionalProperties": yamlnode.Object{"oneOf": []any{one, yamlnode.Object{"type": "array", "items": one}}},
		}
	}
	return yamlnode.Field{
		Name:   "actions",
		Doc:    "the results of actions, by name; all other actions succeed without outputs",
		Schema: schema,
		Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
			if v.Kind != yaml.MappingNode {
				r.Errorf(yamlnode.PositionOf(v), "type", "", "`actions` must be a mapping, not %s", yamlnode.DescribeKind(v))
				return
			}
			seen := map[string]Pos{}
			for i := 0; i+1 < len(v.Content); i += 2 {
				key, value := v.Content[i], v.Content[i+1]
				if first, twice := seen[key.Value]; twice {
					r.Errorf(yamlnode.PositionOf(key), "duplicate-key", "give the action a list of results",
						"`%s` is given twice; the first is at line %d", truncate.Text(key.Value, 60), first.Line)
					continue
				}
				seen[key.Value] = yamlnode.PositionOf(key)
				items := []*yaml.Node{value}
				if value.Kind == yaml.SequenceNode {
					items = value.Content
				}
				for _, item := range items {
					f := appendParsed(&t.FakeResults, item, &FakeResult{
						Action: key.Value, Pos: yamlnode.PositionOf(key),
						positions: keyPositions{},
					})
					r.ReadMapping(item, "a result of an action", f.fakeResultFields())
				}
				if len(t.FakeResults) > maxEntriesPerTest {
					r.Errorf(yamlnode.PositionOf(key), "too-large", "split the test", "more than %d results of actions",
						maxEntriesPerTest)
					return
				}
			}
		},
	}
}

// forbiddenActionsField parses the actions that must not run.
func (t *TestCase) forbiddenActionsField() yamlnode.Field {
	var names []string
	f := yamlnode.StringListField("never", "actions or steps that must not run; proposals are allowed", &names)
	read := f.Read
	f.Read = func(r *yamlnode.Reader, key, v *yaml.Node) {
		read(r, key, v)
		for i, name := range names {
			at := yamlnode.PositionOf(v)
			if v.Kind == yaml.SequenceNode {
				at = yamlnode.PositionOf(v.Content[i])
			}
			t.ForbiddenActions = append(t.ForbiddenActions, FileRef{name, at})
		}
	}
	return f
}

// checkConsistency reports missing keys, and keys that contradict each other.
func (t *TestCase) checkConsistency(r *yamlnode.Reader) {
	t.RecordingFile.Pos = t.positions["recording"]
	if len([]rune(t.Name)) > maxNameRunes {
		r.Errorf(t.positions["name"], "too-large", "", "a name can have at most %d characters", maxNameRunes)
	}
	switch _, inline := t.positions["detections"]; {
	case t.RecordingFile.Name != "" && inline:
		r.Errorf(t.positions["detections"], "conflict", "remove one of them",
			"a test has a `recording` or `detections`, not both")
	case t.RecordingFile.Name == "" && len(t.Detections) == 0:
		r.Errorf(t.Pos, "required", "name a `recording`, or write `detections: [{objective: crypto-mining}]`",
			"the test has no detections")
	}
	if c := t.IncidentContext; c != nil && c.Workload != "" {
		if _, _, _, ok := SplitWorkload(c.Workload); !ok {
			r.Errorf(c.positions["workload"], "value", "for example, write shop/Deployment/web",
				"invalid workload `%s`; use namespace/Kind/name", truncate.Text(c.Workload, 60))
		}
	}
	expects := slices.ContainsFunc([]string{
		"expect", "asks", "never", "effects", "leases", "outcome", "matched",
		"time_to_contain",
	}, func(key string) bool {
		_, given := t.positions[key]
		return given
	})
	if !expects {
		r.Errorf(t.Pos, "required", "add `expect:` and let `stanch test --update` fill it in", "the test has no expectations")
	}
	for _, s := range t.ExpectedSteps {
		if s.StepName == "" && s.Action == "" {
			r.Errorf(s.Pos, "required", "add its `step` or `action`", "an expected step has no `step` or `action`")
		}
	}
}
