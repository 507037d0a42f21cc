package audit

import (
	"fmt"
	"strings"

	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks/display"
	"stanch/sensors/attestation"
)

// addVote adds a vote. Whether it counts is first decided from the signed vote alone, and again when the request is
// known.
func (r *historyReader) addVote(e *historypb.HistoryEvent, signed attestation.Envelope) {
	var v attestation.Vote
	proved := r.verifyEnvelope(e, "a vote", signed, attestation.PayloadTypeVote, &v)
	answer, verb := "no", "denied"
	if v.Approved {
		answer, verb = "yes", "approved"
	}
	who := display.FormatPerson(v.Person, v.AuthenticatedBy)
	what := fmt.Sprintf("%s %s %s", who, verb, r.approvalRequestName(v.Step))
	if v.Reason != "" {
		what += ": " + v.Reason
	}
	details := map[string]any{
		"person": v.Person, "authenticated_by": v.AuthenticatedBy, "groups": v.Groups,
		"vote": answer, "reason": v.Reason, "step": v.Step, "plan_hash": v.PlanHash, "valid": proved,
	}
	if !proved {
		what = fmt.Sprintf("A vote with an invalid signature on behalf of %q was not counted", v.Person)
		who = ""
		details["counted"] = "not counted: its signature is invalid"
	} else {
		did := fmt.Sprintf("%s %s", verb, r.approvalRequestName(v.Step))
		if v.BreakGlass && v.Approved {
			did = fmt.Sprintf("used break-glass for %s, alone in place of the full quorum: %s", r.approvalRequestName(v.Step),
				v.Reason)
		}
		if v.RejectionReason != "" {
			did += " (not counted: " + v.RejectionReason + ")"
		}
		r.addPersonAction(v.Person, v.AuthenticatedBy, did)
	}
	r.addEntry(e, KindVote, who, what, details)
	if proved {
		r.castVotes = append(r.castVotes, provedVote{
			entryIndex: len(r.timeline.Entries) - 1, vote: v,
			workflowID: r.run.WorkflowID,
		})
	}
}

// provedVote is a vote with a valid signature, and its timeline entry.
type provedVote struct {
	entryIndex int
	vote       attestation.Vote
	workflowID string
	resolved   bool
}

// reverify decides how each vote counts for the request.
func (r *historyReader) reverify(q activities.CountVotesInput) {
	yes := map[string]bool{}
	for i := range r.castVotes {
		c := &r.castVotes[i]
		if c.workflowID != r.run.WorkflowID || c.vote.Step != q.RequestID {
			continue
		}
		judgement := DescribeVoteResult(c.vote, q, yes[c.vote.Person])
		yes[c.vote.Person] = yes[c.vote.Person] || judgement == countedYes || judgement == countedBreakGlass
		if c.resolved {
			continue
		}
		c.resolved = true
		l := &r.timeline.Entries[c.entryIndex]
		l.Details["counted"] = judgement
		if judgement != countedYes && judgement != countedNo {
			l.Text += " (" + judgement + ")"
		}
	}
}

// markUnassignedVotes marks the remaining votes: no request was open for them.
func (r *historyReader) markUnassignedVotes() {
	for i := range r.castVotes {
		if c := &r.castVotes[i]; c.workflowID == r.run.WorkflowID && !c.resolved {
			c.resolved = true
			r.timeline.Entries[c.entryIndex].Details["counted"] = "not counted: no approval request was open"
			r.timeline.Entries[c.entryIndex].Text += " (not counted: the approval request was already decided, or it expired)"
		}
	}
}

const (
	countedYes        = "counted as an approval"
	countedNo         = "counted as a denial"
	countedBreakGlass = "counted as the full quorum: this person used break-glass"
)

// DescribeVoteResult returns how a vote with a valid signature counts for a request, by the rules of counting.
func DescribeVoteResult(v attestation.Vote, q activities.CountVotesInput, again bool) string {
	switch {
	case v.IncidentID != q.IncidentID || v.WorkflowID != q.WorkflowID || v.Step != q.RequestID:
		return "not counted: it is for another approval request"
	case v.RejectionReason != "":
		return "not counted: " + v.RejectionReason
	case v.PlanHash != q.PlansHash:
		return "not counted: the plan changed since it was shown"
	case v.DecidedAt.After(q.Deadline):
		return "not counted: it was too late"
	case v.BreakGlass && v.Approved:
		return countedBreakGlass
	case v.WithdrawsRequest && !v.Approved:
		return countedNo
	case !q.Approvers.CanApprove(v.Person, v.Groups, v.DecidedAt.Sub(q.AskedAt)):
		return "not counted: this person is not an approver"
	case !v.Approved:
		return countedNo
	case again:
		return "not counted: the same person already approved"
	}
	return countedYes
}

// addVoteCount adds the result of a count.
func (r *historyReader) addVoteCount(e *historypb.HistoryEvent, q activities.CountVotesInput,
	got activities.VoteCount,
) {
	r.reverify(q)
	r.verifyVoteCount(e, q, got)
	switch {
	case got.Denied:
		r.addEntry(e, KindApprovalResult, "", fmt.Sprintf("%s was denied: %s", r.approvalRequestName(q.RequestID),
			got.Reason), map[string]any{"request": q.RequestID})
	case got.Granted:
		r.addEntry(e, KindApprovalResult, "", fmt.Sprintf("%s was approved: %s", r.approvalRequestName(q.RequestID),
			got.Reason), map[string]any{"request": q.RequestID})
		if r.grantedPlanHashes == nil {
			r.grantedPlanHashes = map[string]bool{}
		}
		for _, p := range q.Plans {
			r.grantedPlanHashes[p.PlanHash] = true
			signed, ok := got.GrantsByPlanHash[p.PlanHash]
			if !ok {
				r.addProblem(e, "the request was approved, but no grant for %s was signed", p.Plan.Action)
				continue
			}
			var g attestation.Grant
			holds := r.verifyEnvelope(e, "the grant for "+p.Plan.Action, signed, attestation.PayloadTypeGrant, &g)
			if holds {
				if err := g.Permits(p.PlanHash, p.Plan.TargetID); err != nil {
					r.addProblem(e, "the grant for %s does not match its plan: %v", p.Plan.Action, err)
				}
			}
			who := r.addGrantees(g.GrantedBy, "")
			r.addEntry(
				e,
				KindGrant,
				who,
				fmt.Sprintf(
					"A grant for this exact plan was signed: %s on %s, approved by %s, valid until %s UTC",
					p.Plan.Action,
					r.targetName(p.Plan.TargetID),
					who,
					g.ExpiresAt.UTC().Format("15:04:05"),
				),
				map[string]any{
					"nonce": g.Nonce, "plan_hash": g.PlanHash, "people": g.GrantedBy, "expires": g.ExpiresAt.UTC(),
					"valid": holds,
				},
			)
		}
	default:
		r.addEntry(e, KindApprovalResult, "", fmt.Sprintf("Not enough people approved %s: %s",
			r.approvalRequestName(q.RequestID), got.Reason), map[string]any{"request": q.RequestID})
	}
}

// verifyVoteCount counts the votes again and reports a different result.
func (r *historyReader) verifyVoteCount(e *historypb.HistoryEvent, q activities.CountVotesInput,
	got activities.VoteCount,
) {
	if q.PlansHash != activities.ApprovalRequestHash(q.Plans, q.Approvers) {
		r.addProblem(e, "the approval request that was counted is not the one that people were asked to decide on")
		return
	}
	yes, no, broke := map[string]bool{}, []string{}, false
	for _, signed := range q.Votes {
		var v attestation.Vote
		if r.options.Keyring.Verify(signed, attestation.PayloadTypeVote, &v) != nil {
			continue
		}
		switch DescribeVoteResult(v, q, yes[v.Person]) {
		case countedYes:
			yes[v.Person] = true
		case countedBreakGlass:
			yes[v.Person], broke = true, true
		case countedNo:
			no = append(no, v.Person)
		}
	}
	if enough := broke || len(yes) >= max(q.Approvers.Quorum, 1); got.Granted && (!enough || len(no) > 0) {
		r.addProblem(e, "the votes were counted as an approval, but %s approved, %d approvals were required, and %d denied",
			pluralize(len(yes), "person", "people"), max(q.Approvers.Quorum, 1), len(no))
	} else if !got.Granted && !got.Denied && enough && len(no) == 0 {
		r.addProblem(e, "the votes were counted as insufficient, but %s approved",
			strings.TrimSpace(pluralize(len(yes), "person", "people")))
	}
}
