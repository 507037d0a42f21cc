package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/playbooks/testspec"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// VoteResultKind says what an answer came to.
type VoteResultKind string

// The results.
const (
	// ResultRecorded: the answer is signed and delivered, and it is not known yet how it counts.
	ResultRecorded VoteResultKind = "recorded"
	// ResultCounted: it counts, and more people must agree.
	ResultCounted VoteResultKind = "counted"
	// ResultAlreadyCounted: the same person said the same before.
	ResultAlreadyCounted VoteResultKind = "already-counted"
	// ResultApproved and ResultDenied: it decided the question.
	ResultApproved VoteResultKind = "approved"
	ResultDenied   VoteResultKind = "denied"
	// ResultNotCounted: it does not count.
	ResultNotCounted VoteResultKind = "not-counted"
)

// VoteResult is what a person's answer to a question came to.
type VoteResult struct {
	playbook.ApprovalRequest
	Result VoteResultKind `json:"result"`
	// Message is the result in one sentence.
	Message string `json:"message"`
}

// voteCountTimeout is how long a person waits to learn how their answer counts: counting is one activity.
const voteCountTimeout = 10 * time.Second

// waitForVoteResult waits until the run has counted a person's answer and says what it came to. What cannot be known in time is
// left as recorded: the answer itself is delivered.
func (d *ApprovalService) waitForVoteResult(ctx context.Context, s Principal, v VoteRequest, a *VoteResult) {
	if a.Result != ResultRecorded {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, voteCountTimeout)
	defer cancel()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		if d.checkVoteResult(ctx, s, v, a) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// checkVoteResult looks once; true if it is known what the answer came to.
func (d *ApprovalService) checkVoteResult(ctx context.Context, s Principal, v VoteRequest, a *VoteResult) bool {
	open, err := d.QueryService.openRequests(ctx, a.WorkflowID)
	if err != nil {
		return false
	}
	for _, q := range open {
		if q.ID != a.ID {
			continue
		}
		ignored := ignoredVoteReasons(q, s.Name)
		switch {
		case v.Approve && !v.BreakGlass && slices.Contains(q.ApprovedBy, s.Name): // whoever breaks the glass may have said yes before
			a.ApprovalRequest, a.Result = q, ResultCounted
			a.Message = fmt.Sprintf("%s approved %s: %s", s.Name, quoteRequest(q), display.DescribeApprovalProgress(q.ApprovedBy, q.Approvers.Quorum, q.Approvers.Describe()))
			if by := d.pausedBy(ctx); by != "" && len(q.Plans) > 0 {
				a.Message += "; " + pausedWarning(by)
			}
		case len(ignored) > len(ignoredVoteReasons(a.ApprovalRequest, s.Name)):
			a.ApprovalRequest, a.Result = q, ResultNotCounted
			a.Message = fmt.Sprintf("the answer of %s to %s does not count: %s", s.Name, quoteRequest(q), ignored[len(ignored)-1])
		default:
			return false
		}
		return true
	}
	closed, err := d.QueryService.closedRequests(ctx, a.WorkflowID)
	if err != nil {
		return false
	}
	for _, c := range closed {
		if c.ID != a.ID {
			continue
		}
		a.ApprovedBy, a.Result = c.ApprovedBy, ResultDenied
		what := "denied"
		if c.Granted {
			a.Result, what = ResultApproved, "approved"
		}
		verb := "denied"
		if v.Approve {
			verb = "approved"
		}
		switch {
		case v.Approve == c.Granted && c.Granted:
			a.Message = fmt.Sprintf("%s %s %s: %s", s.Name, verb, quoteRequest(a.ApprovalRequest), display.DescribeApprovalProgress(c.ApprovedBy, a.Approvers.Quorum, ""))
			if v.BreakGlass {
				a.Message = fmt.Sprintf("%s broke the glass for %s, alone for the whole quorum", s.Name, quoteRequest(a.ApprovalRequest))
			}
			a.Message += d.describeAfterApproval(ctx, a.ApprovalRequest)
		case v.Approve == c.Granted:
			a.Message = fmt.Sprintf("%s %s %s: nothing of it is done", s.Name, verb, quoteRequest(a.ApprovalRequest))
		default: // somebody else decided it meanwhile
			a.Message = fmt.Sprintf("%s was %s meanwhile: %s", quoteRequest(a.ApprovalRequest), what, c.Reason)
		}
		return true
	}
	return false
}

// describeAfterApproval says what follows the last yes: while new containments are paused, the guards refuse what was approved.
func (d *ApprovalService) describeAfterApproval(ctx context.Context, q playbook.ApprovalRequest) string {
	if by := d.pausedBy(ctx); by != "" && len(q.Plans) > 0 {
		return fmt.Sprintf("; it is refused, since %s (%s); `stanch resume`, then ask for it again", playbooks.ReasonPaused, by)
	}
	return "; it goes ahead"
}

// ignoredVoteReasons are the reasons why answers of a person do not count that counting found. Answers that were refused when they
// were given are in the question for the record alone, and may be counted after a later one.
func ignoredVoteReasons(q playbook.ApprovalRequest, name string) (reasons []string) {
	var refused []string
	for _, signed := range q.Votes {
		var v attestation.Vote
		if json.Unmarshal(signed.Payload, &v) == nil && v.Person == name && v.RejectionReason != "" {
			refused = append(refused, v.RejectionReason)
		}
	}
	for _, i := range q.IgnoredVotes {
		if reason, ok := strings.CutPrefix(i, name+": "); ok && !slices.Contains(refused, reason) {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}

// quoteRequest names a question for a sentence.
func quoteRequest(q playbook.ApprovalRequest) string {
	return fmt.Sprintf("%q", truncateText(cmp.Or(q.Title, q.Step))) + q.DurationText()
}

// openRequests gives the open questions of one run.
func (r *QueryService) openRequests(ctx context.Context, run string) (out []playbook.ApprovalRequest, err error) {
	return out, r.queryWorkflow(ctx, run, workflows.QueryPendingApprovals, &out)
}

// closedRequests gives the closed questions of one run, the last ones.
func (r *QueryService) closedRequests(ctx context.Context, run string) (out []activities.ApprovalOutcome, err error) {
	return out, r.queryWorkflow(ctx, run, workflows.QueryAnsweredApprovals, &out)
}

func (r *QueryService) queryWorkflow(ctx context.Context, workflow, query string, out any) error {
	value, err := r.Temporal.QueryWorkflow(ctx, workflow, "", query)
	if err == nil {
		err = value.Get(out)
	}
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", workflow, query, err)
	}
	return nil
}

// findRequest finds what the person answers: by its name in the incident, or by its id, its title, its step or one of its
// actions if only one open question has it. A question that was asked with other plans is named as what it is.
func (d *ApprovalService) findRequest(ctx context.Context, v VoteRequest) (*playbook.ApprovalRequest, error) {
	pending, err := d.QueryService.PendingApprovals(ctx, v.IncidentID)
	if err != nil {
		return nil, err
	}
	var found, byID []*playbook.ApprovalRequest
	for i := range pending {
		p := &pending[i]
		if v.PlansHash != "" && p.PlansHash != v.PlansHash {
			if p.ReplacesHash == v.PlansHash {
				return nil, &httpError{http.StatusConflict, "the plan changed since you were asked (" + strings.Join(p.ChangesSinceReplaced, "; ") + "): answer the new question"}
			}
			continue
		}
		switch {
		case p.QualifiedID() == v.RequestID:
			return p, nil
		case p.ID == v.RequestID:
			byID = append(byID, p)
		}
		if v.RequestID == "" || matchesRequest(*p, v.RequestID) {
			found = append(found, p)
		}
	}
	if len(byID) > 0 {
		found = byID // two runs may ask under one id
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case v.PlansHash != "" && len(found) == 0:
		return nil, &httpError{http.StatusConflict, "this question is closed: it was answered, its time is over, or its plan changed"}
	case len(found) > 1 && v.RequestID == "":
		return nil, &httpError{http.StatusConflict, fmt.Sprintf("incident %s has %d open questions; name one of them:%s", v.IncidentID, len(found), describeOpenRequests(v.IncidentID, v.Approve, found))}
	case len(found) > 1:
		return nil, &httpError{http.StatusConflict, fmt.Sprintf("%q names %d open questions of %s; name one of them:%s", truncateText(v.RequestID), len(found), v.IncidentID, describeOpenRequests(v.IncidentID, v.Approve, found))}
	}
	return nil, d.noOpenRequestError(ctx, v, pending)
}

// matchesRequest reports whether a person means the question by a text: its step's path or id, its name, or an action that it asks
// about, in any case and spacing.
func matchesRequest(q playbook.ApprovalRequest, text string) bool {
	same := func(name string) bool {
		return name != "" && strings.EqualFold(strings.Join(strings.Fields(name), " "), strings.Join(strings.Fields(text), " "))
	}
	title, _, _ := strings.Cut(q.Title, " (the plan changed since")
	if same(q.ID) || same(q.Step) || same(testspec.LastStepName(q.Step)) || same(q.Title) || same(title) || same(q.Question) {
		return true
	}
	return slices.ContainsFunc(q.Plans, func(p activities.PlanResult) bool { return same(p.Plan.Action) })
}

// describeOpenRequests lists open questions with the command that answers each.
func describeOpenRequests(incident string, approve bool, all []*playbook.ApprovalRequest) string {
	word := "deny"
	if approve {
		word = "approve"
	}
	var b strings.Builder
	for _, q := range all {
		fmt.Fprintf(&b, "\n  stanch %s %s '%s'   %s%s", word, incident, q.QualifiedID(), truncateText(q.Title), q.DurationText())
	}
	return b.String()
}

// noOpenRequestError says why there is nothing to answer: another name is open, it was answered already, or nothing was asked.
func (d *ApprovalService) noOpenRequestError(ctx context.Context, v VoteRequest, pending []playbook.ApprovalRequest) error {
	if len(pending) > 0 {
		var all []*playbook.ApprovalRequest
		for i := range pending {
			all = append(all, &pending[i])
		}
		return notFound("incident %s has no open question %q; open are:%s", v.IncidentID, truncateText(v.RequestID), describeOpenRequests(v.IncidentID, v.Approve, all))
	}
	in, err := d.QueryService.Incident(ctx, v.IncidentID)
	if err != nil {
		return err
	}
	var before []string
	for _, run := range in.Playbooks {
		for _, s := range run.Steps {
			if s.Action == "approval" && s.Outcome != playbooks.OutcomeSkipped {
				before = append(before, fmt.Sprintf("%s of %s: %s", s.Step, run.Playbook, display.DescribeStepOutcome(s)))
			}
		}
	}
	if len(before) > 0 {
		return &httpError{http.StatusConflict, fmt.Sprintf("incident %s asks nothing now; what was asked is answered: %s", v.IncidentID, truncateReason(strings.Join(before, "; ")))}
	}
	return notFound("incident %s asks nothing; `stanch incidents %s` shows it", v.IncidentID, v.IncidentID)
}
