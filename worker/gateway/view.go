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

// View is an incident as it is now, with what people have to do in it.
type View struct {
	playbooks.Incident
	// Standing is the status in words: "open", "resolved: false-positive by alice".
	Standing string `json:"standing"`
	// Headline is the title of the detection that says most of it.
	Headline string `json:"headline,omitempty"`
	// Outcome says what became of it so far, what was contained first; "" before anything ran.
	Outcome string `json:"outcome,omitempty"`
	// Waiting are its open questions, the oldest first.
	Waiting []Waiting `json:"waiting,omitempty"`
	// Paused are the containments that were refused while new ones were paused, and that nothing has contained since.
	Paused []display.RefusedContainment `json:"refused_while_paused,omitempty"`
}

// Waiting is an open question.
type Waiting struct {
	Question string    `json:"question"` // its name
	Title    string    `json:"title"`
	Of       string    `json:"of"` // whom it asks
	Yes      []string  `json:"yes,omitempty"`
	Quorum   int       `json:"quorum"`
	Deadline time.Time `json:"deadline"`
	// Warnings say what a yes would not bring about: too few may answer, or new containments are paused.
	Warnings []string `json:"warnings,omitempty"`
	// You is true if the answer of who asks for this view would count.
	You bool `json:"you"`
}

// Pause is the kill switch.
type Pause struct {
	Paused bool      `json:"paused"`
	Since  time.Time `json:"since,omitzero"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	// Error says why the switch cannot be read, which pauses too.
	Error string `json:"error,omitempty"`
}

// Paused is the answer to a pause. Already: somebody had paused before, and that stays as it is.
type Paused struct {
	Pause
	Already bool `json:"already,omitempty"`
}

// switchState reads the kill switch.
func (a *API) switchState(ctx context.Context) Pause {
	if a.Switch == nil {
		return Pause{}
	}
	state, err := a.Switch.State(ctx)
	return pauseOf(state, err)
}

func pauseOf(state attestation.KillSwitchState, err error) Pause {
	if err != nil {
		return Pause{Paused: true, Error: err.Error()}
	}
	if !state.Paused {
		return Pause{}
	}
	return Pause{Paused: true, Since: state.ChangedAt, By: state.ChangedBy, Reason: state.Reason}
}

// Resumed is what lifting the kill switch leaves to do.
type Resumed struct {
	Stopped bool `json:"stopped"`
	// Refused are the containments of open incidents that were refused meanwhile, by incident.
	Refused []RefusedIn `json:"refused"`
	// Unread says why it is not known which were refused.
	Unread string `json:"unread,omitempty"`
}

// RefusedIn is a containment that was refused, with its incident.
type RefusedIn struct {
	Incident string `json:"incident"`
	display.RefusedContainment
}

// resumed finds what was refused while new containments were paused, in incidents that are open.
func (a *API) resumed(ctx context.Context) Resumed {
	out := Resumed{Refused: []RefusedIn{}}
	list, err := a.Reader.Incidents(ctx)
	if err != nil {
		out.Unread = err.Error()
	}
	for _, in := range list {
		if in.Status != "open" || in.Disposition != "" {
			continue
		}
		for _, r := range display.FindRefusedWhilePaused(in) {
			out.Refused = append(out.Refused, RefusedIn{Incident: in.ID, RefusedContainment: r})
		}
	}
	return out
}

// view is one incident for who asks.
func (a *API) view(r *http.Request, id string) (View, error) {
	in, err := a.Reader.Incident(r.Context(), id)
	if err != nil {
		return View{}, err
	}
	var pending []activities.ApprovalRequest
	if in.Status == "open" {
		pending, _ = a.Reader.PendingApprovals(r.Context(), id) // what cannot be read is not shown as waiting; the rest is
	}
	return a.viewer(r).of(r.Context(), in, pending), nil
}

// views are all incidents for who asks, the newest first.
func (a *API) views(r *http.Request) ([]View, error) {
	list, err := a.Reader.Incidents(r.Context())
	if err != nil {
		return nil, err
	}
	pending, _ := a.Reader.AllPending(r.Context())
	who := a.viewer(r)
	out := make([]View, 0, len(list))
	for _, in := range list {
		out = append(out, who.of(r.Context(), in, pending))
	}
	slices.SortStableFunc(out, func(a, b View) int { return b.Opened.Compare(a.Opened) })
	return out, nil
}

// of is an incident with its open questions.
func (v *viewer) of(ctx context.Context, in playbooks.Incident, pending []activities.ApprovalRequest) View {
	worst, _ := display.HeadlineDetection(in)
	out := View{Incident: in, Standing: display.DescribeStatus(in), Headline: worst.Title, Outcome: display.SummarizeOutcomes(in)}
	if in.Status == "open" && in.Disposition == "" {
		out.Paused = display.FindRefusedWhilePaused(in)
	}
	for _, q := range pending {
		if q.IncidentID == in.ID {
			out.Waiting = append(out.Waiting, Waiting{
				Question: q.QualifiedID(), Title: q.Title + q.DurationText(), Of: q.Approvers.Describe(), Yes: q.ApprovedBy, Quorum: max(q.Approvers.Quorum, 1), Deadline: q.Deadline, You: v.counts(ctx, in, q),
				Warnings: v.warnings(in, q),
			})
		}
	}
	slices.SortStableFunc(out.Waiting, func(a, b Waiting) int { return a.Deadline.Compare(b.Deadline) })
	return out
}

// viewer is who asks for views. Who it is, is proved once a request, and membership is looked up once for each circle.
type viewer struct {
	*API
	speaker Speaker
	cfg     *config.Config
	known   bool
	groups  map[string][]string // by whom a question asks
	paused  string              // who paused new containments, "" if nobody did
}

func (a *API) viewer(r *http.Request) *viewer {
	v := &viewer{API: a, groups: map[string][]string{}, paused: a.pausedBy(r.Context())}
	if a.Identify == nil {
		return v
	}
	s, err := a.Identify(r)
	cfg, cfgErr := a.Roster.Current()
	v.speaker, v.cfg, v.known = s, cfg, err == nil && cfgErr == nil
	return v
}

// warnings say why a yes to a question may bring nothing about.
func (v *viewer) warnings(in playbooks.Incident, q activities.ApprovalRequest) (out []string) {
	if v.paused != "" && len(q.Plans) > 0 {
		out = append(out, pausedWarning(v.paused))
	}
	if v.cfg == nil || in.Drill {
		return out
	}
	if why := v.tooFew(v.cfg, q.Approvers, func(p config.Person) bool { return in.ActorsTruncated || excluded(in, q, p) != "" }); why != "" {
		out = append(out, why)
	}
	return out
}

// counts reports whether a yes of who asks would count. It is a hint for people: what they answer is judged anew.
func (v *viewer) counts(ctx context.Context, in playbooks.Incident, q activities.ApprovalRequest) bool {
	s := v.speaker
	if !v.known || in.ActorsTruncated || excluded(in, q, s.Person) != "" || slices.Contains(q.ApprovedBy, s.Name) || s.Drill != "" && !in.Drill {
		return false
	}
	since := time.Since(q.AskedAt)
	if q.Approvers.CanApprove(s.Name, s.Groups, since) {
		return true
	}
	of := q.Approvers.Describe()
	groups, looked := v.groups[of]
	if !looked {
		groups, _ = v.groupsOf(ctx, v.cfg, s, q.Approvers) // none where they cannot be looked up
		v.groups[of] = groups
	}
	return q.Approvers.CanApprove(s.Name, groups, since)
}
