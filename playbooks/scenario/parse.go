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
	r := &yamlnode.Reader{File: file, Begin: "begin with `tests:`"}
	f := &File{File: file, Source: source}
	if root := r.Document(source, yamlnode.Limits{Bytes: 1 << 20, Nodes: 100_000}); root != nil {
		r.Mapping(root, "a file of tests", f.fields())
		seen := map[string]Pos{}
		for _, t := range f.Tests {
			t.whole(r)
			if first, twice := seen[t.Name]; twice && t.Name != "" {
				r.Errorf(t.at["name"], "duplicate-name", "choose another name", "two tests are called `%s`; the first is at line %d", yamlnode.Clip(t.Name, 60), first.Line)
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
			at[fields[i].Name] = yamlnode.At(v)
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
	file := yamlnode.Texts("playbook", "the playbook that is tested, a path beside this file, or several; default: every playbook of the folder", &books)
	read := file.Read
	file.Read = func(r *yamlnode.Reader, key, v *yaml.Node) {
		read(r, key, v)
		for i, b := range books {
			at := yamlnode.At(v)
			if v.Kind == yaml.SequenceNode {
				at = yamlnode.At(v.Content[i])
			}
			f.Playbooks = append(f.Playbooks, Ref{b, at})
		}
	}
	return []yamlnode.Field{
		file,
		yamlnode.List("tests", "the tests: each is one incident and what must become of it", "test", maxTests, nil, func(n *yaml.Node) []yamlnode.Field {
			t := add(&f.Tests, n, &Test{Pos: yamlnode.At(n), at: places{}})
			return t.fields()
		}).Must(),
	}
}

func (t *Test) fields() []yamlnode.Field {
	context, approvers, final := &Context{at: places{}}, &Approvers{}, &Final{at: places{}}
	asks, effects, leases := []*Ask{}, []*Effect{}, []*Lease{}
	return noted(t.at,
		yamlnode.Text("name", "what the test shows, in a few words", &t.Name).Must(),
		yamlnode.Text("recording", "a recording of `stanch record`, a path beside this file or below; its actions answer as they did", &t.Recording.Path),
		yamlnode.List("detections", "what is detected; few fields suffice", "detection", maxInTest, nil, func(n *yaml.Node) []yamlnode.Field {
			return add(&t.Detections, n, &Detection{at: places{"": yamlnode.At(n)}}).fields()
		}),
		yamlnode.Nested("incident", "what is known around the workload: it is what `enrich: workload` finds", "`incident`", context.fields(), func(*yaml.Node) { t.Incident = context }),
		yamlnode.Int("phase", "the phase: 1 observes, 2 contains, 3 disrupts behind approval; default 3, or that of the recording", &t.Phase, 1, 3),
		yamlnode.Share("confidence", "what counts as high confidence in the scope; default 0.8", &t.Confidence),
		yamlnode.Nested("approvers", "the scope's approvers, who are asked where the confidence is below; default: nobody", "`approvers`", approvers.fields(), func(*yaml.Node) { t.Approvers = approvers }),
		t.actions(),
		yamlnode.List("answers", "what people answer; default: nobody answers, or as in the recording", "answer", maxInTest, func(_, _ *yaml.Node) { t.Answers = []*Answer{} }, func(n *yaml.Node) []yamlnode.Field {
			return add(&t.Answers, n, &Answer{at: places{"": yamlnode.At(n)}}).fields()
		}),
		yamlnode.List("expect", "steps that must come to what is said, in this order; others may stand between them", "step", maxInTest, func(key, list *yaml.Node) { t.expect = &span{key, list} }, func(n *yaml.Node) []yamlnode.Field {
			return add(&t.Expect, n, &Step{Pos: yamlnode.At(n), at: places{}, node: n}).fields()
		}),
		yamlnode.List("asks", "every question that is asked, in order; [] is none", "question", maxInTest, func(_, _ *yaml.Node) { t.Asks = &asks }, func(n *yaml.Node) []yamlnode.Field {
			return add(&asks, n, &Ask{Pos: yamlnode.At(n), at: places{}}).fields()
		}),
		t.never(),
		yamlnode.List("effects", "every containment that takes hold; [] is none", "effect", maxInTest, func(_, _ *yaml.Node) { t.Effects = &effects }, func(n *yaml.Node) []yamlnode.Field {
			return add(&effects, n, &Effect{Pos: yamlnode.At(n), at: places{}}).fields()
		}),
		yamlnode.List("leases", "every lease when the incident closes; [] is none", "lease", maxInTest, func(_, _ *yaml.Node) { t.Leases = &leases }, func(n *yaml.Node) []yamlnode.Field {
			return add(&leases, n, &Lease{Pos: yamlnode.At(n), at: places{}}).fields()
		}),
		yamlnode.Nested("outcome", "the incident as it ends", "`outcome`", final.fields(), func(*yaml.Node) { t.Outcome = final }),
		yamlnode.Bool("matched", "whether a playbook handles the incident", &t.Matched),
		bound("time_to_contain", "from the first detection to the first containment in force: `<= 5s` or `< 5s`", &t.Bound),
	)
}

func (d *Detection) fields() []yamlnode.Field {
	kinds := []sensors.Kind{sensors.KindExec, sensors.KindConnect, sensors.KindOpen, sensors.KindExit}
	return noted(d.at,
		yamlnode.Duration("at", "when it comes, after the incident begins", &d.At),
		yamlnode.Text("rule", "the rule; what is not given is that of the shipped rule of this name", &d.Rule),
		yamlnode.Text("title", "the rule's title", &d.Title),
		yamlnode.Word("objective", "what the attacker seems to be after", &d.Objective, sensors.Objectives),
		yamlnode.Word("severity", "how bad it is; default high", &d.Severity, sensors.Severities),
		yamlnode.Share("confidence", "how sure the rule is; default 0.9", &d.Confidence),
		yamlnode.Text("technique", "the ATT&CK technique", &d.Technique),
		yamlnode.Texts("reasons", "why it matters", &d.Reasons),
		yamlnode.Text("source", "who saw it; default stanch", &d.Source),
		yamlnode.Text("actor", "who did it, as the source names them", &d.Actor),
		yamlnode.Word("kind", "the kind of event; default: that of what is given", &d.Kind, kinds),
		yamlnode.Int("count", "how many alike were folded into it", &d.Count, 1, 1_000_000),
		yamlnode.Struct("process", "the process", &d.Process),
		yamlnode.Struct("network", "the connection", &d.Network),
		yamlnode.Struct("file", "the file", &d.FileOpened),
		yamlnode.Text("pod", "the pod's name; default: the workload's with -1", &d.Pod),
		yamlnode.Text("container", "the container's name; default app", &d.Container),
		yamlnode.Text("node", "the node; default that of the incident", &d.Node),
		yamlnode.Text("image", "the image; default that of the incident", &d.Image),
		yamlnode.Text("image_digest", "the image's digest; default that of the incident", &d.Digest),
		yamlnode.Text("service_account", "the pod's service account; default that of the incident", &d.Identity),
		yamlnode.Bool("host_network", "whether the pod is in the host's network", &d.HostNetwork),
		yamlnode.Struct("subject", "what it is about where that is no container: kind, name and perhaps namespace", &d.Subject),
	)
}

func (c *Context) fields() []yamlnode.Field {
	return noted(c.at,
		yamlnode.Text("workload", "namespace/Kind/name, or Container/name outside of Kubernetes; default shop/Deployment/web", &c.Workload),
		yamlnode.Text("uid", "the workload's UID", &c.UID),
		yamlnode.Text("image", "its image", &c.Image),
		yamlnode.Text("image_digest", "its image's digest", &c.ImageDigest),
		yamlnode.Text("service_account", "its service account", &c.ServiceAccount),
		yamlnode.Text("node", "its node; default node-1", &c.Node),
		yamlnode.Struct("labels", "its pods' labels", &c.Labels),
		yamlnode.Struct("blast_radius", "what else may be hit", &c.Blast),
		yamlnode.Texts("changes", "what changed recently", &c.Changes),
		yamlnode.Texts("missing", "what of the context could not be found out", &c.Missing),
	)
}

func (a *Approvers) fields() []yamlnode.Field {
	return []yamlnode.Field{
		yamlnode.Texts("groups", "groups of people", &a.Groups),
		yamlnode.Texts("users", "people by name", &a.Users),
		yamlnode.Int("quorum", "how many must agree; default 1", &a.Quorum, 1, 10),
		yamlnode.Duration("timeout", "how long they have; default 15m", &a.Timeout),
	}
}

func (a *Answer) fields() []yamlnode.Field {
	answer := yamlnode.Field{Name: "answer", Doc: "yes or no", Required: true, Schema: func() yamlnode.Object { return yamlnode.Object{"enum": []any{"yes", "no", true, false}} }, Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
		switch strings.ToLower(v.Value) {
		case "yes", "true": // an editor may know YAML's older booleans
			a.Yes = true
		case "no", "false":
		default:
			r.Errorf(yamlnode.At(v), "value", "write `answer: yes` or `answer: no`", "`answer` cannot be %s", yamlnode.Kind(v))
		}
	}}
	return noted(a.at,
		yamlnode.Text("person", "who", &a.Person).Must(),
		answer,
		yamlnode.Duration("after", "how long after the question; default 1m", &a.After),
		yamlnode.Text("to", "the question's title, or the step or the action that it is about; default: every question", &a.To),
		yamlnode.Text("reason", "why", &a.Reason),
		yamlnode.Texts("groups", "the groups that they are in; default: all that are asked, but for who is asked later", &a.Groups),
	)
}

func (s *Step) fields() []yamlnode.Field {
	return noted(s.at,
		yamlnode.Text("step", "the step's id or path; inside of loops and calls with their names before it", &s.Step),
		yamlnode.Text("playbook", "its playbook's name, where several run", &s.Playbook),
		yamlnode.Text("action", "its action", &s.Action),
		yamlnode.Text("target", "its target's name, namespace/name or id", &s.Target),
		yamlnode.Word("outcome", "what became of it", &s.Outcome, playbooks.Outcomes),
		yamlnode.Text("reason", "a part of the reason", &s.Reason),
		yamlnode.Any("with", "parameters as they were rendered; others may be there too", &s.With),
		yamlnode.Duration("within", "at most so long after the incident began", &s.Within),
		yamlnode.Duration("at", "so long after the incident began, to the second", &s.After),
	)
}

func (a *Ask) fields() []yamlnode.Field {
	return noted(a.at,
		yamlnode.Text("title", "a part of the question's title", &a.Title),
		yamlnode.Text("text", "a part of its text", &a.Text),
		yamlnode.Text("would", "a part of what a yes would change", &a.Would),
		yamlnode.Texts("of", "groups or people who are asked", &a.Of),
		yamlnode.Int("quorum", "how many must agree", &a.Quorum, 1, 10),
		yamlnode.Duration("within", "at most so long after the incident began", &a.Within),
	)
}

func (e *Effect) fields() []yamlnode.Field {
	known := []playbooks.Outcome{playbooks.OutcomeChanged, playbooks.OutcomeUnverified, playbooks.OutcomeUnchanged}
	return noted(e.at,
		yamlnode.Text("action", "the action", &e.Action).Must(),
		yamlnode.Text("target", "the target's name, namespace/name or id", &e.Target),
		yamlnode.Word("outcome", "whether the effect was observed", &e.Outcome, known),
		yamlnode.Duration("for", "how long it is in force, to the second", &e.For),
		yamlnode.Any("with", "parameters; others may be there too", &e.With),
	)
}

func (l *Lease) fields() []yamlnode.Field {
	return noted(l.at,
		yamlnode.Text("action", "the action", &l.Action).Must(),
		yamlnode.Text("target", "the target's name, namespace/name or id", &l.Target),
		yamlnode.Word("state", "where it stands", &l.State, []string{"applying", "held", "undoing", "stuck", "ended"}),
		yamlnode.Bool("undone", "whether it was taken back", &l.Undone),
		yamlnode.Text("reason", "a part of the reason", &l.Reason),
	)
}

func (f *Final) fields() []yamlnode.Field {
	return noted(f.at,
		yamlnode.Word("status", "whether it is closed", &f.Status, []string{"open", "closed"}),
		yamlnode.Word("objective", "what the attacker seems to be after", &f.Objective, sensors.Objectives),
		yamlnode.Word("severity", "how bad it is", &f.Severity, sensors.Severities),
		yamlnode.Share("confidence", "how sure it is, to the hundredth", &f.Confidence),
		yamlnode.Text("summary", "a part of the summary", &f.Summary),
	)
}

func bound(name, doc string, to **Bound) yamlnode.Field {
	schema := func() yamlnode.Object {
		return yamlnode.Object{"type": "string", "pattern": `^(<=? *)?(0|(` + duration.Unanchored + `)+)$`}
	}
	return yamlnode.Field{Name: name, Doc: doc, Schema: schema, Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
		b := &Bound{Pos: yamlnode.At(v)}
		text, found := strings.CutPrefix(v.Value, "<=")
		if !found {
			text, b.Less = strings.CutPrefix(v.Value, "<")
		}
		d, err := duration.Parse(strings.TrimSpace(text))
		if v.Kind != yaml.ScalarNode || err != nil || d < 0 {
			r.Errorf(b.Pos, "duration", "write for example `<= 5s`", "`%s` must be a bound such as <= 5s, not %s", name, yamlnode.Kind(v))
			return
		}
		b.Limit = d
		*to = b
	}}
}
