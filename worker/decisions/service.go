// Package decisions takes what people decide: votes, releases, extensions, triage, pauses and requests of their own. It
// looks up what the person may do, signs the decision, and sends it to the workflow that waits for it.
//
// It contains and undoes nothing itself, and does not count votes: the playbook's run does, and verifies every
// signature.
package decisions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/attestation"
	"stanch/sensors/truncate"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/guards"
	"stanch/worker/httpserver"
	"stanch/worker/queries"
	"stanch/worker/ratelimit"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// Service handles people's answers from every interface: it looks up what the person may do, signs the answer,
// and sends it to the workflow that waits for it. It is safe for concurrent use.
type Service struct {
	Queries         *queries.Service
	Authority       *authority.Authority
	Roster          *config.Roster
	ScopeApprovers  activities.ScopeApprovers
	KillSwitch      guards.KillSwitch
	Evidence        *activities.EvidenceStore
	GroupMembership GroupMembership // nil: only the configuration's groups
	ManualRequests  *ManualRequests // nil: manual requests are disabled
	Log             *slog.Logger

	// Persist makes durable what Temporal has, before a decision is acknowledged. Nil means that Temporal's own
	// acknowledgment survives a power loss.
	Persist func() error

	rateLimiter  ratelimit.PerCaller
	refusedVotes refusedVoteCounter
}

// MaxReasonRunes is the maximum length of a person's reason, in characters.
const MaxReasonRunes = 500

// VoteRequest is an answer to a pending approval request.
type VoteRequest struct {
	IncidentID string `json:"incident"`
	RequestID  string `json:"step"` // id of the request, or of its step
	// PlansHash is the hash of the plans that the person saw; "" means the current ones.
	PlansHash string `json:"hash,omitempty"`
	Approve   bool   `json:"approve"`
	Reason    string `json:"reason,omitempty"`
	// BreakGlass approves alone, in place of the quorum.
	BreakGlass bool `json:"break_glass,omitempty"`
	// WaitForResult waits a moment for the result of the vote.
	WaitForResult bool `json:"wait_for_result,omitempty"`
}

// signal sends a signed decision to the workflow that waits for it. It returns when the decision is durable.
func (d *Service) signal(ctx context.Context, workflowID, name string, decision any) error {
	err := d.Queries.Temporal.SignalWorkflow(ctx, workflowID, "", name, decision)
	if err == nil && d.Persist != nil {
		err = d.Persist()
	}
	return err //nolint:wrapcheck // the caller says what was sent
}

// AllowRequest reports whether a caller may make another request now.
func (d *Service) AllowRequest(key string) bool {
	return d.rateLimiter.Allow(key, ratelimit.People())
}

// authorizeCaller does the checks that every request of a person starts with.
func (d *Service) authorizeCaller(s Principal) (*config.Config, error) {
	if !d.AllowRequest(s.RateLimitKey) {
		return nil, httpserver.TooManyRequests("too many requests; wait a moment")
	}
	cfg, err := d.Roster.Current()
	if err != nil && s.IsOperator && s.DrillName == "" {
		return d.Roster.LastRead(), nil // the operator can pause and release even if the configuration is invalid
	}
	if err != nil {
		return nil, httpserver.Forbidden("%v", err)
	}
	return cfg, nil
}

// Vote authenticates the caller and sends the signed vote to the playbook's run. With WaitForResult, the result says
// how the vote counts, if that is known in time.
func (d *Service) Vote(ctx context.Context, s Principal, v VoteRequest) (*VoteResult, error) {
	a, err := d.castVote(ctx, s, v)
	if err == nil && v.WaitForResult {
		d.waitForVoteResult(ctx, s, v, a)
	}
	return a, err
}

func (d *Service) castVote(ctx context.Context, s Principal, v VoteRequest) (*VoteResult, error) {
	if _, err := d.authorizeCaller(s); err != nil {
		return nil, err
	}
	cfg, err := d.Roster.Current()
	if err != nil {
		return nil, httpserver.Forbidden("%v", err)
	}
	open, err := d.findRequest(ctx, v)
	if err != nil {
		return nil, err
	}
	if v.Approve && !v.BreakGlass && slices.Contains(open.ApprovedBy, s.Name) {
		return &VoteResult{
			ApprovalRequest: *open, Result: ResultAlreadyCounted,
			Message: fmt.Sprintf("the approval by %s for %s was already counted: %s", s.Name, quoteRequest(*open),
				display.DescribeApprovalProgress(open.ApprovedBy, open.Approvers.Quorum, open.Approvers.Describe())),
		}, nil
	}
	vote := attestation.Vote{
		IncidentID: open.IncidentID, WorkflowID: open.WorkflowID, Step: open.ID, PlanHash: open.PlansHash, Person: s.Name,
		AuthenticatedBy: s.AuthenticatedBy, Approved: v.Approve,
		Reason: truncate.Runes(v.Reason, MaxReasonRunes), DecidedAt: time.Now(), DrillOnly: s.DrillName != "",
		BreakGlass: v.BreakGlass,
	}
	why := d.checkMayVote(ctx, cfg, s, *open, &vote)
	var no *httpserver.Error
	if why != nil && !errors.As(why, &no) {
		return nil, why // it is unknown whether they may vote
	}
	if why != nil {
		d.Log.Warn("rejected a vote", "person", s.Name, "authenticated_by", s.AuthenticatedBy, "incident", v.IncidentID,
			"step", open.ID, "reason", why.Error())
		if !d.refusedVotes.allow(open.WorkflowID+open.ID, s.RateLimitKey) {
			return nil, why
		}
		vote.RejectionReason = why.Error()
	}
	signed, err := d.Authority.Sign(attestation.PayloadTypeVote, vote)
	if err != nil {
		return nil, fmt.Errorf("sign the vote: %w", err)
	}
	if err := d.signal(ctx, open.WorkflowID, workflows.SignalVote, signed); err != nil {
		return nil, errors.Join(why, fmt.Errorf("send the vote to %s: %w", open.WorkflowID, err))
	}
	if why != nil {
		return nil, why
	}
	word := "denial"
	if v.Approve {
		word = "approval"
	}
	return &VoteResult{
		ApprovalRequest: *open, Result: ResultRecorded,
		Message: fmt.Sprintf("the %s by %s for %s is recorded and will be counted; `stanch incidents %s` shows the result",
			word, s.Name, quoteRequest(*open), open.IncidentID),
	}, nil
}

// checkMayVote returns why the person's vote does not count, and adds to the vote what entitles the person.
func (d *Service) checkMayVote(ctx context.Context, cfg *config.Config, s Principal, q playbook.ApprovalRequest,
	vote *attestation.Vote,
) error {
	in, err := d.Queries.QueryIncident(ctx, q.IncidentID)
	if err != nil {
		return err
	}
	if s.DrillName != "" && !in.Drill {
		return httpserver.Forbidden("a drill's key can only vote in drills")
	}
	if vote.DecidedAt.After(q.Deadline) {
		return httpserver.Forbidden("the approval request expired at %s", q.Deadline.UTC().Format(time.RFC3339))
	}
	if !vote.Approved && isRequestedBy(in, q, s.Person) {
		vote.WithdrawsRequest = true // people may withdraw their own request
		return nil
	}
	if in.ActorsTruncated {
		return httpserver.Forbidden("too many people or accounts triggered this to determine who is allowed to vote")
	}
	if why := ExclusionReason(in, q, s.Person); why != "" {
		return httpserver.Forbidden("%s", why)
	}
	if vote.Groups, err = d.GroupsForApprovers(ctx, cfg, s, q.Approvers); err != nil {
		return err
	}
	if vote.BreakGlass {
		switch {
		case !s.BreakGlass:
			return httpserver.Forbidden("%s is not allowed to use break-glass: `break_glass` is not set for them", s.Name)
		case strings.TrimSpace(vote.Reason) == "":
			return httpserver.Forbidden("missing reason; break-glass requires one, for the audit log")
		}
		d.Log.Error("break-glass was used", "person", s.Name, "authenticated_by", s.AuthenticatedBy, "incident", q.IncidentID,
			"step", q.ID, "reason", vote.Reason)
		return nil
	}
	if !q.Approvers.CanApprove(s.Name, vote.Groups, vote.DecidedAt.Sub(q.AskedAt)) {
		return httpserver.Forbidden("%s is not allowed to vote on this; allowed: %s", s.Name, q.Approvers.Describe())
	}
	return nil
}

// authorizeForNamespace returns an error unless the person may change containments in a namespace.
func (d *Service) authorizeForNamespace(ctx context.Context, cfg *config.Config, s Principal, namespace string,
	drill bool,
) error {
	if s.IsOperator && s.DrillName == "" {
		return nil
	}
	if s.DrillName != "" {
		if !drill {
			return httpserver.Forbidden("a drill's key can only change leases of drills")
		}
		return nil
	}
	approvers := d.ScopeApprovers.ApproversForNamespace(namespace, false)
	groups, err := d.GroupsForApprovers(ctx, cfg, s, approvers)
	if err != nil {
		return err
	}
	if !approvers.CanApprove(s.Name, groups, 1<<62) {
		where := "in " + truncate.Name(namespace)
		if namespace == "" {
			where = "outside of a namespace"
		}
		return httpserver.Forbidden("%s is not allowed to change containments %s; allowed: %s", s.Name, where,
			describeApprovers(approvers))
	}
	return nil
}

func describeApprovers(a playbooks.Approvers) string {
	if a.IsEmpty() {
		return "nobody, because its scope has no approvers"
	}
	return a.Describe()
}

// TriageRequest assigns an incident to the caller, or resolves it.
type TriageRequest struct {
	IncidentID string              `json:"incident"`
	Kind       incident.TriageKind `json:"kind"`
	Reason     string              `json:"reason,omitempty"`
}

// TriageResult is what a triage decision changed.
type TriageResult struct {
	playbooks.Incident
	// ReleasedLeases are the leases that the decision ends. DeniedRequests are the titles of the approval requests that
	// it denies.
	ReleasedLeases []playbooks.LeaseReport `json:"released_leases,omitempty"`
	DeniedRequests []string                `json:"denied_requests,omitempty"`
}

// Triage assigns an incident to the caller, or resolves it with a disposition. See incident.TriageKind for what each
// kind releases and denies.
func (d *Service) Triage(ctx context.Context, s Principal, q TriageRequest) (*TriageResult, error) {
	cfg, err := d.authorizeCaller(s)
	if err != nil {
		return nil, err
	}
	if q.Kind != incident.TriageAssigned && !q.Kind.IsDisposition() {
		return nil, httpserver.BadRequest("invalid disposition %q; use %s, %s or %s", truncate.Name(string(q.Kind)),
			incident.TriageFalsePositive, incident.TriageTruePositive, incident.TriageBenign)
	}
	in, err := d.Queries.Incident(ctx, q.IncidentID)
	if err != nil {
		return nil, err
	}
	if in.Status != "open" {
		return nil, httpserver.Conflict("incident %s is closed and cannot be changed", in.ID)
	}
	if err := d.authorizeForNamespace(ctx, cfg, s, in.Workload.Namespace, in.Drill); err != nil {
		return nil, err
	}
	mark := incident.TriageDecision{Kind: q.Kind, Person: s.Name, Reason: truncate.Runes(q.Reason, MaxReasonRunes)}
	mark.Grant, err = d.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: attestation.OperationTriage, IncidentID: in.ID, Step: string(q.Kind),
		Namespace: in.Workload.Namespace,
		Reason:    mark.Reason, GrantedBy: []string{s.describe()}, IssuedAt: time.Now(),
		ExpiresAt: time.Now().Add(releaseGrantLifetime),
	})
	if err != nil {
		return nil, fmt.Errorf("sign the triage decision: %w", err)
	}
	done := &TriageResult{Incident: in}
	if q.Kind.SuspendsPlaybooks() {
		open, _ := d.Queries.PendingApprovals(ctx, in.ID) // requests that cannot be read now are denied too
		for _, p := range open {
			done.DeniedRequests = append(done.DeniedRequests, p.Title+p.DurationText())
		}
	}
	if err := d.signal(ctx, workflows.IncidentWorkflowID(in.GroupingKey),
		workflows.SignalTriage, mark); err != nil {
		return nil, fmt.Errorf("send the triage decision to %s: %w", in.ID, err)
	}
	d.recordInManifest(in.ID, activities.EntryKindTriage, activities.AuditRecord{
		Action: string(q.Kind),
		People: []string{s.describe()}, Note: mark.Reason,
	})
	if q.Kind.ReleasesLeases() { // the incident itself denies its pending requests
		done.ReleasedLeases, err = d.Release(ctx, s, LeaseRequest{IncidentID: in.ID})
	}
	return done, err
}

func (s Principal) describe() string { return display.FormatPerson(s.Name, s.AuthenticatedBy) }

// PauseRequest pauses new containments.
type PauseRequest struct {
	Reason string `json:"reason,omitempty"`
}

// Pause pauses new containments. Every known person may.
func (d *Service) Pause(ctx context.Context, s Principal, reason string) error {
	if _, err := d.authorizeCaller(s); err != nil {
		return err
	}
	d.Log.Warn("new containments were paused", "by", s.Name, "authenticated_by", s.AuthenticatedBy, "reason",
		truncate.Runes(reason, MaxReasonRunes))
	d.recordInManifest(activities.JournalManifest, activities.EntryKindPause,
		activities.AuditRecord{People: []string{s.describe()}, Note: time.Now().UTC().Format(time.RFC3339Nano)})
	if was, err := d.KillSwitch.State(ctx); err == nil && was.Paused {
		return nil // the first pause keeps its person, time and reason
	}
	return d.KillSwitch.Pause(ctx, s.describe(), truncate.Runes(reason, MaxReasonRunes))
}

// Resume resumes new containments. The operator may, and everybody who is an approver of some scope.
func (d *Service) Resume(ctx context.Context, s Principal) error {
	cfg, err := d.authorizeCaller(s)
	if err != nil {
		return err
	}
	may := s.IsOperator && s.DrillName == ""
	for _, scope := range cfg.Scopes {
		a := guards.ApproversOfScope(scope)
		if groups, err := d.GroupsForApprovers(ctx, cfg, s, a); s.DrillName == "" && err == nil &&
			a.CanApprove(s.Name, groups, 1<<62) {
			may = true
		}
	}
	if !may {
		return httpserver.Forbidden(
			"%s is not allowed to resume containments; allowed: the operator of Stanch, and the approvers of "+
				"a scope", s.Name)
	}
	d.Log.Warn("new containments were resumed", "by", s.Name, "authenticated_by", s.AuthenticatedBy)
	d.recordInManifest(activities.JournalManifest, activities.EntryKindResume,
		activities.AuditRecord{People: []string{s.describe()}, Note: time.Now().UTC().Format(time.RFC3339Nano)})
	return d.KillSwitch.Resume(ctx, s.describe())
}

// recordInManifest appends a person's action to a manifest. A failure is logged and blocks nothing: the signed
// statement is in the history too.
func (d *Service) recordInManifest(manifest string, kind activities.ManifestEntryKind,
	act activities.AuditRecord,
) {
	if d.Evidence == nil {
		return
	}
	if _, err := d.Evidence.Append(manifest, kind, act); err != nil {
		d.Log.Error("a person's action could not be recorded in the manifest", "manifest", manifest, "kind", kind,
			"error", err)
	}
}
