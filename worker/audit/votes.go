package audit

import (
	"fmt"
	"strings"

	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks/display"
	"stanch/sensors/attestation"
)

// voted tells a vote; how it counted is judged here from the signed vote alone, and again once the question is known.
func (r *reader) voted(e *historypb.HistoryEvent, signed attestation.Envelope) {
	var v attestation.Vote
	proved := r.open(e, "a vote", signed, attestation.PayloadTypeVote, &v)
	answer := "no"
	if v.Approved {
		answer = "yes"
	}
	who := display.FormatPerson(v.Person, v.AuthenticatedBy)
	what := fmt.Sprintf("%s said %s to %s", who, answer, r.questionName(v.Step))
	if v.Reason != "" {
		what += ": " + v.Reason
	}
	details := map[string]any{"person": v.Person, "proved": v.AuthenticatedBy, "groups": v.Groups, "answer": answer, "reason": v.Reason, "question": v.Step, "question_hash": v.PlanHash, "holds": proved}
	if !proved {
		what = fmt.Sprintf("A vote that is not proved came in the name of %q and was not counted", v.Person)
		who = ""
		details["counted"] = "not counted: it is not proved"
	} else {
		did := fmt.Sprintf("said %s to %s", answer, r.questionName(v.Step))
		if v.BreakGlass && v.Approved {
			did = fmt.Sprintf("broke the glass for %s, alone for the whole quorum: %s", r.questionName(v.Step), v.Reason)
		}
		if v.RejectionReason != "" {
			did += " (not counted: " + v.RejectionReason + ")"
		}
		r.person(v.Person, v.AuthenticatedBy, did)
	}
	r.line(e, KindVote, who, what, details)
	if proved {
		r.votes = append(r.votes, castVote{line: len(r.story.Lines) - 1, vote: v, run: r.run.Workflow})
	}
}

// castVote is a proved vote and the line that tells it.
type castVote struct {
	line int
	vote attestation.Vote
	run  string
	done bool
}

// rejudge says of each vote how it counts for the question.
func (r *reader) rejudge(q activities.CountVotesInput) {
	yes := map[string]bool{}
	for i := range r.votes {
		c := &r.votes[i]
		if c.run != r.run.Workflow || c.vote.Step != q.RequestID {
			continue
		}
		judgement := Judge(c.vote, q, yes[c.vote.Person])
		yes[c.vote.Person] = yes[c.vote.Person] || judgement == countedYes || judgement == brokeGlass
		if c.done {
			continue
		}
		c.done = true
		l := &r.story.Lines[c.line]
		l.Details["counted"] = judgement
		if judgement != countedYes && judgement != countedNo {
			l.What += " (" + judgement + ")"
		}
	}
}

// unanswered says of the votes that were left over that no question was open for them.
func (r *reader) unanswered() {
	for i := range r.votes {
		if c := &r.votes[i]; c.run == r.run.Workflow && !c.done {
			c.done = true
			r.story.Lines[c.line].Details["counted"] = "not counted: no question was open"
			r.story.Lines[c.line].What += " (not counted: the question was answered already, or its time was over)"
		}
	}
}

const (
	countedYes = "counted as a yes"
	countedNo  = "counted as a no"
	brokeGlass = "counted as the whole quorum: this person broke the glass"
)

// Judge says how a proved vote counts for a question: by the rules under which votes are counted.
func Judge(v attestation.Vote, q activities.CountVotesInput, again bool) string {
	switch {
	case v.IncidentID != q.IncidentID || v.WorkflowID != q.WorkflowID || v.Step != q.RequestID:
		return "not counted: it answers another question"
	case v.RejectionReason != "":
		return "not counted: " + v.RejectionReason
	case v.PlanHash != q.PlansHash:
		return "not counted: the plan changed since it was shown"
	case v.DecidedAt.After(q.Deadline):
		return "not counted: it came too late"
	case v.BreakGlass && v.Approved:
		return brokeGlass
	case v.WithdrawsRequest && !v.Approved:
		return countedNo
	case !q.Approvers.CanApprove(v.Person, v.Groups, v.DecidedAt.Sub(q.AskedAt)):
		return "not counted: this person may not answer"
	case !v.Approved:
		return countedNo
	case again:
		return "not counted: the same person said yes before"
	}
	return countedYes
}

// counted tells what the votes came to.
func (r *reader) counted(e *historypb.HistoryEvent, q activities.CountVotesInput, got activities.VoteCount) {
	r.rejudge(q)
	r.recount(e, q, got)
	switch {
	case got.Denied:
		r.line(e, KindAnswer, "", fmt.Sprintf("The answer to %s is no: %s", r.questionName(q.RequestID), got.Reason), map[string]any{"question": q.RequestID})
	case got.Granted:
		r.line(e, KindAnswer, "", fmt.Sprintf("The answer to %s is yes: %s", r.questionName(q.RequestID), got.Reason), map[string]any{"question": q.RequestID})
		if r.granted == nil {
			r.granted = map[string]bool{}
		}
		for _, p := range q.Plans {
			r.granted[p.PlanHash] = true
			signed, ok := got.GrantsByPlanHash[p.PlanHash]
			if !ok {
				r.problem(e, "the answer is yes and no grant for %s was signed", p.Plan.Action)
				continue
			}
			var g attestation.Grant
			holds := r.open(e, "the grant for "+p.Plan.Action, signed, attestation.PayloadTypeGrant, &g)
			if holds {
				if err := g.Permits(p.PlanHash, p.Plan.TargetID); err != nil {
					r.problem(e, "the grant for %s does not fit its plan: %v", p.Plan.Action, err)
				}
			}
			who := r.grantees(g.GrantedBy, "")
			r.line(e, KindGrant, who, fmt.Sprintf("A grant for exactly this plan was signed: %s on %s, by the word of %s, to be used until %s UTC", p.Plan.Action, r.targetName(p.Plan.TargetID), who, g.ExpiresAt.UTC().Format("15:04:05")),
				map[string]any{"nonce": g.Nonce, "plan_hash": g.PlanHash, "people": g.GrantedBy, "expires": g.ExpiresAt.UTC(), "holds": holds})
		}
	default:
		r.line(e, KindAnswer, "", fmt.Sprintf("Not enough have said yes to %s: %s", r.questionName(q.RequestID), got.Reason), map[string]any{"question": q.RequestID})
	}
}

// recount counts the votes again and names a count that differs.
func (r *reader) recount(e *historypb.HistoryEvent, q activities.CountVotesInput, got activities.VoteCount) {
	if q.PlansHash != activities.ApprovalRequestHash(q.Plans, q.Approvers) {
		r.problem(e, "the question that was counted is not the one that people were asked")
		return
	}
	yes, no, broke := map[string]bool{}, []string{}, false
	for _, signed := range q.Votes {
		var v attestation.Vote
		if r.o.Keys.Verify(signed, attestation.PayloadTypeVote, &v) != nil {
			continue
		}
		switch Judge(v, q, yes[v.Person]) {
		case countedYes:
			yes[v.Person] = true
		case brokeGlass:
			yes[v.Person], broke = true, true
		case countedNo:
			no = append(no, v.Person)
		}
	}
	if enough := broke || len(yes) >= max(q.Approvers.Quorum, 1); got.Granted && (!enough || len(no) > 0) {
		r.problem(e, "the votes were counted as a yes, but %s said yes, %d must, and %d said no", plural(len(yes), "person", "people"), max(q.Approvers.Quorum, 1), len(no))
	} else if !got.Granted && !got.Denied && enough && len(no) == 0 {
		r.problem(e, "the votes were counted as not enough, but %s said yes", strings.TrimSpace(plural(len(yes), "person", "people")))
	}
}
