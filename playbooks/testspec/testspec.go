// Package testspec defines the format of playbook tests: detections, fake results of actions, answers of people, and
// expected results. It parses a test file, checks it against the playbooks under test, and compares actual with
// expected results.
//
// It is pure and runs nothing: worker/playbooktest runs the tests. Unknown steps, actions and outcomes are errors
// before anything runs.
package testspec

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/duration"
	"stanch/sensors/yamlnode"
)

// TestFileSuffix is the suffix of test file names.
const TestFileSuffix = "_test.yaml"

// Pos is a position in a file.
type Pos = yamlnode.Position

// TestFile is one test file.
type TestFile struct {
	File   string
	Source []byte
	// Playbooks are the playbook files under test; empty means all files of its directory.
	Playbooks []FileRef
	Tests     []*TestCase
}

// FileRef references another file, or an action, with its position.
type FileRef struct {
	Name string
	Pos  Pos
}

// TestCase is one incident and its expected results.
type TestCase struct {
	Name          string
	Pos           Pos
	RecordingFile FileRef
	// Detections are the detections of the incident, if RecordingFile is not set.
	Detections          []*Detection
	IncidentContext     *WorkloadContext
	Phase               int
	ConfidenceThreshold *float64 // minimum confidence for automatic actions
	Approvers           *playbooks.Approvers
	FakeResults         []*FakeResult
	ApprovalAnswers     []*ApprovalAnswer

	ExpectedSteps            []*ExpectedStep
	ExpectedApprovalRequests *[]*ExpectedApprovalRequest
	ForbiddenActions         []FileRef
	ExpectedContainments     *[]*ExpectedContainment
	ExpectedLeases           *[]*ExpectedLease
	ExpectedIncident         *ExpectedIncident
	ExpectedMatch            *bool
	TimeToContain            *DurationBound // maximum time to the first containment
	positions                keyPositions
	expectSpan               *yamlSpan
}

// yamlSpan is the key and the value of `expect`.
type yamlSpan struct{ keyNode, valueNode *yaml.Node }

// keyPositions are the positions of the values, by key.
type keyPositions map[string]Pos

// Detection is one detection. Missing fields are taken from the rule, or have a readable default.
type Detection struct {
	Offset                                        time.Duration
	Rule, Title, Technique, Source, Actor         string
	Objective                                     sensors.Objective
	Severity                                      sensors.Severity
	Kind                                          sensors.Kind
	Confidence                                    *float64
	Reasons                                       []string
	Count                                         int
	Process                                       sensors.Process
	Network                                       sensors.Network
	FileOpened                                    sensors.File
	Pod, Container, Node, Image, Digest, Identity string
	HostNetwork                                   *bool
	Subject                                       sensors.Subject // subject, if it is not a container
	positions                                     keyPositions
}

// WorkloadContext is the context of the workload.
type WorkloadContext struct {
	Workload       string // "shop/Deployment/web", or "Container/web" outside Kubernetes
	UID            string
	Image          string
	ImageDigest    string
	ServiceAccount string
	Node           string
	Labels         map[string]string
	BlastRadius    playbooks.BlastRadius
	Changes        []string
	Missing        []string
	positions      keyPositions
}

// FakeResult is the result that a fake action returns.
type FakeResult struct {
	Action         string
	Target         string // "" matches any target
	CallNumber     int    // 0 matches every call
	Outcome        playbooks.Outcome
	Reason         string
	Outputs        yamlnode.Value
	PlannedChanges []string
	Delay          time.Duration
	FailureCount   int
	Pos            Pos
	positions      keyPositions
}

// ApprovalAnswer is a person's answer to an approval request.
type ApprovalAnswer struct {
	Person      string
	Approves    bool
	After       time.Duration
	RequestName string // title, step or action of the request; "" matches every request
	Reason      string
	Groups      []string // nil: all groups of the approvers
	positions   keyPositions
}

// ExpectedStep is an expected step and its result.
type ExpectedStep struct {
	StepName, Playbook, Action, Target string
	Outcome                            playbooks.Outcome
	Reason                             string
	Params                             yamlnode.Value
	NotAfter                           time.Duration
	ExpectedAt                         time.Duration
	Pos                                Pos
	positions                          keyPositions
	node                               *yaml.Node
}

// ExpectedApprovalRequest is an expected approval request.
type ExpectedApprovalRequest struct {
	Title, Text, ProposedAction string
	Approvers                   []string
	Quorum                      int
	NotAfter                    time.Duration
	Pos                         Pos
	positions                   keyPositions
}

// ExpectedContainment is a containment that must have been applied.
type ExpectedContainment struct {
	Action, Target string
	Outcome        playbooks.Outcome
	LeaseDuration  time.Duration
	Params         yamlnode.Value
	Pos            Pos
	positions      keyPositions
}

// ExpectedLease is the expected state of a lease when the incident closed.
type ExpectedLease struct {
	Action, Target, State, Reason string
	Undone                        *bool
	Pos                           Pos
	positions                     keyPositions
}

// ExpectedIncident is the expected final state of the incident.
type ExpectedIncident struct {
	Status, Summary string
	Objective       sensors.Objective
	Severity        sensors.Severity
	Confidence      *float64
	positions       keyPositions
}

// DurationBound is an upper bound of a duration.
type DurationBound struct {
	IsExclusive bool // true for <, false for <=
	Limit       time.Duration
	Pos         Pos
}

// String returns the bound as it is written in YAML.
func (b DurationBound) String() string {
	if b.IsExclusive {
		return "< " + duration.Format(b.Limit)
	}
	return "<= " + duration.Format(b.Limit)
}

// LastStepName returns the name of a step without its loops and calls: "isolate" for "each[2]/isolate".
func LastStepName(step string) string { return step[strings.LastIndexByte(step, '/')+1:] }

// PositionOf returns the position of a key's value in the detection, or that of the detection if the key is missing.
func (d *Detection) PositionOf(key string) Pos {
	if at, ok := d.positions[key]; ok {
		return at
	}
	return d.positions[""]
}
