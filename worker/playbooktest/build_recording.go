package playbooktest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"time"

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/playbooks/testspec"
	"stanch/sensors"
	"stanch/sensors/rules"
	"stanch/worker/config"
	"stanch/worker/simulate"
)

// Defaults of a test.
const (
	defaultCluster    = "test"
	defaultScope      = "test"
	defaultIncidentID = "INC-01TESTTESTTESTTESTTESTTEST"
	defaultWorkload   = "shop/Deployment/web"
	defaultNode       = "node-1"
	defaultContainer  = "app"
	defaultConfidence = 0.9
)

// incidentOpenedAt returns the start of every test's incident.
func incidentOpenedAt() time.Time { return time.Date(2026, 1, 5, 3, 0, 0, 0, time.UTC) }

// contextWithDefaults returns the test's context with defaults.
func contextWithDefaults(t *testspec.TestCase) testspec.WorkloadContext {
	var c testspec.WorkloadContext
	if t.IncidentContext != nil {
		c = *t.IncidentContext
	}
	c.Workload, c.Node = cmp.Or(c.Workload, defaultWorkload), cmp.Or(c.Node, defaultNode)
	return c
}

// buildRecording returns the recording of a test's incident: its detections, without results.
func buildRecording(t *testspec.TestCase, known map[string]*rules.Rule) recording.Recording {
	c := contextWithDefaults(t)
	r := recording.Recording{Version: recording.FormatVersion, Incident: recording.Incident{
		ID: defaultIncidentID, GroupingKey: defaultCluster + "/" + c.Workload, Cluster: defaultCluster, Scope: defaultScope,
		Phase: cmp.Or(t.Phase, 3), Opened: incidentOpenedAt(),
	}}
	batches := map[time.Duration]int{}
	for i, d := range t.Detections {
		if _, ok := batches[d.Offset]; !ok {
			batches[d.Offset] = len(batches) + 1
		}
		r.Detections = append(r.Detections, recording.Detection{
			OffsetMS:    d.Offset.Milliseconds(),
			BatchNumber: batches[d.Offset], Detection: buildDetection(i, d, c, known[d.Rule]),
		})
	}
	slices.SortStableFunc(r.Detections, func(a, b recording.Detection) int { return cmp.Compare(a.OffsetMS, b.OffsetMS) })
	return r
}

func buildDetection(i int, d *testspec.Detection, c testspec.WorkloadContext, rule *rules.Rule) sensors.Detection {
	out := sensors.Detection{
		ID: fmt.Sprintf("test-%d", i+1), Rule: d.Rule, Title: d.Title, Severity: d.Severity, Objective: d.Objective,
		Technique: d.Technique,
		Reasons:   d.Reasons, Source: cmp.Or(d.Source, "stanch"), Time: incidentOpenedAt().Add(d.Offset),
		Detected: incidentOpenedAt().Add(d.Offset), Node: cmp.Or(d.Node, c.Node), Count: d.Count,
	}
	sure := defaultConfidence
	if rule != nil {
		out.Title, out.Severity, out.Objective, out.Technique = cmp.Or(out.Title, rule.Title),
			cmp.Or(out.Severity, rule.Severity), cmp.Or(out.Objective, rule.Objective), cmp.Or(out.Technique, rule.Technique)
		sure = rule.Confidence
		if out.Reasons == nil && rule.Reason != "" {
			out.Reasons = []string{rule.Reason}
		}
	}
	if d.Confidence != nil {
		sure = *d.Confidence
	}
	out.Confidence = sure
	out.Severity, out.Objective = cmp.Or(out.Severity, sensors.SeverityHigh),
		cmp.Or(out.Objective, sensors.ObjectiveExecution)
	out.Rule = cmp.Or(out.Rule, "test-"+string(out.Objective)) // two with the same rule would count as one
	out.Title = cmp.Or(out.Title, "Sign of "+string(out.Objective))
	out.Event = sensors.Event{
		ID: out.ID, Kind: d.Kind, Time: out.Time, Node: out.Node, Actor: d.Actor, Process: d.Process,
		File: d.FileOpened, Network: d.Network, Container: detectionContainer(d, c),
	}
	if d.Subject.Kind != "" {
		out.Event.Subject, out.Event.Container = d.Subject, sensors.Container{}
		out.Event.Kind = cmp.Or(out.Event.Kind, sensors.KindSensorHealth)
	}
	if out.Event.Kind == "" {
		switch {
		case rule != nil:
			out.Event.Kind = rule.Kind
		case d.Network != (sensors.Network{}):
			out.Event.Kind = sensors.KindConnect
		case d.FileOpened != (sensors.File{}):
			out.Event.Kind = sensors.KindFileOpen
		default:
			out.Event.Kind = sensors.KindExec
		}
	}
	if reflect.DeepEqual(out.Event.Process, sensors.Process{}) {
		out.Event.Process = sensors.Process{PID: 1000, Name: "app", Exe: "/usr/bin/app", Args: []string{"app"}}
	}
	return out
}

func detectionContainer(d *testspec.Detection, c testspec.WorkloadContext) sensors.Container {
	namespace, kind, name, _ := testspec.SplitWorkload(c.Workload)
	out := sensors.Container{
		Name: cmp.Or(d.Container, defaultContainer), Runtime: "containerd", Image: cmp.Or(d.Image, c.Image),
		ImageDigest: cmp.Or(d.Digest, c.ImageDigest),
		Workload:    sensors.Workload{Kind: kind, Name: name},
	}
	pod := cmp.Or(d.Pod, name+"-1")
	if namespace == "" {
		out.Name = cmp.Or(d.Container, name)
		pod = ""
	} else {
		out.Pod = sensors.Pod{
			Namespace: namespace, Name: pod, UID: "uid-" + pod, ServiceAccount: cmp.Or(d.Identity, c.ServiceAccount),
			Labels:      c.Labels,
			HostNetwork: d.HostNetwork != nil && *d.HostNetwork,
		}
	}
	sum := sha256.Sum256([]byte(namespace + "/" + pod + "/" + out.Name))
	out.ID = hex.EncodeToString(sum[:])
	return out
}

// guardConfigAndAnswers returns the guards' configuration and the answers; nil means as recorded.
func guardConfigAndAnswers(t *testspec.TestCase, rec recording.Recording,
	programs []*playbooks.Program,
) (*config.Config, simulate.ApprovalAnswers) {
	groups := initiallyAskedGroups(t, programs)
	answers := simulate.ApprovalAnswers{NoAnswers: t.ApprovalAnswers != nil || t.RecordingFile.Name == ""}
	var people []config.Person
	for _, a := range t.ApprovalAnswers {
		mine := a.Groups
		if mine == nil {
			mine = groups
		}
		answer := "no"
		if a.Approves {
			answer = "yes"
		}
		answers.NoAnswers = false
		answers.ExplicitAnswers = append(answers.ExplicitAnswers, simulate.ApprovalAnswer{
			Person: a.Person, YesOrNo: answer,
			AnswerDelay: config.Duration(a.After), RequestName: a.RequestName, Reason: a.Reason, Groups: mine,
		})
		people = append(people, config.Person{Name: a.Person, Groups: mine})
	}
	if t.RecordingFile.Name != "" && t.Approvers == nil && t.ConfidenceThreshold == nil {
		return nil, answers
	}
	c := config.Default()
	c.Cluster, c.Phase, c.People = rec.Incident.Cluster, cmp.Or(t.Phase, rec.Incident.Phase), people
	own := config.Scope{Name: defaultScope, Namespaces: []string{"*"}, Phase: c.Phase, ConfidenceThreshold: 0.8}
	own.Approvers = config.Approvers{Quorum: 1, Timeout: config.Duration(15 * time.Minute)}
	if t.ConfidenceThreshold != nil {
		own.ConfidenceThreshold = *t.ConfidenceThreshold
	}
	if a := t.Approvers; a != nil {
		own.Approvers = config.Approvers{
			Groups: a.Groups, Users: a.Users, Quorum: max(a.Quorum, 1),
			Timeout: cmp.Or(config.Duration(a.Timeout), own.Approvers.Timeout),
		}
	}
	c.Scopes = []config.Scope{own}
	return c, answers
}

// initiallyAskedGroups returns the groups that are asked before any escalation: a person without groups in the test is
// in all of them.
func initiallyAskedGroups(t *testspec.TestCase, programs []*playbooks.Program) []string {
	groups := []string{}
	for _, p := range programs {
		for _, book := range append([]*playbooks.Program{p}, p.TransitiveCallees()...) {
			book.WalkSteps(func(s *playbooks.Step) {
				if s.Approval != nil {
					groups = append(groups, s.Approval.Groups...)
				}
			})
		}
	}
	if t.Approvers != nil {
		groups = append(groups, t.Approvers.Groups...)
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}
