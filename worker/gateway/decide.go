package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/attestation"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/guards"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// Decider takes people's answers, wherever they were given: it looks up what the person may do, signs what they did,
// and gives it to the workflow that waits.
type Decider struct {
	Reader    *Reader
	Authority *authority.Authority
	Roster    *config.Roster
	Scopes    activities.ScopeApprovers
	Switch    guards.Lever
	Evidence  *activities.EvidenceStore
	Members   Membership // nil: groups are those of the configuration
	Requests  *Requests  // nil: nobody contains by request
	Log       *slog.Logger
	// About is what this installation is, for its status.
	About About

	limits   limits
	refusals refusals
}

const maxReasonLen = 500

// VoteRequest is an answer to a pending question.
type VoteRequest struct {
	Incident string `json:"incident"`
	Step     string `json:"step"` // the question's id or its step's
	// Hash is of the plans that the person saw; "" is what is asked now.
	Hash    string `json:"hash,omitempty"`
	Approve bool   `json:"approve"`
	Reason  string `json:"reason,omitempty"`
	// BreakGlass answers alone for the whole quorum.
	BreakGlass bool `json:"break_glass,omitempty"`
	// Wait: wait a moment until it is known how the answer counts.
	Wait bool `json:"wait,omitempty"`
}

// permitted is what everything that a person asks begins with.
func (d *Decider) permitted(s Speaker) (*config.Config, error) {
	if !d.limits.allow(s.Key) {
		return nil, &problem{http.StatusTooManyRequests, "too many requests; wait a moment"}
	}
	cfg, err := d.Roster.Current()
	if err != nil && s.Operator && s.Drill == "" {
		return d.Roster.Last(), nil // who runs Stanch can stop and release also while the configuration is damaged
	}
	if err != nil {
		return nil, deny("%v", err)
	}
	return cfg, nil
}

// Vote proves who answers and gives the signed vote to the playbook's run. With Wait it says how the vote counts, if that
// is known in time.
func (d *Decider) Vote(ctx context.Context, s Speaker, v VoteRequest) (*Answer, error) {
	a, err := d.vote(ctx, s, v)
	if err == nil && v.Wait {
		d.settleAnswer(ctx, s, v, a)
	}
	return a, err
}

func (d *Decider) vote(ctx context.Context, s Speaker, v VoteRequest) (*Answer, error) {
	if _, err := d.permitted(s); err != nil {
		return nil, err
	}
	cfg, err := d.Roster.Current()
	if err != nil {
		return nil, deny("%v", err)
	}
	open, err := d.question(ctx, v)
	if err != nil {
		return nil, err
	}
	if v.Approve && !v.BreakGlass && slices.Contains(open.ApprovedBy, s.Name) {
		return &Answer{ApprovalRequest: *open, Result: ResultAlready, Says: fmt.Sprintf("the yes of %s to %s was counted already: %s", s.Name, quoted(*open),
			display.DescribeApprovalProgress(open.ApprovedBy, open.Approvers.Quorum, open.Approvers.Describe()))}, nil
	}
	vote := attestation.Vote{
		IncidentID: open.IncidentID, WorkflowID: open.WorkflowID, Step: open.ID, PlanHash: open.PlansHash, Person: s.Name, AuthenticatedBy: s.Proved, Approved: v.Approve,
		Reason: cut(v.Reason, maxReasonLen), DecidedAt: time.Now(), DrillOnly: s.Drill != "", BreakGlass: v.BreakGlass,
	}
	why := d.mayAnswer(ctx, cfg, s, *open, &vote)
	var no *problem
	if why != nil && !errors.As(why, &no) {
		return nil, why // it is not known whether they may
	}
	if why != nil {
		d.Log.Warn("an answer that does not count", "person", s.Name, "proved", s.Proved, "incident", v.Incident, "step", open.ID, "why", why.Error())
		if !d.refusals.keep(open.WorkflowID+open.ID, s.Key) {
			return nil, why
		}
		vote.RejectionReason = why.Error()
	}
	signed, err := d.Authority.Sign(attestation.PayloadTypeVote, vote)
	if err != nil {
		return nil, fmt.Errorf("sign the vote: %w", err)
	}
	if err := d.Reader.Temporal.SignalWorkflow(ctx, open.WorkflowID, "", workflows.SignalVote, signed); err != nil {
		return nil, errors.Join(why, fmt.Errorf("give the vote to %s: %w", open.WorkflowID, err))
	}
	if why != nil {
		return nil, why
	}
	word := "no"
	if v.Approve {
		word = "yes"
	}
	return &Answer{ApprovalRequest: *open, Result: ResultRecorded, Says: fmt.Sprintf("the %s of %s to %s is recorded and will be counted; `stanch incidents %s` shows how", word, s.Name, quoted(*open), open.IncidentID)}, nil
}

// mayAnswer says why the person's answer does not count, and enters into the vote on what right it does.
func (d *Decider) mayAnswer(ctx context.Context, cfg *config.Config, s Speaker, q playbook.ApprovalRequest, vote *attestation.Vote) error {
	in, err := d.Reader.incident(ctx, q.IncidentID)
	if err != nil {
		return err
	}
	if s.Drill != "" && !in.Drill {
		return deny("a drill's key answers for drills only")
	}
	if vote.DecidedAt.After(q.Deadline) {
		return deny("the time to answer was over at %s", q.Deadline.UTC().Format(time.RFC3339))
	}
	if !vote.Approved && requestedBy(in, q, s.Person) {
		vote.WithdrawsRequest = true // who asked for something may withdraw it
		return nil
	}
	if in.ActorsTruncated {
		return deny("so many people or accounts triggered this that nobody can tell who may answer it")
	}
	if why := excluded(in, q, s.Person); why != "" {
		return deny("%s", why)
	}
	if vote.Groups, err = d.groupsOf(ctx, cfg, s, q.Approvers); err != nil {
		return err
	}
	if vote.BreakGlass {
		switch {
		case !s.BreakGlass:
			return deny("%s may not break the glass: `break_glass` is not set for them", s.Name)
		case strings.TrimSpace(vote.Reason) == "":
			return deny("breaking the glass needs a reason, for the record")
		}
		d.Log.Error("the glass was broken", "person", s.Name, "proved", s.Proved, "incident", q.IncidentID, "step", q.ID, "reason", vote.Reason)
		return nil
	}
	if !q.Approvers.CanApprove(s.Name, vote.Groups, vote.DecidedAt.Sub(q.AskedAt)) {
		return deny("%s may not answer this: it is for %s", s.Name, q.Approvers.Describe())
	}
	return nil
}

// entitled says why the person may not change what holds in a namespace, or nil.
func (d *Decider) entitled(ctx context.Context, cfg *config.Config, s Speaker, namespace string, drill bool) error {
	if s.Operator && s.Drill == "" {
		return nil
	}
	if s.Drill != "" {
		if !drill {
			return deny("a drill's key releases drills' leases only")
		}
		return nil
	}
	approvers := d.Scopes.ApproversForNamespace(namespace, false)
	groups, err := d.groupsOf(ctx, cfg, s, approvers)
	if err != nil {
		return err
	}
	if !approvers.CanApprove(s.Name, groups, 1<<62) {
		where := "in " + clip(namespace)
		if namespace == "" {
			where = "outside of a namespace"
		}
		return deny("%s may not change what is contained %s: that is for %s", s.Name, where, orNobody(approvers))
	}
	return nil
}

func orNobody(a activities.Approvers) string {
	if a.IsEmpty() {
		return "nobody, since its scope names no approvers"
	}
	return a.Describe()
}

// MarkRequest says something about an incident.
type MarkRequest struct {
	Incident string            `json:"incident"`
	Kind     incident.TriageKind `json:"kind"`
	Reason   string            `json:"reason,omitempty"`
}

// Marked is what a mark brought about.
type Marked struct {
	playbooks.Incident
	// Released are the leases that end with it, and Denied the questions that are answered with no.
	Released []playbooks.LeaseReport `json:"released,omitempty"`
	Denied   []string                `json:"denied,omitempty"`
}

// Mark lets a person take an incident over, or call it a false positive: then what it holds is released too, and its
// open questions are denied.
func (d *Decider) Mark(ctx context.Context, s Speaker, q MarkRequest) (*Marked, error) {
	cfg, err := d.permitted(s)
	if err != nil {
		return nil, err
	}
	if q.Kind != incident.TriageAssigned && q.Kind != incident.TriageFalsePositive {
		return nil, &problem{http.StatusBadRequest, fmt.Sprintf("%q is no mark: %s or %s", clip(string(q.Kind)), incident.TriageAssigned, incident.TriageFalsePositive)}
	}
	in, err := d.Reader.Incident(ctx, q.Incident)
	if err != nil {
		return nil, err
	}
	if in.Status != "open" {
		return nil, &problem{http.StatusConflict, "the incident is closed"}
	}
	if err := d.entitled(ctx, cfg, s, in.Workload.Namespace, in.Drill); err != nil {
		return nil, err
	}
	mark := incident.TriageDecision{Kind: q.Kind, Person: s.Name, Reason: cut(q.Reason, maxReasonLen)}
	mark.Grant, err = d.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: attestation.OperationTriage, IncidentID: in.ID, Step: string(q.Kind), Namespace: in.Workload.Namespace,
		Reason: mark.Reason, GrantedBy: []string{s.who()}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(releaseLife),
	})
	if err != nil {
		return nil, fmt.Errorf("sign the mark: %w", err)
	}
	done := &Marked{Incident: in}
	if q.Kind == incident.TriageFalsePositive {
		open, _ := d.Reader.PendingApprovals(ctx, in.ID) // the mark denies also what cannot be read now
		for _, p := range open {
			done.Denied = append(done.Denied, p.Title+p.DurationText())
		}
	}
	if err := d.Reader.Temporal.SignalWorkflow(ctx, workflows.IncidentWorkflowID(in.GroupingKey), "", workflows.SignalTriage, mark); err != nil {
		return nil, fmt.Errorf("give the mark to %s: %w", in.ID, err)
	}
	d.record(in.ID, activities.EntryKindTriage, activities.AuditRecord{Action: string(q.Kind), People: []string{s.who()}, Note: mark.Reason})
	if q.Kind == incident.TriageFalsePositive { // what it asks is denied by the mark itself, whoever was asked
		done.Released, err = d.Release(ctx, s, LeaseRequest{Incident: in.ID})
	}
	return done, err
}

func (s Speaker) who() string { return display.FormatPerson(s.Name, s.Proved) }

// PauseRequest sets the kill switch.
type PauseRequest struct {
	Reason string `json:"reason,omitempty"`
}

// Stop sets the kill switch: whoever is known may.
func (d *Decider) Stop(ctx context.Context, s Speaker, reason string) error {
	if _, err := d.permitted(s); err != nil {
		return err
	}
	d.Log.Warn("the kill switch was set", "by", s.Name, "proved", s.Proved, "reason", cut(reason, maxReasonLen))
	d.record(activities.JournalManifest, activities.EntryKindPause, activities.AuditRecord{People: []string{s.who()}, Note: time.Now().UTC().Format(time.RFC3339Nano)})
	if was, err := d.Switch.State(ctx); err == nil && was.Paused {
		return nil // who paused first, since when and why stays
	}
	return d.Switch.Stop(ctx, s.who(), cut(reason, maxReasonLen))
}

// Resume lifts it: the operator may, and whoever approves somewhere.
func (d *Decider) Resume(ctx context.Context, s Speaker) error {
	cfg, err := d.permitted(s)
	if err != nil {
		return err
	}
	may := s.Operator && s.Drill == ""
	for _, scope := range cfg.Scopes {
		a := guards.ApproversOf(scope)
		if groups, err := d.groupsOf(ctx, cfg, s, a); s.Drill == "" && err == nil && a.CanApprove(s.Name, groups, 1<<62) {
			may = true
		}
	}
	if !may {
		return deny("%s may not lift the kill switch: that is for who runs Stanch and for the approvers of a scope", s.Name)
	}
	d.Log.Warn("the kill switch was lifted", "by", s.Name, "proved", s.Proved)
	d.record(activities.JournalManifest, activities.EntryKindResume, activities.AuditRecord{People: []string{s.who()}, Note: time.Now().UTC().Format(time.RFC3339Nano)})
	return d.Switch.Resume(ctx, s.who())
}

// record enters what a person did into a manifest. It holds nobody up: what could not be entered is logged, and the
// signed statement is in the history all the same.
func (d *Decider) record(manifest string, kind activities.ManifestEntryKind, act activities.AuditRecord) {
	if d.Evidence == nil {
		return
	}
	if _, err := d.Evidence.Append(manifest, kind, act); err != nil {
		d.Log.Error("an act is not in the manifest", "manifest", manifest, "kind", kind, "error", err)
	}
}

func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}
