package simulate

import (
	"stanch/activities"
	"stanch/playbooks"
)

// Result is the result of one recording.
type Result struct {
	RecordingFile    string              `json:"recording_file"` // name of the file
	IncidentID       string              `json:"incident"`
	Workload         string              `json:"workload"`
	Scope            string              `json:"scope"`
	Phase            int                 `json:"phase"`
	Drill            bool                `json:"drill,omitempty"`
	Playbooks        []string            `json:"playbooks"`
	Steps            []StepResult        `json:"steps"`
	Effects          []ContainmentEffect `json:"effects"`
	Events           []TimelineEvent     `json:"events"`
	ApprovalRequests []ApprovalRequest   `json:"approval_requests"`
	// FirstContainmentMS is when the first containment would be in force; nil without one.
	FirstContainmentMS *int64 `json:"first_containment_ms,omitempty"`
	// AssumedResults lists the results that are not in the recording.
	AssumedResults []string `json:"assumed_results"`
	ClosesAtMS     int64    `json:"closes_at_ms"` // when the incident would close
	Error          string   `json:"error,omitempty"`
	// ActivityCount is the number of activities that the workflows ran, including local ones.
	ActivityCount int `json:"activity_count"`
	// Decisions are the guards' decisions, in order.
	Decisions []GuardDecision `json:"decisions"`
	// FinalIncident is the final state of the incident.
	FinalIncident playbooks.Incident `json:"-"`
}

// StepResult is the result of one step on one target.
type StepResult struct {
	Playbook  string            `json:"playbook"`
	RunNumber int               `json:"run"` // number of the incident's playbook run, from 1
	Step      string            `json:"step"`
	Action    string            `json:"action"`
	Target    string            `json:"target,omitempty"`
	Outcome   playbooks.Outcome `json:"outcome"`
	Reason    string            `json:"reason,omitempty"`
	AtMS      int64             `json:"at_ms"`
	Assumed   bool              `json:"assumed,omitempty"` // its results are not in the recording
}

// GuardDecision is a guard decision about a plan.
type GuardDecision struct {
	Action  string             `json:"action"`
	Target  string             `json:"target"`
	Verdict activities.Verdict `json:"verdict"`
	Guard   string             `json:"guard,omitempty"`
	Reason  string             `json:"reason"`
	Phase   int                `json:"phase"`
	AtMS    int64              `json:"at_ms"`
	// AtEnforcement is true for the decision immediately before the effect, false for that at planning.
	AtEnforcement bool `json:"at_enforcement,omitempty"`
}

// ContainmentEffect is a containment that would be in force.
type ContainmentEffect struct {
	Action      string            `json:"action"`
	Target      string            `json:"target"`
	Params      string            `json:"params,omitempty"`
	Outcome     playbooks.Outcome `json:"outcome"`
	AppliedAtMS int64             `json:"applied_at_ms"`
	UndoneAtMS  int64             `json:"undone_at_ms,omitempty"`
	Assumed     bool              `json:"assumed,omitempty"` // the effect is not in the recording
}

// TimelineEvent is one event of the simulated timeline.
type TimelineEvent struct {
	AtMS int64  `json:"at_ms"`
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// ApprovalRequest is a simulated approval request.
type ApprovalRequest struct {
	AskedAtMS       int64    `json:"asked_at_ms"`
	Playbook        string   `json:"playbook"`
	RunNumber       int      `json:"run"` // number of the incident's playbook run, from 1
	Step            string   `json:"step"`
	Title           string   `json:"title"`
	Question        string   `json:"question,omitempty"`
	ProposedActions []string `json:"proposed_actions"`
	Approvers       string   `json:"approvers"`
	Quorum          int      `json:"quorum"`
	TimeoutMS       int64    `json:"timeout_ms"`
	// WaitedMS is how long the request was pending.
	WaitedMS int64    `json:"waited_ms"`
	Answers  []string `json:"answers"`
}
