// Package scenario is the format of playbook tests: what is detected, what each action answers, who answers what, and
// what must become of it. It reads a file, checks it against the playbooks that it tests, and compares what happened
// with what was expected.
//
// It is pure. It refuses to run anything (worker/playtest does), and to guess: a step, an action or an outcome that does
// not exist is an error before anything runs.
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

// TestFileSuffix is how the name of a file of tests ends.
const TestFileSuffix = "_test.yaml"

// Pos is a place in a file.
type Pos = yamlnode.Position

// TestFile is one file of tests.
type TestFile struct {
	File   string
	Source []byte
	// Playbooks are the files that it tests; none are all of its folder.
	Playbooks []FileRef
	Tests     []*TestCase
}

// FileRef names another file.
type FileRef struct {
	Name string
	Pos  Pos
}

// TestCase is one incident and what must become of it.
type TestCase struct {
	Name          string
	Pos           Pos
	RecordingFile FileRef
	// Detections are what the incident is about, where there is no recording.
	Detections          []*Detection
	IncidentContext     *WorkloadContext
	Phase               int
	ConfidenceThreshold *float64 // what counts as high
	Approvers           *Approvers
	FakeResults         []*FakeResult
	ApprovalAnswers     []*ApprovalAnswer

	ExpectedSteps            []*ExpectedStep
	ExpectedApprovalRequests *[]*ExpectedApprovalRequest
	ForbiddenActions         []FileRef
	ExpectedContainments     *[]*ExpectedContainment
	ExpectedLeases           *[]*ExpectedLease
	ExpectedIncident         *ExpectedIncident
	ExpectedMatch            *bool
	TimeToContain            *DurationBound // time to contain
	positions                keyPositions
	expectSpan               *yamlSpan
}

// yamlSpan is where the value of `expect` stands.
type yamlSpan struct{ keyNode, valueNode *yaml.Node }

// keyPositions are where the values of keys stand.
type keyPositions map[string]Pos

// Detection is one detection. What is not given is that of the rule, or a readable default.
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
	Subject                                       sensors.Subject // what it is about if that is no container
	positions                                     keyPositions
}

// WorkloadContext is what is known around the workload.
type WorkloadContext struct {
	Workload       string // "shop/Deployment/web", or "Container/web" outside of Kubernetes
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

// Approvers are those of the scope.
type Approvers struct {
	Groups, Users []string
	Quorum        int
	Timeout       time.Duration
}

// FakeResult is what an action answers.
type FakeResult struct {
	Action         string
	Target         string // "" is any
	CallNumber     int    // 0 is every
	Outcome        playbooks.Outcome
	Reason         string
	Outputs        yamlnode.Value
	PlannedChanges []string
	Delay          time.Duration
	FailureCount   int
	Pos            Pos
	positions      keyPositions
}

// ApprovalAnswer is what a person answers.
type ApprovalAnswer struct {
	Person      string
	Approves    bool
	After       time.Duration
	RequestName string // a question's title, step or action; "" is every
	Reason      string
	Groups      []string // nil: all that are asked
	positions   keyPositions
}

// ExpectedStep is what must become of a step.
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

// ExpectedApprovalRequest is a question that must be asked.
type ExpectedApprovalRequest struct {
	Title, Text, ProposedAction string
	Approvers                   []string
	Quorum                      int
	NotAfter                    time.Duration
	Pos                         Pos
	positions                   keyPositions
}

// ExpectedContainment is a containment that must have been in force.
type ExpectedContainment struct {
	Action, Target string
	Outcome        playbooks.Outcome
	LeaseDuration  time.Duration
	Params         yamlnode.Value
	Pos            Pos
	positions      keyPositions
}

// ExpectedLease is the state of a lease when the incident closed.
type ExpectedLease struct {
	Action, Target, State, Reason string
	Undone                        *bool
	Pos                           Pos
	positions                     keyPositions
}

// ExpectedIncident is the incident as it ended.
type ExpectedIncident struct {
	Status, Summary string
	Objective       sensors.Objective
	Severity        sensors.Severity
	Confidence      *float64
	positions       keyPositions
}

// DurationBound is a comparison with a duration.
type DurationBound struct {
	IsExclusive bool // and not equal
	Limit       time.Duration
	Pos         Pos
}

// String is the bound as it is written.
func (b DurationBound) String() string {
	if b.IsExclusive {
		return "< " + duration.Format(b.Limit)
	}
	return "<= " + duration.Format(b.Limit)
}

// LastStepName is the name of a step without the loops and calls that it stands in: "each[2]/isolate" is "isolate".
func LastStepName(step string) string { return step[strings.LastIndexByte(step, '/')+1:] }

// PositionOf is where the value of a key of the detection stands, or the detection.
func (d *Detection) PositionOf(key string) Pos {
	if at, ok := d.positions[key]; ok {
		return at
	}
	return d.positions[""]
}
