package activities

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
)

// ApprovalRequest is one question that waits for people.
type ApprovalRequest struct {
	ID         string       `json:"id"`  // within the run
	WorkflowID string       `json:"run"` // the playbook's workflow id
	IncidentID string       `json:"incident"`
	Step       string       `json:"step"`
	Title      string       `json:"title"`
	Question   string       `json:"question,omitempty"`
	Plans      []PlanResult `json:"plans"`
	// Targets are the plans', in their order.
	Targets   []playbooks.Target `json:"targets,omitempty"`
	PlansHash string             `json:"hash"` // of all plans: what a vote is bound to
	Approvers Approvers          `json:"approvers"`
	AskedAt   time.Time          `json:"asked_at"`
	Deadline  time.Time          `json:"deadline"`
	// ReplacesHash is the hash of the question that this one takes the place of, and Changed what is different since.
	ReplacesHash         string                 `json:"replaces_hash,omitempty"`
	ChangesSinceReplaced []string               `json:"changes_since_replaced,omitempty"`
	Votes                []attestation.Envelope `json:"votes,omitempty"`
	// ApprovedBy are who has agreed so far; Ignored says of each vote that does not count why not.
	ApprovedBy   []string `json:"approved_by,omitempty"`
	IgnoredVotes []string `json:"ignored_votes,omitempty"`
}

// QualifiedID names the question within its incident: the number of its run, and its ID there ("2/contain#1"). Two runs may ask
// under the same ID.
func (p ApprovalRequest) QualifiedID() string {
	// A run's workflow id is playbook/INCIDENT/NUMBER/PLAYBOOK.
	if parts := strings.SplitN(p.WorkflowID, "/", 4); len(parts) == 4 && parts[1] == p.IncidentID {
		return parts[2] + "/" + p.ID
	}
	return p.ID
}

// DurationText says for how long what it asks about would be contained, such as " for 2d"; "" where nothing is, or not all of it
// for as long.
func (p ApprovalRequest) DurationText() string {
	for _, r := range p.Plans {
		if r.Plan.Duration != p.Plans[0].Plan.Duration {
			return ""
		}
	}
	if len(p.Plans) == 0 || p.Plans[0].Plan.Duration <= 0 {
		return ""
	}
	return " for " + duration.Format(p.Plans[0].Plan.Duration)
}

// ApprovalOutcome is what became of a question that is no longer open.
type ApprovalOutcome struct {
	ID         string    `json:"id"`
	Step       string    `json:"step"`
	Title      string    `json:"title"`
	Granted    bool      `json:"granted"`
	Reason     string    `json:"reason"` // who said what, or why nobody's answer counted
	ApprovedBy []string  `json:"approved_by,omitempty"`
	DecidedAt  time.Time `json:"at"`
}

// Validate says why a question is not what its hash says, or nil. What is shown must be what a yes is bound to.
func (p ApprovalRequest) Validate() error {
	if ApprovalRequestHash(p.Plans, p.Approvers) != p.PlansHash || len(p.Targets) != len(p.Plans) {
		return errors.New("the question's hash is not that of its plans")
	}
	for i, r := range p.Plans {
		if r.Plan.Hash() != r.PlanHash || r.Plan.TargetID != p.Targets[i].ID() {
			return fmt.Errorf("the plan for %s is not the one of its hash", truncate(r.Plan.TargetID, 80))
		}
	}
	return nil
}

// Diff says what is different between two plans, in sentences for a person.
func (p Plan) Diff(before Plan) []string {
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
	if p.Duration != before.Duration {
		out = append(out, "now for "+duration.Format(p.Duration)+" and not for "+duration.Format(before.Duration))
	}
	if string(p.Params) != string(before.Params) {
		out = append(out, "its parameters are others")
	}
	if p.TargetID != before.TargetID {
		out = append(out, "it is about "+p.TargetID+" and not about "+before.TargetID)
	}
	return out
}
