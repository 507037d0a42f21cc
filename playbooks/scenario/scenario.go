// Package scenario is the format of playbook tests: what is detected, what each action answers, who answers what, and
// what must become of it. It reads a file, checks it against the playbooks that it tests, and compares what happened
// with what was expected.
//
// It is pure. It refuses to run anything (worker/playtest does), and to guess: a step, an action or an outcome that does
// not exist is an error before anything runs.
package scenario

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/duration"
	"stanch/sensors/yamlnode"
)

// Suffix is how the name of a file of tests ends.
const Suffix = "_test.yaml"

// Pos is a place in a file.
type Pos = yamlnode.Position

// File is one file of tests.
type File struct {
	File   string
	Source []byte
	// Playbooks are the files that it tests; none are all of its folder.
	Playbooks []Ref
	Tests     []*Test
}

// Ref names another file.
type Ref struct {
	Path string
	Pos  Pos
}

// Test is one incident and what must become of it.
type Test struct {
	Name      string
	Pos       Pos
	Recording Ref
	// Detections are what the incident is about, where there is no recording.
	Detections []*Detection
	Incident   *Context
	Phase      int
	Confidence *float64 // what counts as high
	Approvers  *Approvers
	Fakes      []*Fake
	Answers    []*Answer

	Expect  []*Step
	Asks    *[]*Ask
	Never   []Ref
	Effects *[]*Effect
	Leases  *[]*Lease
	Outcome *Final
	Matched *bool
	Bound   *Bound // time to contain
	at      places
	expect  *span
}

// span is where the value of `expect` stands.
type span struct{ key, list *yaml.Node }

// places are where the values of keys stand.
type places map[string]Pos

// Detection is one detection. What is not given is that of the rule, or a readable default.
type Detection struct {
	At                                            time.Duration
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
	at                                            places
}

// Context is what is known around the workload.
type Context struct {
	Workload       string // "shop/Deployment/web", or "Container/web" outside of Kubernetes
	UID            string
	Image          string
	ImageDigest    string
	ServiceAccount string
	Node           string
	Labels         map[string]string
	Blast          playbooks.BlastRadius
	Changes        []string
	Missing        []string
	at             places
}

// Approvers are those of the scope.
type Approvers struct {
	Groups, Users []string
	Quorum        int
	Timeout       time.Duration
}

// Fake is what an action answers.
type Fake struct {
	Action  string
	Target  string // "" is any
	Call    int    // 0 is every
	Outcome playbooks.Outcome
	Reason  string
	Outputs yamlnode.Value
	Changes []string
	Takes   time.Duration
	Fails   int
	Pos     Pos
	at      places
}

// Answer is what a person answers.
type Answer struct {
	Person string
	Yes    bool
	After  time.Duration
	To     string // a question's title, step or action; "" is every
	Reason string
	Groups []string // nil: all that are asked
	at     places
}

// Step is what must become of a step.
type Step struct {
	Step, Playbook, Action, Target string
	Outcome                        playbooks.Outcome
	Reason                         string
	With                           yamlnode.Value
	Within                         time.Duration
	After                          time.Duration
	Pos                            Pos
	at                             places
	node                           *yaml.Node
}

// Ask is a question that must be asked.
type Ask struct {
	Title, Text, Would string
	Of                 []string
	Quorum             int
	Within             time.Duration
	Pos                Pos
	at                 places
}

// Effect is a containment that must have been in force.
type Effect struct {
	Action, Target string
	Outcome        playbooks.Outcome
	For            time.Duration
	With           yamlnode.Value
	Pos            Pos
	at             places
}

// Lease is the state of a lease when the incident closed.
type Lease struct {
	Action, Target, State, Reason string
	Undone                        *bool
	Pos                           Pos
	at                            places
}

// Final is the incident as it ended.
type Final struct {
	Status, Summary string
	Objective       sensors.Objective
	Severity        sensors.Severity
	Confidence      *float64
	at              places
}

// Bound is a comparison with a duration.
type Bound struct {
	Less  bool // and not equal
	Limit time.Duration
	Pos   Pos
}

// String is the bound as it is written.
func (b Bound) String() string {
	if b.Less {
		return "< " + duration.Format(b.Limit)
	}
	return "<= " + duration.Format(b.Limit)
}

// Last is the name of a step without the loops and calls that it stands in: "each[2]/isolate" is "isolate".
func Last(step string) string { return step[strings.LastIndexByte(step, '/')+1:] }

// Pos is where the value of a key of the detection stands, or the detection.
func (d *Detection) Pos(key string) Pos {
	if at, ok := d.at[key]; ok {
		return at
	}
	return d.at[""]
}
