package scenario

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/duration"
	"stanch/sensors/yamlnode"
)

// Bounds of a file.
const (
	maxTests  = 500
	maxInTest = 200
	maxName   = 200
)

// Parse reads a file of tests. Where there are errors, what it gives is not to be run.
func Parse(file string, source []byte) (*File, diagnostic.Diagnostics) {
	r := &yamlnode.Reader{File: file, ExampleStart: "begin with `tests:`"}
	f := &File{File: file, Source: source}
	if root := r.ParseDocument(source, yamlnode.Limits{MaxBytes: 1 << 20, MaxNodes: 100_000}); root != nil {
		r.ReadMapping(root, "a file of tests", f.fields())
		seen := map[string]Pos{}
		for _, t := range f.Tests {
			t.whole(r)
			if first, twice := seen[t.Name]; twice && t.Name != "" {
				r.Errorf(t.at["name"], "duplicate-name", "choose another name", "two tests are called `%s`; the first is at line %d", yamlnode.Truncate(t.Name, 60), first.Line)
			}
			seen[t.Name] = t.Pos
		}
	}
	return f, r.Problems.Sorted()
}

// Schema is the JSON Schema of a file of tests, made from the fields that Parse reads.
func Schema() any {
	out := yamlnode.Schema((&File{}).fields())
	out["$schema"], out["$id"], out["title"] = "https://json-schema.org/draft/2020-12/schema", "https://stanch.dev/schema/test.json", "Tests of Stanch's playbooks"
	return out
}

// noted are fields that note where their values stand.
func noted(at places, fields ...yamlnode.Field) []yamlnode.Field {
	for i := range fields {
		read := fields[i].Read
		fields[i].Read = func(r *yamlnode.Reader, key, v *yaml.Node) {
			at[fields[i].Name] = yamlnode.PositionOf(v)
			read(r, key, v)
		}
	}
	return fields
}

// add appends a new element to a list unless it is for the schema.
func add[T any](to *[]*T, n *yaml.Node, one *T) *T {
	if n != nil {
		*to = append(*to, one)
	}
	return one
}

func (f *File) fields() []yamlnode.Field {
	var books []string
	file := yamlnode.StringListField("playbook", "the playbook that is tested, a path beside this file, or several; default: every playbook of the folder", &books)
	read := file.Read
	file.Read = func(r *yamlnode.Reader, key, v *yaml.Node) {
		read(r, key, v)
		for i, b := range books {
			at := yamlnode.PositionOf(v)
			if v.Kind == yaml.SequenceNode {
				at = yamlnode.PositionOf(v.Content[i])
			}
			f.Playbooks = append(f.Playbooks, Ref{b, at})
		}
	}
	return []yamlnode.Field{
		file,
		yamlnode.ListField("tests", "the tests: each is one incident and what must become of it", "test", maxTests, nil, func(n *yaml.Node) []yamlnode.Field {
			t := add(&f.Tests, n, &Test{Pos: yamlnode.PositionOf(n), at: places{}})
			return t.fields()
		}).AsRequired(),
	}
}

func (t *Test) fields() []yamlnode.Field {
	context, approvers, final := &Context{at: places{}}, &Approvers{}, &Final{at: places{}}
	asks, effects, leases := []*Ask{}, []*Effect{}, []*Lease{}
	return noted(t.at,
		yamlnode.StringField("name", "what the test shows, in a few words", &t.Name).AsRequired(),
		yamlnode.StringField("recording", "a recording of `stanch record`, a path beside this file or below; its actions answer as they did", &t.Recording.Path),
		yamlnode.ListField("detections", "what is detected; few fields suffice", "detection", maxInTest, nil, func(n *yaml.Node) []yamlnode.Field {
			return add(&t.Detections, n, &Detection{at: places{"": yamlnode.PositionOf(n)}}).fields()
		}),
		yamlnode.MappingField("incident", "what is known around the workload: it is what `enrich: workload` finds", "`incident`", context.fields(), func(*yaml.Node) { t.Incident = context }),
		yamlnode.IntField("phase", "the phase: 1 observes, 2 contains, 3 disrupts behind approval; default 3, or that of the recording", &t.Phase, 1, 3),
		yamlnode.FractionField("confidence", "what counts as high confidence in the scope; default 0.8", &t.Confidence),
		yamlnode.MappingField("approvers", "the scope's approvers, who are asked where the confidence is below; default: nobody", "`approvers`", approvers.fields(), func(*yaml.Node) { t.Approvers = approvers }),
		t.actions(),
		yamlnode.ListField("answers", "what people answer; default: nobody answers, or as in the recording", "answer", maxInTest, func(_, _ *yaml.Node) { t.Answers = []*Answer{} }, func(n *yaml.Node) []yamlnode.Field {
			return add(&t.Answers, n, &Answer{at: places{"": yamlnode.PositionOf(n)}}).fields()
		}),
		yamlnode.ListField("expect", "steps that must come to what is said, in this order; others may stand between them", "step", maxInTest, func(key, list *yaml.Node) { t.expect = &span{key, list} }, func(n *yaml.Node) []yamlnode.Field {
			return add(&t.Expect, n, &Step{Pos: yamlnode.PositionOf(n), at: places{}, node: n}).fields()
		}),
		yamlnode.ListField("asks", "every question that is asked, in order; [] is none", "question", maxInTest, func(_, _ *yaml.Node) { t.Asks = &asks }, func(n *yaml.Node) []yamlnode.Field {
			return add(&asks, n, &Ask{Pos: yamlnode.PositionOf(n), at: places{}}).fields()
		}),
		t.never(),
		yamlnode.ListField("effects", "every containment that takes hold; [] is none", "effect", maxInTest, func(_, _ *yaml.Node) { t.Effects = &effects }, func(n *yaml.Node) []yamlnode.Field {
			return add(&effects, n, &Effect{Pos: yamlnode.PositionOf(n), at: places{}}).fields()
		}),
		yamlnode.ListField("leases", "every lease when the incident closes; [] is none", "lease", maxInTest, func(_, _ *yaml.Node) { t.Leases = &leases }, func(n *yaml.Node) []yamlnode.Field {
			return add(&leases, n, &Lease{Pos: yamlnode.PositionOf(n), at: places{}}).fields()
		}),
		yamlnode.MappingField("outcome", "the incident as it ends", "`outcome`", final.fields(), func(*yaml.Node) { t.Outcome = final }),
		yamlnode.BoolField("matched", "whether a playbook handles the incident", &t.Matched),
		bound("time_to_contain", "from the first detection to the first containment in force: `<= 5s` or `< 5s`", &t.Bound),
	)
}

func (d *Detection) fields() []yamlnode.Field {
	kinds := []sensors.Kind{sensors.KindExec, sensors.KindConnect, sensors.KindFileOpen, sensors.KindExit}
	return noted(d.at,
		yamlnode.DurationField("at", "when it comes, after the incident begins", &d.At),
		yamlnode.StringField("rule", "the rule; what is not given is that of the shipped rule of this name", &d.Rule),
		yamlnode.StringField("title", "the rule's title", &d.Title),
		yamlnode.EnumField("objective", "what the attacker seems to be after", &d.Objective, sensors.Objectives),
		yamlnode.EnumField("severity", "how bad it is; default high", &d.Severity, sensors.Severities),
		yamlnode.FractionField("confidence", "how sure the rule is; default 0.9", &d.Confidence),
		yamlnode.StringField("technique", "the ATT&CK technique", &d.Technique),
		yamlnode.StringListField("reasons", "why it matters", &d.Reasons),
		yamlnode.StringField("source", "who saw it; default stanch", &d.Source),
		yamlnode.StringField("actor", "who did it, as the source names them", &d.Actor),
		yamlnode.EnumField("kind", "the kind of event; default: that of what is given", &d.Kind, kinds),
		yamlnode.IntField("count", "how many alike were folded into it", &d.Count, 1, 1_000_000),
		yamlnode.StructField("process", "the process", &d.Process),
		yamlnode.StructField("network", "the connection", &d.Network),
		yamlnode.StructField("file", "the file", &d.FileOpened),
		yamlnode.StringField("pod", "the pod's name; default: the workload's with -1", &d.Pod),
		yamlnode.StringField("container", "the container's name; default app", &d.Container),
		yamlnode.StringField("node", "the node; default that of the incident", &d.Node),
		yamlnode.StringField("image", "the image; default that of the incident", &d.Image),
		yamlnode.StringField("image_digest", "the image's digest; default that of the incident", &d.Digest),
		yamlnode.StringField("service_account", "the pod's service account; default that of the incident", &d.Identity),
		yamlnode.BoolField("host_network", "whether the pod is in the host's network", &d.HostNetwork),
		yamlnode.StructField("subject", "what it is about where that is no container: kind, name and perhaps namespace", &d.Subject),
	)
}

func (c *Context) fields() []yamlnode.Field {
	return noted(c.at,
		yamlnode.StringField("workload", "namespace/Kind/name, or Container/name outside of Kubernetes; default shop/Deployment/web", &c.Workload),
		yamlnode.StringField("uid", "the workload's UID", &c.UID),
		yamlnode.StringField("image", "its image", &c.Image),
		yamlnode.StringField("image_digest", "its image's digest", &c.ImageDigest),
		yamlnode.StringField("service_account", "its service account", &c.ServiceAccount),
		yamlnode.StringField("node", "its node; default node-1", &c.Node),
		yamlnode.StructField("labels", "its pods' labels", &c.Labels),
		yamlnode.StructField("blast_radius", "what else may be hit", &c.Blast),
		yamlnode.StringListField("changes", "what changed recently", &c.Changes),
		yamlnode.StringListField("missing", "what of the context could not be found out", &c.Missing),
	)
}

func (a *Approvers) fields() []yamlnode.Field {
	return []yamlnode.Field{
		yamlnode.StringListField("groups", "groups of people", &a.Groups),
		yamlnode.StringListField("users", "people by name", &a.Users),
		yamlnode.IntField("quorum", "how many must agree; default 1", &a.Quorum, 1, 10),
		yamlnode.DurationField("timeout", "how long they have; default 15m", &a.Timeout),
	}
}

func (a *Answer) fields() []yamlnode.Field {
	answer := yamlnode.Field{Name: "answer", Doc: "yes or no", Required: true, Schema: func() yamlnode.Object { return yamlnode.Object{"enum": []any{"yes", "no", true, false}} }, Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
		switch strings.ToLower(v.Value) {
		case "yes", "true": // an editor may know YAML's older booleans
			a.Yes = true
		case "no", "false":
		default:
			r.Errorf(yamlnode.PositionOf(v), "value", "write `answer: yes` or `answer: no`", "`answer` cannot be %s", yamlnode.DescribeKind(v))
		}
	}}
	return noted(a.at,
		yamlnode.StringField("person", "who", &a.Person).AsRequired(),
		answer,
		yamlnode.DurationField("after", "how long after the question; default 1m", &a.After),
		yamlnode.StringField("to", "the question's title, or the step or the action that it is about; default: every question", &a.To),
		yamlnode.StringField("reason", "why", &a.Reason),
		yamlnode.StringListField("groups", "the groups that they are in; default: all that are asked, but for who is asked later", &a.Groups),
	)
}

func (s *Step) fields() []yamlnode.Field {
	return noted(s.at,
		yamlnode.StringField("step", "the step's id or path; inside of loops and calls with their names before it", &s.Step),
		yamlnode.StringField("playbook", "its playbook's name, where several run", &s.Playbook),
		yamlnode.StringField("action", "its action", &s.Action),
		yamlnode.StringField("target", "its target's name, namespace/name or id", &s.Target),
		yamlnode.EnumField("outcome", "what became of it", &s.Outcome, playbooks.Outcomes),
		yamlnode.StringField("reason", "a part of the reason", &s.Reason),
		yamlnode.AnyField("with", "parameters as they were rendered; others may be there too", &s.With),
		yamlnode.DurationField("within", "at most so long after the incident began", &s.Within),
		yamlnode.DurationField("at", "so long after the incident began, to the second", &s.After),
	)
}

func (a *Ask) fields() []yamlnode.Field {
	return noted(a.at,
		yamlnode.StringField("title", "a part of the question's title", &a.Title),
		yamlnode.StringField("text", "a part of its text", &a.Text),
		yamlnode.StringField("would", "a part of what a yes would change", &a.Would),
		yamlnode.StringListField("of", "groups or people who are asked", &a.Of),
		yamlnode.IntField("quorum", "how many must agree", &a.Quorum, 1, 10),
		yamlnode.DurationField("within", "at most so long after the incident began", &a.Within),
	)
}

func (e *Effect) fields() []yamlnode.Field {
	known := []playbooks.Outcome{playbooks.OutcomeChanged, playbooks.OutcomeUnverified, playbooks.OutcomeUnchanged}
	return noted(e.at,
		yamlnode.StringField("action", "the action", &e.Action).AsRequired(),
		yamlnode.StringField("target", "the target's name, namespace/name or id", &e.Target),
		yamlnode.EnumField("outcome", "whether the effect was observed", &e.Outcome, known),
		yamlnode.DurationField("for", "how long it is in force, to the second", &e.For),
		yamlnode.AnyField("with", "parameters; others may be there too", &e.With),
	)
}

func (l *Lease) fields() []yamlnode.Field {
	return noted(l.at,
		yamlnode.StringField("action", "the action", &l.Action).AsRequired(),
		yamlnode.StringField("target", "the target's name, namespace/name or id", &l.Target),
		yamlnode.EnumField("state", "where it stands", &l.State, []string{"applying", "held", "undoing", "stuck", "ended"}),
		yamlnode.BoolField("undone", "whether it was taken back", &l.Undone),
		yamlnode.StringField("reason", "a part of the reason", &l.Reason),
	)
}

func (f *Final) fields() []yamlnode.Field {
	return noted(f.at,
		yamlnode.EnumField("status", "whether it is closed", &f.Status, []string{"open", "closed"}),
		yamlnode.EnumField("objective", "what the attacker seems to be after", &f.Objective, sensors.Objectives),
		yamlnode.EnumField("severity", "how bad it is", &f.Severity, sensors.Severities),
		yamlnode.FractionField("confidence", "how sure it is, to the hundredth", &f.Confidence),
		yamlnode.StringField("summary", "a part of the summary", &f.Summary),
	)
}

func bound(name, doc string, to **Bound) yamlnode.Field {
	schema := func() yamlnode.Object {
		return yamlnode.Object{"type": "string", "pattern": `^(<=? *)?(0|(` + duration.UnitPattern + `)+)$`}
	}
	return yamlnode.Field{Name: name, Doc: doc, Schema: schema, Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
		b := &Bound{Pos: yamlnode.PositionOf(v)}
		text, found := strings.CutPrefix(v.Value, "<=")
		if !found {
			text, b.Less = strings.CutPrefix(v.Value, "<")
		}
		d, err := duration.Parse(strings.TrimSpace(text))
		if v.Kind != yaml.ScalarNode || err != nil || d < 0 {
			r.Errorf(b.Pos, "duration", "write for example `<= 5s`", "`%s` must be a bound such as <= 5s, not %s", name, yamlnode.DescribeKind(v))
			return
		}
		b.Limit = d
		*to = b
	}}
}
