package gateway

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
)

// IncidentView is an incident as it is now, with what people have to do in it.
type IncidentView struct {
	playbooks.Incident
	// StatusText is the status in words: "open", "resolved: false-positive by alice".
	StatusText string `json:"status_text"`
	// Headline is the title of the detection that says most of it.
	Headline string `json:"headline,omitempty"`
	// OutcomeText says what became of it so far, what was contained first; "" before anything ran.
	OutcomeText string `json:"outcome_text,omitempty"`
	// OpenApprovals are its open questions, the oldest first.
	OpenApprovals []OpenApproval `json:"open_approvals,omitempty"`
	// RefusedWhilePaused are the containments that were refused while new ones were paused, and that nothing has contained since.
	RefusedWhilePaused []display.RefusedContainment `json:"refused_while_paused,omitempty"`
}

// OpenApproval is an open question.
type OpenApproval struct {
	Name       string    `json:"name"` // its name
	Title      string    `json:"title"`
	Approvers  string    `json:"approvers"` // whom it asks
	ApprovedBy []string  `json:"approved_by,omitempty"`
	Quorum     int       `json:"quorum"`
	Deadline   time.Time `json:"deadline"`
	// Warnings say what a yes would not bring about: too few may answer, or new containments are paused.
	Warnings []string `json:"warnings,omitempty"`
	// ViewerCanApprove is true if the answer of who asks for this view would count.
	ViewerCanApprove bool `json:"viewer_can_approve"`
}

// KillSwitchStatus is the kill switch.
type KillSwitchStatus struct {
	Paused    bool      `json:"paused"`
	Since     time.Time `json:"since,omitzero"`
	ChangedBy string    `json:"changed_by,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	// Error says why the switch cannot be read, which pauses too.
	Error string `json:"error,omitempty"`
}

// PauseResult is the answer to a pause. Already: somebody had paused before, and that stays as it is.
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

// ResumeResult is what lifting the kill switch leaves to do.
type ResumeResult struct {
	StillPaused bool `json:"still_paused"`
	// RefusedContainments are the containments of open incidents that were refused meanwhile, by incident.
	RefusedContainments []IncidentRefusal `json:"refused_containments"`
	// UnreadReason says why it is not known which were refused.
	UnreadReason string `json:"unread_reason,omitempty"`
}

// IncidentRefusal is a containment that was refused, with its incident.
type IncidentRefusal struct {
	IncidentID string `json:"incident"`
	display.RefusedContainment
}

// resumeResult finds what was refused while new containments were paused, in incidents that are open.
func (a *API) resumeResult(ctx context.Context) ResumeResult {
	out := ResumeResult{RefusedContainments: []IncidentRefusal{}}
	list, err := a.QueryService.Incidents(ctx)
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

// viewIncident is one incident for who asks.
func (a *API) viewIncident(r *http.Request, id string) (IncidentView, error) {
	in, err := a.QueryService.Incident(r.Context(), id)
	if err != nil {
		return IncidentView{}, err
	}
	var pending []activities.ApprovalRequest
	if in.Status == "open" {
		pending, _ = a.QueryService.PendingApprovals(r.Context(), id) // what cannot be read is not shown as waiting; the rest is
	}
	return a.newViewBuilder(r).buildView(r.Context(), in, pending), nil
}

// viewIncidents are all incidents for who asks, the newest first.
func (a *API) viewIncidents(r *http.Request) ([]IncidentView, error) {
	list, err := a.QueryService.Incidents(r.Context())
	if err != nil {
		return nil, err
	}
	pending, _ := a.QueryService.AllPendingApprovals(r.Context())
	who := a.newViewBuilder(r)
	out := make([]IncidentView, 0, len(list))
	for _, in := range list {
		out = append(out, who.buildView(r.Context(), in, pending))
	}
	slices.SortStableFunc(out, func(a, b IncidentView) int { return b.Opened.Compare(a.Opened) })
	return out, nil
}

// buildView is an incident with its open questions.
func (v *viewBuilder) buildView(ctx context.Context, in playbooks.Incident, pending []activities.ApprovalRequest) IncidentView {
	worst, _ := display.HeadlineDetection(in)
	out := IncidentView{Incident: in, StatusText: display.DescribeStatus(in), Headline: worst.Title, OutcomeText: display.SummarizeOutcomes(in)}
	if in.Status == "open" && in.Disposition == "" {
		out.RefusedWhilePaused = display.FindRefusedWhilePaused(in)
	}
	for _, q := range pending {
		if q.IncidentID == in.ID {
			out.OpenApprovals = append(out.OpenApprovals, OpenApproval{
				Name: q.QualifiedID(), Title: q.Title + q.DurationText(), Approvers: q.Approvers.Describe(), ApprovedBy: q.ApprovedBy, Quorum: max(q.Approvers.Quorum, 1), Deadline: q.Deadline, ViewerCanApprove: v.wouldVoteCount(ctx, in, q),
				Warnings: v.warnings(in, q),
			})
		}
	}
	slices.SortStableFunc(out.OpenApprovals, func(a, b OpenApproval) int { return a.Deadline.Compare(b.Deadline) })
	return out
}

// viewBuilder is who asks for views. Who it is, is proved once a request, and membership is looked up once for each circle.
type viewBuilder struct {
	*API
	principal         Principal
	config            *config.Config
	authenticated     bool
	groupsByApprovers map[string][]string // by whom a question asks
	pausedBy          string              // who paused new containments, "" if nobody did
}

func (a *API) newViewBuilder(r *http.Request) *viewBuilder {
	v := &viewBuilder{API: a, groupsByApprovers: map[string][]string{}, pausedBy: a.pausedBy(r.Context())}
	if a.Identify == nil {
		return v
	}
	s, err := a.Identify(r)
	cfg, cfgErr := a.Roster.Current()
	v.principal, v.config, v.authenticated = s, cfg, err == nil && cfgErr == nil
	return v
}

// warnings say why a yes to a question may bring nothing about.
func (v *viewBuilder) warnings(in playbooks.Incident, q activities.ApprovalRequest) (out []string) {
	if v.pausedBy != "" && len(q.Plans) > 0 {
		out = append(out, pausedWarning(v.pausedBy))
	}
	if v.config == nil || in.Drill {
		return out
	}
	if why := v.tooFewApproversReason(v.config, q.Approvers, func(p config.Person) bool { return in.ActorsTruncated || exclusionReason(in, q, p) != "" }); why != "" {
		out = append(out, why)
	}
	return out
}

// wouldVoteCount reports whether a yes of who asks would count. It is a hint for people: what they answer is judged anew.
func (v *viewBuilder) wouldVoteCount(ctx context.Context, in playbooks.Incident, q activities.ApprovalRequest) bool {
	s := v.principal
	if !v.authenticated || in.ActorsTruncated || exclusionReason(in, q, s.Person) != "" || slices.Contains(q.ApprovedBy, s.Name) || s.DrillName != "" && !in.Drill {
		return false
	}
	since := time.Since(q.AskedAt)
	if q.Approvers.CanApprove(s.Name, s.Groups, since) {
		return true
	}
	of := q.Approvers.Describe()
	groups, looked := v.groupsByApprovers[of]
	if !looked {
		groups, _ = v.groupsForApprovers(ctx, v.config, s, q.Approvers) // none where they cannot be looked up
		v.groupsByApprovers[of] = groups
	}
	return q.Approvers.CanApprove(s.Name, groups, since)
}
