package activities

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/attestation"
	"stanch/sensors/truncate"
)

// RecordAttempt returns a signed receipt for evidence that was attempted and timed out.
func (s *Activities) RecordAttempt(_ context.Context, r Request) (attestation.Envelope, error) {
	signed, err := s.Authority.Sign(attestation.PayloadTypeEvidenceReceipt,
		attestation.EvidenceReceipt{
			IncidentID: r.IncidentRef.ID, TargetID: r.Target.ID(), Action: r.Action,
			AttemptedAt: s.now(),
		})
	if err != nil {
		return attestation.Envelope{}, retryableError(fmt.Errorf("sign the receipt: %w", err))
	}
	return signed, nil
}

// ApprovalRequestHash returns the hash that votes are bound to: every plan with its target, in order, and the
// approvers.
func ApprovalRequestHash(plans []PlanResult, approvers playbooks.Approvers) string {
	hashes := make([]string, len(plans))
	for i, p := range plans {
		hashes[i] = p.PlanHash
	}
	return attestation.HashJSON(struct {
		Plans     []string
		Approvers playbooks.Approvers
	}{hashes, approvers})
}

// CountVotesInput is a request and its votes so far.
type CountVotesInput struct {
	IncidentID string                 `json:"incident"`
	WorkflowID string                 `json:"run"`
	RequestID  string                 `json:"step"` // ApprovalRequest.ID
	PlansHash  string                 `json:"hash"`
	Plans      []PlanResult           `json:"plans"`
	Approvers  playbooks.Approvers    `json:"approvers"`
	Votes      []attestation.Envelope `json:"votes"`
	AskedAt    time.Time              `json:"asked_at,omitzero"`
	Deadline   time.Time              `json:"deadline"`
	// Targets are the targets of the plans, in the same order.
	Targets []playbooks.Target `json:"targets,omitempty"`
	// PlaybookAuthorization proves which playbook makes the request; nil if the scope's own approvers are asked.
	PlaybookAuthorization *attestation.Envelope `json:"playbook_authorization,omitempty"`
}

// VoteCount is the result of counting votes.
type VoteCount struct {
	Granted    bool     `json:"granted"`
	Denied     bool     `json:"denied"`
	Reason     string   `json:"reason,omitempty"`
	ApprovedBy []string `json:"approved_by,omitempty"` // people who have approved so far
	// IgnoredVotes gives the reason for each vote that does not count.
	IgnoredVotes     []string                        `json:"ignored_votes,omitempty"`
	GrantsByPlanHash map[string]attestation.Envelope `json:"grants_by_plan_hash,omitempty"` // by plan hash
	// ManifestEntryHash is the hash of the approval's line in the incident's manifest. Unrecorded says why there is no
	// line.
	ManifestEntryHash string `json:"manifest_entry_hash,omitempty"`
	UnrecordedReason  string `json:"unrecorded_reason,omitempty"`
}

// grantLifetime is how long an approved plan may wait for its effect, counted from the last approval. Counting the same
// votes again does not extend it.
const grantLifetime = 15 * time.Minute

// CountVotes verifies every vote. When a quorum of entitled people has approved exactly these plans, it signs a grant
// for each plan. One denial by an entitled person denies the request. The scope's configuration or an authorized
// playbook defines who is entitled, never the workflow.
func (s *Activities) CountVotes(_ context.Context, in CountVotesInput) (VoteCount, error) {
	if in.PlansHash != ApprovalRequestHash(in.Plans, in.Approvers) {
		return VoteCount{Denied: true, Reason: "the counted approval request is not the one that people voted on"}, nil
	}
	if reason := s.askForbiddenReason(in); reason != "" {
		return VoteCount{Denied: true, Reason: reason}, nil
	}
	c := s.verifyVotes(in)
	if c.denial != nil {
		said := "denied it"
		if c.denial.WithdrawsRequest {
			said = "withdrew the request"
		}
		return VoteCount{Denied: true, Reason: strings.TrimSpace(fmt.Sprintf("%s %s. %s", c.denial.Person, said,
			c.denial.Reason)), IgnoredVotes: c.ignoredReasons}, nil
	}
	out := VoteCount{ApprovedBy: slices.Sorted(maps.Keys(c.approvals)), IgnoredVotes: c.ignoredReasons}
	quorum := max(in.Approvers.Quorum, 1)
	if len(c.approvals) < quorum && c.breakGlass == nil {
		out.Reason = fmt.Sprintf("%d of %d", len(c.approvals), quorum)
		return out, nil
	}
	out.Granted = true
	return s.signGrants(in, c, out)
}

// askForbiddenReason returns why these approvers may not be asked about these plans, or "".
func (s *Activities) askForbiddenReason(in CountVotesInput) string {
	if len(in.Targets) != len(in.Plans) {
		return "the approval request does not name the target of each plan"
	}
	for i, p := range in.Plans {
		switch {
		case p.Plan.Hash() != p.PlanHash:
			return "the shown plan does not match its hash"
		case in.Targets[i].ID() != p.Plan.TargetID:
			return "a plan's target differs from the named one"
		}
	}
	if in.PlaybookAuthorization != nil {
		var selection attestation.PlaybookAuthorization
		if err := s.Authority.Keyring().Verify(*in.PlaybookAuthorization, attestation.PayloadTypePlaybookAuthorization,
			&selection); err != nil {
			return "the playbook that requests approval is not part of this installation: " + err.Error()
		}
		if slices.Contains(selection.ApproverHashes, ApproversHash(in.Approvers)) {
			return ""
		}
	}
	if s.ScopeApprovers == nil {
		return "no approvers are configured"
	}
	for _, target := range in.Targets {
		if !sameApprovers(in.Approvers, s.ScopeApprovers.ApproversForNamespace(target.Namespace, false)) &&
			!sameApprovers(in.Approvers, s.ScopeApprovers.ApproversForNamespace("", true)) {
			return fmt.Sprintf("its approvers (%s) are neither those of the scope %s nor those of the playbook",
				truncate.Text(in.Approvers.Describe(), 200), target)
		}
	}
	return ""
}

// ApproversHash returns the hash of a set of approvers.
func ApproversHash(a playbooks.Approvers) string { return attestation.HashJSON(a) }

func sameApprovers(a, b playbooks.Approvers) bool {
	return !a.IsEmpty() && attestation.HashJSON(a) == attestation.HashJSON(b)
}

// countedVotes are the votes that count.
type countedVotes struct {
	approvals      map[string]attestation.Vote
	denial         *attestation.Vote
	breakGlass     *attestation.Vote // the vote that used break-glass; nil if none did
	ignoredReasons []string
}

func (s *Activities) verifyVotes(in CountVotesInput) countedVotes {
	c := countedVotes{approvals: map[string]attestation.Vote{}}
	ignore := func(who, why string) { c.ignoredReasons = append(c.ignoredReasons, truncate.Text(who, 80)+": "+why) }
	for _, signed := range in.Votes {
		var v attestation.Vote
		if err := s.Authority.Keyring().Verify(signed, attestation.PayloadTypeVote, &v); err != nil {
			s.Log.Warn("a vote is unverified", "incident", in.IncidentID, "step", in.RequestID, "error", err)
			ignore("someone", err.Error())
			continue
		}
		switch {
		case v.IncidentID != in.IncidentID || v.WorkflowID != in.WorkflowID || v.Step != in.RequestID:
			continue // for another request
		case v.RejectionReason != "":
			ignore(v.Person, v.RejectionReason)
		case v.PlanHash != in.PlansHash:
			ignore(v.Person, "voted on another plan")
		case v.DecidedAt.After(in.Deadline):
			ignore(v.Person, "voted too late")
		case v.BreakGlass && v.Approved:
			c.breakGlass, c.approvals[v.Person] = &v, v
		case v.WithdrawsRequest && !v.Approved:
			c.denial = &v
			return c
		case !in.Approvers.CanApprove(v.Person, v.Groups, v.DecidedAt.Sub(in.AskedAt)):
			ignore(v.Person, "is not allowed to vote on this")
		case !v.Approved:
			c.denial = &v
			return c
		default:
			c.approvals[v.Person] = v
		}
	}
	return c
}

// lastApprovedAt returns the time of the last approving vote.
func (c countedVotes) lastApprovedAt() time.Time {
	var at time.Time
	for _, v := range c.approvals {
		if v.DecidedAt.After(at) {
			at = v.DecidedAt
		}
	}
	return at
}

// grantNonce returns the same nonce whenever the votes of a request are counted, so that a used grant cannot be issued
// again.
func grantNonce(in CountVotesInput, plan string) string {
	return attestation.HashJSON([]string{in.IncidentID, in.WorkflowID, in.RequestID, in.PlansHash, plan})[:32]
}

// signGrants signs a grant for each plan.
func (s *Activities) signGrants(in CountVotesInput, c countedVotes, out VoteCount) (VoteCount, error) {
	var people []string
	drill := false
	for _, v := range c.approvals {
		people = append(people, display.FormatPerson(v.Person, v.AuthenticatedBy))
		drill = drill || v.DrillOnly
	}
	slices.Sort(people)
	out.Reason, out.GrantsByPlanHash = "approved by "+strings.Join(people, ", "), map[string]attestation.Envelope{}
	act := AuditRecord{Action: in.RequestID, People: people, BasisID: in.PlansHash}
	kind := EntryKindApproval
	if c.breakGlass != nil {
		out.Reason = fmt.Sprintf("%s used break-glass: %s. %s", c.breakGlass.Person, c.breakGlass.Reason, out.Reason)
		kind, act.Note = EntryKindBreakGlass, c.breakGlass.Person+": "+c.breakGlass.Reason
	}
	issued := c.lastApprovedAt()
	for i, p := range in.Plans {
		grant, err := s.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
			Nonce: grantNonce(in, p.PlanHash), Operation: attestation.OperationApply, PlanHash: p.PlanHash,
			Targets: []string{p.Plan.TargetID}, Namespace: in.Targets[i].Namespace,
			IncidentID: in.IncidentID, Step: in.RequestID, GrantedBy: people, DrillOnly: drill, BreakGlass: c.breakGlass != nil,
			IssuedAt: issued, ExpiresAt: issued.Add(grantLifetime),
		})
		if err != nil {
			return VoteCount{}, retryableError(fmt.Errorf("sign the grant: %w", err))
		}
		out.GrantsByPlanHash[p.PlanHash] = grant
	}
	out.ManifestEntryHash, out.UnrecordedReason = s.recordInManifest(in.IncidentID, kind, act)
	return out, nil
}
