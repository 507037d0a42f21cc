package testspec

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/duration"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// Limits of a test file.
const (
	maxTestsPerFile   = 500
	maxEntriesPerTest = 200
	maxNameRunes      = 200
)

// ParseTestFile parses a test file. Do not run the result if the diagnostics contain an error.
func ParseTestFile(file string, source []byte) (*TestFile, diagnostic.Diagnostics) {
	r := &yamlnode.Reader{File: file, ExampleStart: "start with `tests:`"}
	f := &TestFile{File: file, Source: source}
	if root := r.ParseDocument(source, yamlnode.Limits{MaxBytes: 1 << 20, MaxNodes: 100_000}); root != nil {
		r.ReadMapping(root, "a test file", f.fileFields())
		seen := map[string]Pos{}
		for _, t := range f.Tests {
			t.checkConsistency(r)
			if first, twice := seen[t.Name]; twice && t.Name != "" {
				r.Errorf(t.positions["name"], "duplicate-name", "choose another name",
					"duplicate test name `%s`; the first is at line %d", truncate.Text(t.Name, 60), first.Line)
			}
			seen[t.Name] = t.Pos
		}
	}
	return f, r.Problems.Sorted()
}

// Schema returns the JSON Schema of a test file, generated from the fields that ParseTestFile reads.
func Schema() any {
	out := yamlnode.Schema((&TestFile{}).fileFields())
	out["$schema"], out["$id"], out["title"] = "https://json-schema.org/draft/2020-12/schema",
		"https://stanch.dev/schema/test.json", "Tests of Stanch playbooks"
	return out
}

// withPositions returns fields that record the positions of their values.
func withPositions(at keyPositions, fields ...yamlnode.Field) []yamlnode.Field {
	for i := range fields {
		read := fields[i].Read
		fields[i].Read = func(r *yamlnode.Reader, key, v *yaml.Node) {
			at[fields[i].Name] = yamlnode.PositionOf(v)
			read(r, key, v)
		}
	}
	return fields
}

// appendParsed appends a new element to a list, unless the fields are read only to generate the schema.
func appendParsed[T any](to *[]*T, n *yaml.Node, one *T) *T {
	if n != nil {
		*to = append(*to, one)
	}
	return one
}

func (f *TestFile) fileFields() []yamlnode.Field {
	var books []string
	file := yamlnode.StringListField("playbook",
		"the playbook or the playbooks under test, as paths relative to this file; default: every playbook in the directory",
		&books)
	read := file.Read
	file.Read = func(r *yamlnode.Reader, key, v *yaml.Node) {
		read(r, key, v)
		for i, b := range books {
			at := yamlnode.PositionOf(v)
			if v.Kind == yaml.SequenceNode {
				at = yamlnode.PositionOf(v.Content[i])
			}
			f.Playbooks = append(f.Playbooks, FileRef{b, at})
		}
	}
	return []yamlnode.Field{
		file,
		yamlnode.ListField("tests", "the tests: each is one incident and the expected response", "test", maxTestsPerFile, nil,
			func(n *yaml.Node) []yamlnode.Field {
				t := appendParsed(&f.Tests, n, &TestCase{Pos: yamlnode.PositionOf(n), positions: keyPositions{}})
				return t.testFields()
			}).AsRequired(),
	}
}

func (t *TestCase) testFields() []yamlnode.Field {
	context, approvers, final := &WorkloadContext{positions: keyPositions{}}, &playbooks.Approvers{},
		&ExpectedIncident{positions: keyPositions{}}
	asks, effects, leases := []*ExpectedApprovalRequest{}, []*ExpectedContainment{}, []*ExpectedLease{}
	return withPositions(t.positions,
		yamlnode.StringField("name", "what the test shows, in a few words", &t.Name).AsRequired(),
		yamlnode.StringField("recording",
			"the path of a recording from `stanch record`, in this directory or below; its actions return the recorded results",
			&t.RecordingFile.Name),
		yamlnode.ListField("detections", "the detections; most fields have defaults", "detection", maxEntriesPerTest, nil,
			func(n *yaml.Node) []yamlnode.Field {
				return appendParsed(&t.Detections, n,
					&Detection{positions: keyPositions{"": yamlnode.PositionOf(n)}}).detectionFields()
			}),
		yamlnode.MappingField("incident", "the context of the workload, as `enrich: workload` returns it", "`incident`",
			context.contextFields(), func(*yaml.Node) { t.IncidentContext = context }),
		yamlnode.IntField("phase",
			"the phase: 1 observes, 2 contains, 3 disrupts with an approval; default: 3, or the recording's phase", &t.Phase, 1,
			3),
		yamlnode.FractionField("confidence", "the confidence threshold of the scope; default 0.8", &t.ConfidenceThreshold),
		yamlnode.MappingField("approvers",
			"the scope's approvers, who are asked if the confidence is below the threshold; default: none", "`approvers`",
			approversFields(approvers), func(*yaml.Node) { t.Approvers = approvers }),
		t.fakeResultsField(),
		yamlnode.ListField("answers", "people's answers; default: none, or the recorded answers", "answer",
			maxEntriesPerTest, func(_, _ *yaml.Node) { t.ApprovalAnswers = []*ApprovalAnswer{} },
			func(n *yaml.Node) []yamlnode.Field {
				return appendParsed(&t.ApprovalAnswers, n,
					&ApprovalAnswer{positions: keyPositions{"": yamlnode.PositionOf(n)}}).answerFields()
			}),
		yamlnode.ListField("expect", "the expected steps, in this order; other steps may run between them", "step",
			maxEntriesPerTest, func(key, list *yaml.Node) { t.expectSpan = &yamlSpan{key, list} },
			func(n *yaml.Node) []yamlnode.Field {
				return appendParsed(&t.ExpectedSteps, n, &ExpectedStep{
					Pos: yamlnode.PositionOf(n), positions: keyPositions{},
					node: n,
				}).stepFields()
			}),
		yamlnode.ListField("asks", "all approval requests, in order; [] for none", "question", maxEntriesPerTest,
			func(_, _ *yaml.Node) { t.ExpectedApprovalRequests = &asks }, func(n *yaml.Node) []yamlnode.Field {
				return appendParsed(&asks, n, &ExpectedApprovalRequest{
					Pos:       yamlnode.PositionOf(n),
					positions: keyPositions{},
				}).approvalRequestFields()
			}),
		t.forbiddenActionsField(),
		yamlnode.ListField("effects", "all containments that are applied; [] for none", "effect", maxEntriesPerTest,
			func(_, _ *yaml.Node) { t.ExpectedContainments = &effects }, func(n *yaml.Node) []yamlnode.Field {
				return appendParsed(&effects, n, &ExpectedContainment{
					Pos:       yamlnode.PositionOf(n),
					positions: keyPositions{},
				}).containmentFields()
			}),
		yamlnode.ListField("leases", "all leases when the incident closes; [] for none", "lease", maxEntriesPerTest,
			func(_, _ *yaml.Node) { t.ExpectedLeases = &leases }, func(n *yaml.Node) []yamlnode.Field {
				return appendParsed(&leases, n, &ExpectedLease{
					Pos:       yamlnode.PositionOf(n),
					positions: keyPositions{},
				}).leaseFields()
			}),
		yamlnode.MappingField("outcome", "the incident at the end", "`outcome`", final.incidentFields(),
			func(*yaml.Node) { t.ExpectedIncident = final }),
		yamlnode.BoolField("matched", "whether a playbook handles the incident", &t.ExpectedMatch),
		durationBoundField("time_to_contain", "from the first detection to the first containment in force: `<= 5s` or `< 5s`",
			&t.TimeToContain),
	)
}

func (d *Detection) detectionFields() []yamlnode.Field {
	kinds := []sensors.Kind{sensors.KindExec, sensors.KindConnect, sensors.KindFileOpen, sensors.KindExit}
	return withPositions(d.positions,
		yamlnode.DurationField("at", "the time of the detection, after the incident starts", &d.Offset),
		yamlnode.StringField("rule", "the rule; missing fields are those of the shipped rule with this name", &d.Rule),
		yamlnode.StringField("title", "the rule's title", &d.Title),
		yamlnode.EnumField("objective", "the attacker's suspected objective", &d.Objective, sensors.Objectives),
		yamlnode.EnumField("severity", "the severity; default high", &d.Severity, sensors.Severities),
		yamlnode.FractionField("confidence", "the confidence of the rule; default 0.9", &d.Confidence),
		yamlnode.StringField("technique", "the ATT&CK technique", &d.Technique),
		yamlnode.StringListField("reasons", "the reasons", &d.Reasons),
		yamlnode.StringField("source", "the source; default stanch", &d.Source),
		yamlnode.StringField("actor", "the actor, as the source names it", &d.Actor),
		yamlnode.EnumField("kind", "the kind of event; default: inferred from the other fields", &d.Kind, kinds),
		yamlnode.IntField("count", "the number of deduplicated detections", &d.Count, 1, 1_000_000),
		yamlnode.StructField("process", "the process", &d.Process),
		yamlnode.StructField("network", "the connection", &d.Network),
		yamlnode.StructField("file", "the file", &d.FileOpened),
		yamlnode.StringField("pod", "the pod's name; default: the workload's name with the suffix -1", &d.Pod),
		yamlnode.StringField("container", "the container's name; default app", &d.Container),
		yamlnode.StringField("node", "the node; default: the incident's", &d.Node),
		yamlnode.StringField("image", "the image; default: the incident's", &d.Image),
		yamlnode.StringField("image_digest", "the image's digest; default: the incident's", &d.Digest),
		yamlnode.StringField("service_account", "the pod's service account; default: the incident's", &d.Identity),
		yamlnode.BoolField("host_network", "whether the pod uses the host's network", &d.HostNetwork),
		yamlnode.StructField("subject", "the subject if it is not a container: kind, name and optionally namespace",
			&d.Subject),
	)
}

func (c *WorkloadContext) contextFields() []yamlnode.Field {
	return withPositions(
		c.positions,
		yamlnode.StringField(
			"workload",
			"namespace/Kind/name, or Container/name outside of Kubernetes; default shop/Deployment/web",
			&c.Workload,
		),
		yamlnode.StringField("uid", "the workload's UID", &c.UID),
		yamlnode.StringField("image", "its image", &c.Image),
		yamlnode.StringField("image_digest", "its image's digest", &c.ImageDigest),
		yamlnode.StringField("service_account", "its service account", &c.ServiceAccount),
		yamlnode.StringField("node", "its node; default node-1", &c.Node),
		yamlnode.StructField("labels", "its pods' labels", &c.Labels),
		yamlnode.StructField("blast_radius", "the other workloads that may be affected", &c.BlastRadius),
		yamlnode.StringListField("changes", "what changed recently", &c.Changes),
		yamlnode.StringListField("missing", "the parts of the context that could not be determined", &c.Missing),
	)
}

func approversFields(a *playbooks.Approvers) []yamlnode.Field {
	return []yamlnode.Field{
		yamlnode.StringListField("groups", "groups", &a.Groups),
		yamlnode.StringListField("users", "people", &a.Users),
		yamlnode.IntField("quorum", "the number of approvals that are required; default 1", &a.Quorum, 1, 10),
		yamlnode.DurationField("timeout", "the timeout; default 15m", &a.Timeout),
	}
}

func (a *ApprovalAnswer) answerFields() []yamlnode.Field {
	answer := yamlnode.Field{
		Name: "answer", Doc: "yes or no", Required: true,
		Schema: func() yamlnode.Object { return yamlnode.Object{"enum": []any{"yes", "no", true, false}} },
		Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
			switch strings.ToLower(v.Value) {
			case "yes", "true": // editors may still treat YAML 1.1 booleans as booleans
				a.Approves = true
			case "no", "false":
			default:
				r.Errorf(yamlnode.PositionOf(v), "value", "write `answer: yes` or `answer: no`", "`answer` cannot be %s",
					yamlnode.DescribeKind(v))
			}
		},
	}
	return withPositions(a.positions,
		yamlnode.StringField("person", "who", &a.Person).AsRequired(),
		answer,
		yamlnode.DurationField("after", "the time of the answer, after the request; default 1m", &a.After),
		yamlnode.StringField("to", "the request's title, or its step or action; default: all requests", &a.RequestName),
		yamlnode.StringField("reason", "why", &a.Reason),
		yamlnode.StringListField("groups", "the groups of the person; default: all groups that are asked first", &a.Groups),
	)
}

func (s *ExpectedStep) stepFields() []yamlnode.Field {
	return withPositions(s.positions,
		yamlnode.StringField("step", "the step's id or path; inside loops and calls with their names as a prefix",
			&s.StepName),
		yamlnode.StringField("playbook", "its playbook's name, if several run", &s.Playbook),
		yamlnode.StringField("action", "its action", &s.Action),
		yamlnode.StringField("target", "its target's name, namespace/name or id", &s.Target),
		yamlnode.EnumField("outcome", "the outcome", &s.Outcome, playbooks.Outcomes),
		yamlnode.StringField("reason", "a substring of the reason", &s.Reason),
		yamlnode.AnyField("with", "rendered parameters; other parameters are ignored", &s.Params),
		yamlnode.DurationField("within", "the maximum time after the incident started", &s.NotAfter),
		yamlnode.DurationField("at", "the time after the incident started, to the second", &s.ExpectedAt),
	)
}

func (a *ExpectedApprovalRequest) approvalRequestFields() []yamlnode.Field {
	return withPositions(a.positions,
		yamlnode.StringField("title", "a substring of the request's title", &a.Title),
		yamlnode.StringField("text", "a substring of its text", &a.Text),
		yamlnode.StringField("would", "a substring of the changes that an approval permits", &a.ProposedAction),
		yamlnode.StringListField("of", "groups or people that are asked", &a.Approvers),
		yamlnode.IntField("quorum", "the number of approvals that are required", &a.Quorum, 1, 10),
		yamlnode.DurationField("within", "the maximum time after the incident started", &a.NotAfter),
	)
}

func (e *ExpectedContainment) containmentFields() []yamlnode.Field {
	known := []playbooks.Outcome{playbooks.OutcomeChanged, playbooks.OutcomeUnverified, playbooks.OutcomeUnchanged}
	return withPositions(e.positions,
		yamlnode.StringField("action", "the action", &e.Action).AsRequired(),
		yamlnode.StringField("target", "the target's name, namespace/name or id", &e.Target),
		yamlnode.EnumField("outcome", "whether the effect was verified", &e.Outcome, known),
		yamlnode.DurationField("for", "the duration for which it is in force, to the second", &e.LeaseDuration),
		yamlnode.AnyField("with", "parameters; other parameters are ignored", &e.Params),
	)
}

func (l *ExpectedLease) leaseFields() []yamlnode.Field {
	return withPositions(l.positions,
		yamlnode.StringField("action", "the action", &l.Action).AsRequired(),
		yamlnode.StringField("target", "the target's name, namespace/name or id", &l.Target),
		yamlnode.EnumField("state", "the state of the lease", &l.State,
			[]string{"applying", "held", "undoing", "stuck", "ended"}),
		yamlnode.BoolField("undone", "whether it was undone", &l.Undone),
		yamlnode.StringField("reason", "a substring of the reason", &l.Reason),
	)
}

func (f *ExpectedIncident) incidentFields() []yamlnode.Field {
	return withPositions(f.positions,
		yamlnode.EnumField("status", "the status of the incident", &f.Status, []string{"open", "closed"}),
		yamlnode.EnumField("objective", "the attacker's suspected objective", &f.Objective, sensors.Objectives),
		yamlnode.EnumField("severity", "the severity", &f.Severity, sensors.Severities),
		yamlnode.FractionField("confidence", "the confidence, to two decimal places", &f.Confidence),
		yamlnode.StringField("summary", "a substring of the summary", &f.Summary),
	)
}

func durationBoundField(name, doc string, to **DurationBound) yamlnode.Field {
	schema := func() yamlnode.Object {
		return yamlnode.Object{"type": "string", "pattern": `^(<=? *)?(0|(` + duration.UnitPattern + `)+)$`}
	}
	return yamlnode.Field{Name: name, Doc: doc, Schema: schema, Read: func(r *yamlnode.Reader, _, v *yaml.Node) {
		b := &DurationBound{Pos: yamlnode.PositionOf(v)}
		text, found := strings.CutPrefix(v.Value, "<=")
		if !found {
			text, b.IsExclusive = strings.CutPrefix(v.Value, "<")
		}
		d, err := duration.Parse(strings.TrimSpace(text))
		if v.Kind != yaml.ScalarNode || err != nil || d < 0 {
			r.Errorf(b.Pos, "duration", "for example, write `<= 5s`", "`%s` must be an upper limit such as <= 5s, not %s", name,
				yamlnode.DescribeKind(v))
			return
		}
		b.Limit = d
		*to = b
	}}
}
