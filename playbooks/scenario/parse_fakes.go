package scenario

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"stanch/playbooks"
	"stanch/sensors/yamlnode"
)

// fakeable are the outcomes that an action itself can have. The others are for guards, people and conditions to say.
func fakeable() []playbooks.Outcome {
	return []playbooks.Outcome{playbooks.OutcomeChanged, playbooks.OutcomeUnchanged, playbooks.OutcomeUnverified, playbooks.OutcomeRefused, playbooks.OutcomeFailed}
}

func (f *Fake) fields() []yamlnode.Field {
	return noted(f.at,
		yamlnode.StringField("target", "only for this target: its name, namespace/name or id", &f.Target),
		yamlnode.IntField("call", "only for this call of the action on a target, from 1", &f.Call, 1, 1000),
		yamlnode.EnumField("outcome", "what becomes of it; default changed", &f.Outcome, fakeable()),
		yamlnode.StringField("reason", "why", &f.Reason),
		yamlnode.AnyField("outputs", "what it finds out; what is not given is empty", &f.Outputs),
		yamlnode.StringListField("changes", "what a plan says that it would change", &f.Changes),
		yamlnode.DurationField("takes", "how long it takes; longer than its limit and it fails", &f.Takes),
		yamlnode.IntField("fails", "how many attempts fail before one gets through", &f.Fails, 0, 100),
	)
}

// actions reads what actions answer: for each an answer, or a list of which the first that fits is given.
func (t *Test) actions() yamlnode.Field {
	schema := func() yamlnode.Object {
		one := yamlnode.Schema((&Fake{at: places{}}).fields())
		return yamlnode.Object{"type": "object", "additionalProperties": yamlnode.Object{"oneOf": []any{one, yamlnode.Object{"type": "array", "items": one}}}}
	}
	return yamlnode.Field{Name: "actions", Doc: "what actions answer, by their names; one that is not named here succeeds and finds out nothing", Schema: schema, Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
		if v.Kind != yaml.MappingNode {
			r.Errorf(yamlnode.PositionOf(v), "type", "", "`actions` must be a mapping, not %s", yamlnode.DescribeKind(v))
			return
		}
		seen := map[string]Pos{}
		for i := 0; i+1 < len(v.Content); i += 2 {
			key, value := v.Content[i], v.Content[i+1]
			if first, twice := seen[key.Value]; twice {
				r.Errorf(yamlnode.PositionOf(key), "duplicate-key", "give the action a list of answers", "`%s` is given twice; the first is at line %d", yamlnode.Truncate(key.Value, 60), first.Line)
				continue
			}
			seen[key.Value] = yamlnode.PositionOf(key)
			items := []*yaml.Node{value}
			if value.Kind == yaml.SequenceNode {
				items = value.Content
			}
			for _, item := range items {
				f := add(&t.Fakes, item, &Fake{Action: key.Value, Pos: yamlnode.PositionOf(key), at: places{}})
				r.ReadMapping(item, "an answer of an action", f.fields())
			}
			if len(t.Fakes) > maxInTest {
				r.Errorf(yamlnode.PositionOf(key), "too-large", "split the test", "more than %d answers of actions", maxInTest)
				return
			}
		}
	}}
}

// never reads what must not happen.
func (t *Test) never() yamlnode.Field {
	var names []string
	f := yamlnode.StringListField("never", "actions or steps that must not take place; a proposal is none", &names)
	read := f.Read
	f.Read = func(r *yamlnode.Reader, key, v *yaml.Node) {
		read(r, key, v)
		for i, name := range names {
			at := yamlnode.PositionOf(v)
			if v.Kind == yaml.SequenceNode {
				at = yamlnode.PositionOf(v.Content[i])
			}
			t.Never = append(t.Never, Ref{name, at})
		}
	}
	return f
}

// whole reports what a test lacks, and what does not go together.
func (t *Test) whole(r *yamlnode.Reader) {
	t.Recording.Pos = t.at["recording"]
	if len([]rune(t.Name)) > maxName {
		r.Errorf(t.at["name"], "too-large", "", "a name has at most %d characters", maxName)
	}
	switch _, inline := t.at["detections"]; {
	case t.Recording.Path != "" && inline:
		r.Errorf(t.at["detections"], "conflict", "remove one of them", "a test has a `recording` or `detections`, not both")
	case t.Recording.Path == "" && len(t.Detections) == 0:
		r.Errorf(t.Pos, "required", "name a `recording`, or write `detections: [{objective: crypto-mining}]`", "nothing is detected in this test")
	}
	if c := t.Incident; c != nil && c.Workload != "" {
		if _, _, _, ok := SplitWorkload(c.Workload); !ok {
			r.Errorf(c.at["workload"], "value", "for example shop/Deployment/web", "`%s` is no workload: namespace/Kind/name", yamlnode.Truncate(c.Workload, 60))
		}
	}
	expects := slices.ContainsFunc([]string{"expect", "asks", "never", "effects", "leases", "outcome", "matched", "time_to_contain"}, func(key string) bool {
		_, given := t.at[key]
		return given
	})
	if !expects {
		r.Errorf(t.Pos, "required", "write `expect:` and let `stanch test --update` fill it in", "the test expects nothing")
	}
	for _, s := range t.Expect {
		if s.Step == "" && s.Action == "" {
			r.Errorf(s.Pos, "required", "name its `step` or its `action`", "an expected step has no name")
		}
	}
}
