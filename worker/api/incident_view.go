package api

import (
	"context"
	"net/http"
	"slices"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/worker/decisions"
)

// IncidentView is the current state of an incident, with what people have to do in it, for one viewer.
type IncidentView struct {
	playbooks.Incident
	// StatusText is the status as a phrase: "open", "resolved: false-positive by alice".
	StatusText string `json:"status_text"`
	// Headline is the title of the most important detection.
	Headline string `json:"headline,omitempty"`
	// OutcomeText summarizes the playbook runs, those that contained first; "" before any ran.
	OutcomeText string `json:"outcome_text,omitempty"`
	// OpenApprovals are the pending approval requests, ordered by deadline.
	OpenApprovals []OpenApproval `json:"open_approvals,omitempty"`
	// RefusedWhilePaused are the containments that were refused while new ones were paused, and whose targets nothing
	// contained since.
	RefusedWhilePaused []display.RefusedContainment `json:"refused_while_paused,omitempty"`
}

// OpenApproval is a pending approval request of an incident, for one viewer.
type OpenApproval struct {
	Name       string    `json:"name"` // the qualified id
	Title      string    `json:"title"`
	Approvers  string    `json:"approvers"` // the approvers as text
	ApprovedBy []string  `json:"approved_by,omitempty"`
	Quorum     int       `json:"quorum"`
	Deadline   time.Time `json:"deadline"`
	// Warnings say why an approval may have no effect: too few people may approve, or new containments are paused.
	Warnings []string `json:"warnings,omitempty"`
	// ViewerCanApprove is true if an approval of the viewer would count.
	ViewerCanApprove bool `json:"viewer_can_approve"`
}

// KillSwitchStatus is the state of the kill switch. The zero value is not paused.
type KillSwitchStatus struct {
	Paused    bool      `json:"paused"`
	Since     time.Time `json:"since,omitzero"`
	ChangedBy string    `json:"changed_by,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	// Error is why the switch cannot be read, which pauses new containments too.
	Error string `json:"error,omitempty"`
}

// PauseResult is the result of a pause. AlreadyPaused is true if new containments were paused before; that pause is
// unchanged.
type PauseResult struct {
	KillSwitchStatus
	AlreadyPaused bool `json:"already_paused,omitempty"`
}

// killSwitchStatus reads the kill switch.
func (a *API) killSwitchStatus(ctx context.Context) KillSwitchStatus {
	if a.KillSwitch == nil {
		return KillSwitchStatus{}
	}
	state, err := a.KillSwitch.State(ctx)
	return newKillSwitchStatus(state, err)
}

func newKillSwitchStatus(state attestation.KillSwitchState, err error) KillSwitchStatus {
	if err != nil {
		return KillSwitchStatus{Paused: true, Error: err.Error()}
	}
	if !state.Paused {
		return KillSwitchStatus{}
	}
	return KillSwitchStatus{Paused: true, Since: state.ChangedAt, ChangedBy: state.ChangedBy, Reason: state.Reason}
}

// ResumeResult is the result of clearing the kill switch, with what people may want to contain now.
type ResumeResult struct {
	StillPaused bool `json:"still_paused"`
	// RefusedContainments are the containments of open incidents that were refused while paused, by incident.
	RefusedContainments []IncidentRefusal `json:"refused_containments"`
	// UnreadReason is why the refused containments cannot be listed; "" if they can.
	UnreadReason string `json:"unread_reason,omitempty"`
}

// IncidentRefusal is a containment that was refused, with its incident.
type IncidentRefusal struct {
	IncidentID string `json:"incident"`
	display.RefusedContainment
}

// resumeResult lists the containments of open incidents that were refused while new containments were paused.
func (a *API) resumeResult(ctx context.Context) ResumeResult {
	out := ResumeResult{RefusedContainments: []IncidentRefusal{}}
	list, err := a.Queries.Incidents(ctx)
	if err != nil {
		out.UnreadReason = err.Error()
	}
	for _, in := range list {
		if in.Status != "open" || in.Disposition != "" {
			continue
		}
		for _, r := range display.FindRefusedWhilePaused(in) {
			out.RefusedContainments = append(out.RefusedContainments, IncidentRefusal{IncidentID: in.ID, RefusedContainment: r})
		}
	}
	return out
}

// viewIncident returns one incident for the caller.
func (a *API) viewIncident(r *http.Request, id string) (IncidentView, error) {
	in, err := a.Queries.Incident(r.Context(), id)
	if err != nil {
		return IncidentView{}, err
	}
	var pending []activities.ApprovalRequest
	if in.Status == "open" {
		pending, _ = a.Queries.PendingApprovals(r.Context(), id) // unreadable requests are omitted
	}
	return a.newViewBuilder(r).buildView(r.Context(), in, pending), nil
}

// viewIncidents returns all incidents for the caller, newest first.
func (a *API) viewIncidents(r *http.Request) ([]IncidentView, error) {
	list, err := a.Queries.Incidents(r.Context())
	if err != nil {
		return nil, err
	}
	pending, _ := a.Queries.AllPendingApprovals(r.Context())
	views := a.newViewBuilder(r)
	out := make([]IncidentView, 0, len(list))
	for _, in := range list {
		out = append(out, views.buildView(r.Context(), in, pending))
	}
	slices.SortStableFunc(out, func(a, b IncidentView) int { return b.Opened.Compare(a.Opened) })
	return out, nil
}

// buildView returns an incident with its pending approval requests, for the viewer.
func (v *viewBuilder) buildView(ctx context.Context, in playbooks.Incident,
	pending []activities.ApprovalRequest,
) IncidentView {
	worst, _ := display.HeadlineDetection(in)
	out := IncidentView{
		Incident: in, StatusText: display.DescribeStatus(in), Headline: worst.Title,
		OutcomeText: display.SummarizeOutcomes(in),
	}
	if in.Status == "open" && in.Disposition == "" {
		out.RefusedWhilePaused = display.FindRefusedWhilePaused(in)
	}
	for _, q := range pending {
		if q.IncidentID == in.ID {
			out.OpenApprovals = append(out.OpenApprovals, OpenApproval{
				Name: q.QualifiedID(), Title: q.Title + q.DurationText(), Approvers: q.Approvers.Describe(),
				ApprovedBy: q.ApprovedBy, Quorum: max(q.Approvers.Quorum, 1), Deadline: q.Deadline,
				ViewerCanApprove: v.wouldVoteCount(ctx, in, q),
				Warnings:         v.warnings(in, q),
			})
		}
	}
	slices.SortStableFunc(out.OpenApprovals, func(a, b OpenApproval) int { return a.Deadline.Compare(b.Deadline) })
	return out
}

// viewBuilder builds the views of one request. The viewer is authenticated once, and group membership is looked up
// once for each set of approvers.
type viewBuilder struct {
	*API
	principal         decisions.Principal
	config            *config.Config
	authenticated     bool
	groupsByApprovers map[string][]string // by the approvers of a request
	pausedBy          string              // who paused new containments; "" if not paused
}

func (a *API) newViewBuilder(r *http.Request) *viewBuilder {
	v := &viewBuilder{API: a, groupsByApprovers: map[string][]string{}, pausedBy: a.PausedBy(r.Context())}
	if a.Identify == nil {
		return v
	}
	s, err := a.Identify(r)
	cfg, cfgErr := a.Roster.Current()
	v.principal, v.config, v.authenticated = s, cfg, err == nil && cfgErr == nil
	return v
}

// warnings returns why approving a request may have no effect.
func (v *viewBuilder) warnings(in playbooks.Incident, q activities.ApprovalRequest) (out []string) {
	if v.pausedBy != "" && len(q.Plans) > 0 {
		out = append(out, decisions.PausedWarning(v.pausedBy))
	}
	if v.config == nil || in.Drill {
		return out
	}
	if why := v.TooFewApproversReason(v.config, q.Approvers, func(p config.Person) bool {
		return in.ActorsTruncated ||
			decisions.ExclusionReason(in, q, p) != ""
	}); why != "" {
		out = append(out, why)
	}
	return out
}

// wouldVoteCount reports whether an approval of the viewer would count. It is a hint: the vote itself is checked again.
func (v *viewBuilder) wouldVoteCount(ctx context.Context, in playbooks.Incident, q activities.ApprovalRequest) bool {
	s := v.principal
	if !v.authenticated || in.ActorsTruncated || decisions.ExclusionReason(in, q, s.Person) != "" ||
		slices.Contains(q.ApprovedBy, s.Name) || s.DrillName != "" && !in.Drill {
		return false
	}
	since := time.Since(q.AskedAt)
	if q.Approvers.CanApprove(s.Name, s.Groups, since) {
		return true
	}
	of := q.Approvers.Describe()
	groups, looked := v.groupsByApprovers[of]
	if !looked {
		groups, _ = v.GroupsForApprovers(ctx, v.config, s, q.Approvers) // none if they cannot be looked up
		v.groupsByApprovers[of] = groups
	}
	return q.Approvers.CanApprove(s.Name, groups, since)
}
