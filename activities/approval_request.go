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
	"stanch/sensors/truncate"
)

// ApprovalRequest is a pending request for approval.
type ApprovalRequest struct {
	ID         string       `json:"id"`  // unique within the run
	WorkflowID string       `json:"run"` // the playbook's workflow id
	IncidentID string       `json:"incident"`
	Step       string       `json:"step"`
	Title      string       `json:"title"`
	Question   string       `json:"question,omitempty"`
	Plans      []PlanResult `json:"plans"`
	// Targets are the targets of the plans, in the same order.
	Targets   []playbooks.Target  `json:"targets,omitempty"`
	PlansHash string              `json:"hash"` // of all plans; votes are bound to it
	Approvers playbooks.Approvers `json:"approvers"`
	AskedAt   time.Time           `json:"asked_at"`
	Deadline  time.Time           `json:"deadline"`
	// ReplacesHash is the hash of the request that this one replaces. ChangesSinceReplaced lists the differences.
	ReplacesHash         string                 `json:"replaces_hash,omitempty"`
	ChangesSinceReplaced []string               `json:"changes_since_replaced,omitempty"`
	Votes                []attestation.Envelope `json:"votes,omitempty"`
	// ApprovedBy names the people who have approved so far. IgnoredVotes gives the reason for each vote that does not
	// count.
	ApprovedBy   []string `json:"approved_by,omitempty"`
	IgnoredVotes []string `json:"ignored_votes,omitempty"`
}

// QualifiedID returns the request's id within its incident: the number of its run and the request's ID ("2/contain#1").
// Two runs may use the same ID.
func (p ApprovalRequest) QualifiedID() string {
	// The workflow id of a run is playbook/INCIDENT/NUMBER/PLAYBOOK.
	if parts := strings.SplitN(p.WorkflowID, "/", 4); len(parts) == 4 && parts[1] == p.IncidentID {
		return parts[2] + "/" + p.ID
	}
	return p.ID
}

// DurationText returns how long the approved containments would last, such as " for 2d"; "" if there are none or their
// durations differ.
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

// ApprovalOutcome is the result of a request that is closed.
type ApprovalOutcome struct {
	ID         string    `json:"id"`
	Step       string    `json:"step"`
	Title      string    `json:"title"`
	Granted    bool      `json:"granted"`
	Reason     string    `json:"reason"` // who decided what, or why no vote counted
	ApprovedBy []string  `json:"approved_by,omitempty"`
	DecidedAt  time.Time `json:"at"`
}

// Validate returns an error if the request does not match its hash: approvers must see exactly what their votes are
// bound to.
func (p ApprovalRequest) Validate() error {
	if ApprovalRequestHash(p.Plans, p.Approvers) != p.PlansHash || len(p.Targets) != len(p.Plans) {
		return errors.New("the hash of the approval request does not match its plans")
	}
	for i, r := range p.Plans {
		if r.Plan.Hash() != r.PlanHash || r.Plan.TargetID != p.Targets[i].ID() {
			return fmt.Errorf("the plan for %s does not match its hash", truncate.Text(r.Plan.TargetID, 80))
		}
	}
	return nil
}

// Diff returns the differences from an earlier plan, in sentences for approvers.
func (p Plan) Diff(before Plan) []string {
	var out []string
	for _, was := range before.Changes {
		if !slices.Contains(p.Changes, was) {
			out = append(out, "no longer planned: "+was)
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
		out = append(out, "its parameters changed")
	}
	if p.TargetID != before.TargetID {
		out = append(out, "its target is "+p.TargetID+", not "+before.TargetID)
	}
	return out
}
