package decisions

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/playbooks/testspec"
	"stanch/sensors/attestation"
	"stanch/sensors/truncate"
	"stanch/worker/httpserver"
	"stanch/workflows/playbook"
)

// VoteResultKind is the result of a vote.
type VoteResultKind string

// The results of a vote.
const (
	// ResultRecorded means that the vote is signed and delivered, and it is not known yet whether it counts.
	ResultRecorded VoteResultKind = "recorded"
	// ResultCounted means that the vote counts, and more people must approve.
	ResultCounted VoteResultKind = "counted"
	// ResultAlreadyCounted means that the same person voted the same before.
	ResultAlreadyCounted VoteResultKind = "already-counted"
	// ResultApproved and ResultDenied mean that the vote decided the request.
	ResultApproved VoteResultKind = "approved"
	ResultDenied   VoteResultKind = "denied"
	// ResultNotCounted means that the vote does not count.
	ResultNotCounted VoteResultKind = "not-counted"
)

// VoteResult is the result of a person's vote, with the approval request.
type VoteResult struct {
	playbook.ApprovalRequest
	Result VoteResultKind `json:"result"`
	// Message is the result in one sentence.
	Message string `json:"message"`
}

// voteCountTimeout is how long a person waits for the result of their vote. Counting is one activity.
const voteCountTimeout = 10 * time.Second

// waitForVoteResult waits until the playbook run has counted a vote, and sets the result. After voteCountTimeout the
// result stays ResultRecorded: the vote itself is delivered.
func (d *Service) waitForVoteResult(ctx context.Context, s Principal, v VoteRequest, a *VoteResult) {
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

// checkVoteResult reads the result of a vote once, and reports whether it is known.
func (d *Service) checkVoteResult(ctx context.Context, s Principal, v VoteRequest, a *VoteResult) bool {
	open, err := d.Queries.OpenRequests(ctx, a.WorkflowID)
	if err != nil {
		return false
	}
	for _, q := range open {
		if q.ID != a.ID {
			continue
		}
		ignored := ignoredVoteReasons(q, s.Name)
		switch {
		// A break-glass vote may follow a normal one.
		case v.Approve && !v.BreakGlass && slices.Contains(q.ApprovedBy, s.Name):
			a.ApprovalRequest, a.Result = q, ResultCounted
			a.Message = fmt.Sprintf("%s approved %s: %s", s.Name, quoteRequest(q), display.DescribeApprovalProgress(q.ApprovedBy,
				q.Approvers.Quorum, q.Approvers.Describe()))
			if by := d.PausedBy(ctx); by != "" && len(q.Plans) > 0 {
				a.Message += "; " + PausedWarning(by)
			}
		case len(ignored) > len(ignoredVoteReasons(a.ApprovalRequest, s.Name)):
			a.ApprovalRequest, a.Result = q, ResultNotCounted
			a.Message = fmt.Sprintf("the vote by %s on %s was not counted: %s", s.Name, quoteRequest(q),
				ignored[len(ignored)-1])
		default:
			return false
		}
		return true
	}
	return d.checkClosedRequest(ctx, s, v, a)
}

// checkClosedRequest reads the result of a vote on a request that is closed, and reports whether it is known.
func (d *Service) checkClosedRequest(ctx context.Context, s Principal, v VoteRequest, a *VoteResult) bool {
	closed, err := d.Queries.ClosedRequests(ctx, a.WorkflowID)
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
			a.Message = fmt.Sprintf("%s %s %s: %s", s.Name, verb, quoteRequest(a.ApprovalRequest),
				display.DescribeApprovalProgress(c.ApprovedBy, a.Approvers.Quorum, ""))
			if v.BreakGlass {
				a.Message = fmt.Sprintf("%s approved %s alone with break-glass, in place of the full quorum", s.Name,
					quoteRequest(a.ApprovalRequest))
			}
			a.Message += d.describeAfterApproval(ctx, a.ApprovalRequest)
		case v.Approve == c.Granted:
			a.Message = fmt.Sprintf("%s %s %s: it will not run", s.Name, verb, quoteRequest(a.ApprovalRequest))
		default: // someone else decided it in the meantime
			a.Message = fmt.Sprintf("%s was already %s: %s", quoteRequest(a.ApprovalRequest), what, c.Reason)
		}
		return true
	}
	return false
}

// describeAfterApproval returns what follows the last approval. While new containments are paused, the guards refuse
// what was approved.
func (d *Service) describeAfterApproval(ctx context.Context, q playbook.ApprovalRequest) string {
	if by := d.PausedBy(ctx); by != "" && len(q.Plans) > 0 {
		return fmt.Sprintf("; it is refused, since %s (%s); run `stanch resume`, then request it again",
			playbooks.ReasonPaused, by)
	}
	return "; it runs now"
}

// ignoredVoteReasons returns why votes of a person were not counted. It leaves out votes that were rejected when they
// were cast: they are in the request for the record only.
func ignoredVoteReasons(q playbook.ApprovalRequest, name string) (reasons []string) {
	var rejected []string
	for _, signed := range q.Votes {
		var v attestation.Vote
		if json.Unmarshal(signed.Payload, &v) == nil && v.Person == name && v.RejectionReason != "" {
			rejected = append(rejected, v.RejectionReason)
		}
	}
	for _, i := range q.IgnoredVotes {
		if reason, ok := strings.CutPrefix(i, name+": "); ok && !slices.Contains(rejected, reason) {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}

// quoteRequest returns the title of a request in quotes, with its duration.
func quoteRequest(q playbook.ApprovalRequest) string {
	return fmt.Sprintf("%q", truncate.Name(cmp.Or(q.Title, q.Step))) + q.DurationText()
}

// findRequest finds the request that a vote is for: by its qualified id, or by its id, title, step or action if that
// matches one pending request only. A vote for plans that changed since is an error.
func (d *Service) findRequest(ctx context.Context, v VoteRequest) (*playbook.ApprovalRequest, error) {
	pending, err := d.Queries.PendingApprovals(ctx, v.IncidentID)
	if err != nil {
		return nil, err
	}
	var found, byID []*playbook.ApprovalRequest
	for i := range pending {
		p := &pending[i]
		if v.PlansHash != "" && p.PlansHash != v.PlansHash {
			if p.ReplacesHash == v.PlansHash {
				return nil, httpserver.Conflict("%s", "the plan has changed since approval was requested ("+strings.Join(p.ChangesSinceReplaced,
					"; ")+"); answer the new request")
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
		found = byID // two runs may use one id
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case v.PlansHash != "" && len(found) == 0:
		return nil, httpserver.Conflict("the approval request is closed: it was answered, it expired, or its plan changed")
	case len(found) > 1 && v.RequestID == "":
		return nil, httpserver.Conflict("incident %s has %d pending approval requests; choose one:%s",
			v.IncidentID, len(found), describeOpenRequests(v.IncidentID, v.Approve, found))
	case len(found) > 1:
		return nil, httpserver.Conflict("%q matches %d pending approval requests in incident %s; choose one:%s", truncate.Name(v.RequestID),
			len(found), v.IncidentID, describeOpenRequests(v.IncidentID, v.Approve, found))
	}
	return nil, d.noOpenRequestError(ctx, v, pending)
}

// matchesRequest reports whether text is the step's path or id, the title, the question, or an action of q, ignoring
// case and spacing.
func matchesRequest(q playbook.ApprovalRequest, text string) bool {
	same := func(name string) bool {
		return name != "" && strings.EqualFold(strings.Join(strings.Fields(name), " "), strings.Join(strings.Fields(text),
			" "))
	}
	title, _, _ := strings.Cut(q.Title, " (the plan changed since")
	if same(q.ID) || same(q.Step) || same(testspec.LastStepName(q.Step)) || same(q.Title) || same(title) ||
		same(q.Question) {
		return true
	}
	return slices.ContainsFunc(q.Plans, func(p activities.PlanResult) bool { return same(p.Plan.Action) })
}

// describeOpenRequests lists pending requests, each with the command that answers it.
func describeOpenRequests(incident string, approve bool, all []*playbook.ApprovalRequest) string {
	command := "deny"
	if approve {
		command = "approve"
	}
	var b strings.Builder
	for _, q := range all {
		fmt.Fprintf(&b, "\n  stanch %s %s '%s'   %s%s", command, incident, q.QualifiedID(), truncate.Name(q.Title),
			q.DurationText())
	}
	return b.String()
}

// noOpenRequestError returns why no pending request matches: others are pending, it was answered, or none was made.
func (d *Service) noOpenRequestError(ctx context.Context, v VoteRequest,
	pending []playbook.ApprovalRequest,
) error {
	if len(pending) > 0 {
		var all []*playbook.ApprovalRequest
		for i := range pending {
			all = append(all, &pending[i])
		}
		return httpserver.NotFound("unknown approval request %[2]q in incident %[1]s; pending requests:%[3]s", v.IncidentID,
			truncate.Name(v.RequestID), describeOpenRequests(v.IncidentID, v.Approve, all))
	}
	in, err := d.Queries.Incident(ctx, v.IncidentID)
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
		return httpserver.Conflict("incident %s has no pending approval request; already answered: %s",
			v.IncidentID, truncate.Reason(strings.Join(before, "; ")))
	}
	return httpserver.NotFound("incident %s has no pending approval request; see `stanch incidents %s`", v.IncidentID, v.IncidentID)
}
