package activities

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
)

// Pending is one question that waits for people.
type Pending struct {
	ID       string       `json:"id"`  // within the run
	Run      string       `json:"run"` // the playbook's workflow id
	Incident string       `json:"incident"`
	Step     string       `json:"step"`
	Title    string       `json:"title"`
	Ask      string       `json:"ask,omitempty"`
	Plans    []PlanResult `json:"plans"`
	// Targets are the plans', in their order.
	Targets   []playbooks.Target `json:"targets,omitempty"`
	Hash      string             `json:"hash"` // of all plans: what a vote is bound to
	Approvers Approvers          `json:"approvers"`
	Asked     time.Time          `json:"asked"`
	Deadline  time.Time          `json:"deadline"`
	// Before is the hash of the question that this one takes the place of, and Changed what is different since.
	Before  string         `json:"before,omitempty"`
	Changed []string       `json:"changed,omitempty"`
	Votes   []attestation.Envelope `json:"votes,omitempty"`
	// Yes are who has agreed so far; Ignored says of each vote that does not count why not.
	Yes     []string `json:"yes,omitempty"`
	Ignored []string `json:"ignored,omitempty"`
}

// Name names the question within its incident: the number of its run, and its ID there ("2/contain#1"). Two runs may ask
// under the same ID.
func (p Pending) Name() string {
	// A run's workflow id is playbook/INCIDENT/NUMBER/PLAYBOOK.
	if parts := strings.SplitN(p.Run, "/", 4); len(parts) == 4 && parts[1] == p.Incident {
		return parts[2] + "/" + p.ID
	}
	return p.ID
}

// Holds says for how long what it asks about would be contained, such as " for 2d"; "" where nothing is, or not all of it
// for as long.
func (p Pending) Holds() string {
	for _, r := range p.Plans {
		if r.Plan.For != p.Plans[0].Plan.For {
			return ""
		}
	}
	if len(p.Plans) == 0 || p.Plans[0].Plan.For <= 0 {
		return ""
	}
	return " for " + duration.Format(p.Plans[0].Plan.For)
}

// Answered is what became of a question that is no longer open.
type Answered struct {
	ID      string    `json:"id"`
	Step    string    `json:"step"`
	Title   string    `json:"title"`
	Granted bool      `json:"granted"`
	Reason  string    `json:"reason"` // who said what, or why nobody's answer counted
	Yes     []string  `json:"yes,omitempty"`
	At      time.Time `json:"at"`
}

// Sound says why a question is not what its hash says, or nil. What is shown must be what a yes is bound to.
func (p Pending) Sound() error {
	if QuestionHash(p.Plans, p.Approvers) != p.Hash || len(p.Targets) != len(p.Plans) {
		return errors.New("the question's hash is not that of its plans")
	}
	for i, r := range p.Plans {
		if r.Plan.Hash() != r.Hash || r.Plan.Target != p.Targets[i].ID() {
			return fmt.Errorf("the plan for %s is not the one of its hash", clip(r.Plan.Target, 80))
		}
	}
	return nil
}

// Since says what is different between two plans, in sentences for a person.
func (p Plan) Since(before Plan) []string {
	var out []string
	for _, was := range before.Changes {
		if !slices.Contains(p.Changes, was) {
			out = append(out, "no longer: "+was)
		}
	}
	for _, is := range p.Changes {
		if !slices.Contains(before.Changes, is) {
			out = append(out, "now: "+is)
		}
	}
	if p.For != before.For {
		out = append(out, "now for "+duration.Format(p.For)+" and not for "+duration.Format(before.For))
	}
	if string(p.Params) != string(before.Params) {
		out = append(out, "its parameters are others")
	}
	if p.Target != before.Target {
		out = append(out, "it is about "+p.Target+" and not about "+before.Target)
	}
	return out
}
