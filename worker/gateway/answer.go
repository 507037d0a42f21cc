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

// AnswerResult says what an answer came to.
type AnswerResult string

// The results.
const (
	// ResultRecorded: the answer is signed and delivered, and it is not known yet how it counts.
	ResultRecorded AnswerResult = "recorded"
	// ResultCounted: it counts, and more people must agree.
	ResultCounted AnswerResult = "counted"
	// ResultAlready: the same person said the same before.
	ResultAlready AnswerResult = "already-counted"
	// ResultApproved and ResultDenied: it decided the question.
	ResultApproved AnswerResult = "approved"
	ResultDenied   AnswerResult = "denied"
	// ResultIgnored: it does not count.
	ResultIgnored AnswerResult = "not-counted"
)

// Answer is what a person's answer to a question came to.
type Answer struct {
	playbook.ApprovalRequest
	Result AnswerResult `json:"result"`
	// Says is the result in one sentence.
	Says string `json:"says"`
}

// countLimit is how long a person waits to learn how their answer counts: counting is one activity.
const countLimit = 10 * time.Second

// settleAnswer waits until the run has counted a person's answer and says what it came to. What cannot be known in time is
// left as recorded: the answer itself is delivered.
func (d *Decider) settleAnswer(ctx context.Context, s Speaker, v VoteRequest, a *Answer) {
	if a.Result != ResultRecorded {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, countLimit)
	defer cancel()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		if d.settled(ctx, s, v, a) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// settled looks once; true if it is known what the answer came to.
func (d *Decider) settled(ctx context.Context, s Speaker, v VoteRequest, a *Answer) bool {
	open, err := d.Reader.questionsOf(ctx, a.WorkflowID)
	if err != nil {
		return false
	}
	for _, q := range open {
		if q.ID != a.ID {
			continue
		}
		ignored := ignoredOf(q, s.Name)
		switch {
		case v.Approve && !v.BreakGlass && slices.Contains(q.ApprovedBy, s.Name): // whoever breaks the glass may have said yes before
			a.ApprovalRequest, a.Result = q, ResultCounted
			a.Says = fmt.Sprintf("%s approved %s: %s", s.Name, quoted(q), display.DescribeApprovalProgress(q.ApprovedBy, q.Approvers.Quorum, q.Approvers.Describe()))
			if by := d.pausedBy(ctx); by != "" && len(q.Plans) > 0 {
				a.Says += "; " + pausedWarning(by)
			}
		case len(ignored) > len(ignoredOf(a.ApprovalRequest, s.Name)):
			a.ApprovalRequest, a.Result = q, ResultIgnored
			a.Says = fmt.Sprintf("the answer of %s to %s does not count: %s", s.Name, quoted(q), ignored[len(ignored)-1])
		default:
			return false
		}
		return true
	}
	closed, err := d.Reader.answersOf(ctx, a.WorkflowID)
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
			a.Says = fmt.Sprintf("%s %s %s: %s", s.Name, verb, quoted(a.ApprovalRequest), display.DescribeApprovalProgress(c.ApprovedBy, a.Approvers.Quorum, ""))
			if v.BreakGlass {
				a.Says = fmt.Sprintf("%s broke the glass for %s, alone for the whole quorum", s.Name, quoted(a.ApprovalRequest))
			}
			a.Says += d.afterYes(ctx, a.ApprovalRequest)
		case v.Approve == c.Granted:
			a.Says = fmt.Sprintf("%s %s %s: nothing of it is done", s.Name, verb, quoted(a.ApprovalRequest))
		default: // somebody else decided it meanwhile
			a.Says = fmt.Sprintf("%s was %s meanwhile: %s", quoted(a.ApprovalRequest), what, c.Reason)
		}
		return true
	}
	return false
}

// afterYes says what follows the last yes: while new containments are paused, the guards refuse what was approved.
func (d *Decider) afterYes(ctx context.Context, q playbook.ApprovalRequest) string {
	if by := d.pausedBy(ctx); by != "" && len(q.Plans) > 0 {
		return fmt.Sprintf("; it is refused, since %s (%s); `stanch resume`, then ask for it again", playbooks.ReasonPaused, by)
	}
	return "; it goes ahead"
}

// ignoredOf are the reasons why answers of a person do not count that counting found. Answers that were refused when they
// were given are in the question for the record alone, and may be counted after a later one.
func ignoredOf(q playbook.ApprovalRequest, name string) (reasons []string) {
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

// quoted names a question for a sentence.
func quoted(q playbook.ApprovalRequest) string {
	return fmt.Sprintf("%q", clip(cmp.Or(q.Title, q.Step))) + q.DurationText()
}

// questionsOf gives the open questions of one run.
func (r *Reader) questionsOf(ctx context.Context, run string) (out []playbook.ApprovalRequest, err error) {
	return out, r.query(ctx, run, workflows.QueryPendingApprovals, &out)
}

// answersOf gives the closed questions of one run, the last ones.
func (r *Reader) answersOf(ctx context.Context, run string) (out []activities.ApprovalOutcome, err error) {
	return out, r.query(ctx, run, workflows.QueryAnsweredApprovals, &out)
}

func (r *Reader) query(ctx context.Context, workflow, query string, out any) error {
	value, err := r.Temporal.QueryWorkflow(ctx, workflow, "", query)
	if err == nil {
		err = value.Get(out)
	}
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", workflow, query, err)
	}
	return nil
}

// question finds what the person answers: by its name in the incident, or by its id, its title, its step or one of its
// actions if only one open question has it. A question that was asked with other plans is named as what it is.
func (d *Decider) question(ctx context.Context, v VoteRequest) (*playbook.ApprovalRequest, error) {
	pending, err := d.Reader.PendingApprovals(ctx, v.Incident)
	if err != nil {
		return nil, err
	}
	var found, byID []*playbook.ApprovalRequest
	for i := range pending {
		p := &pending[i]
		if v.Hash != "" && p.PlansHash != v.Hash {
			if p.ReplacesHash == v.Hash {
				return nil, &problem{http.StatusConflict, "the plan changed since you were asked (" + strings.Join(p.ChangesSinceReplaced, "; ") + "): answer the new question"}
			}
			continue
		}
		switch {
		case p.QualifiedID() == v.Step:
			return p, nil
		case p.ID == v.Step:
			byID = append(byID, p)
		}
		if v.Step == "" || names(*p, v.Step) {
			found = append(found, p)
		}
	}
	if len(byID) > 0 {
		found = byID // two runs may ask under one id
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case v.Hash != "" && len(found) == 0:
		return nil, &problem{http.StatusConflict, "this question is closed: it was answered, its time is over, or its plan changed"}
	case len(found) > 1 && v.Step == "":
		return nil, &problem{http.StatusConflict, fmt.Sprintf("incident %s has %d open questions; name one of them:%s", v.Incident, len(found), candidates(v.Incident, v.Approve, found))}
	case len(found) > 1:
		return nil, &problem{http.StatusConflict, fmt.Sprintf("%q names %d open questions of %s; name one of them:%s", clip(v.Step), len(found), v.Incident, candidates(v.Incident, v.Approve, found))}
	}
	return nil, d.noQuestion(ctx, v, pending)
}

// names reports whether a person means the question by a text: its step's path or id, its name, or an action that it asks
// about, in any case and spacing.
func names(q playbook.ApprovalRequest, text string) bool {
	same := func(name string) bool {
		return name != "" && strings.EqualFold(strings.Join(strings.Fields(name), " "), strings.Join(strings.Fields(text), " "))
	}
	title, _, _ := strings.Cut(q.Title, " (the plan changed since")
	if same(q.ID) || same(q.Step) || same(testspec.LastStepName(q.Step)) || same(q.Title) || same(title) || same(q.Question) {
		return true
	}
	return slices.ContainsFunc(q.Plans, func(p activities.PlanResult) bool { return same(p.Plan.Action) })
}

// candidates lists open questions with the command that answers each.
func candidates(incident string, approve bool, all []*playbook.ApprovalRequest) string {
	word := "deny"
	if approve {
		word = "approve"
	}
	var b strings.Builder
	for _, q := range all {
		fmt.Fprintf(&b, "\n  stanch %s %s '%s'   %s%s", word, incident, q.QualifiedID(), clip(q.Title), q.DurationText())
	}
	return b.String()
}

// noQuestion says why there is nothing to answer: another name is open, it was answered already, or nothing was asked.
func (d *Decider) noQuestion(ctx context.Context, v VoteRequest, pending []playbook.ApprovalRequest) error {
	if len(pending) > 0 {
		var all []*playbook.ApprovalRequest
		for i := range pending {
			all = append(all, &pending[i])
		}
		return missing("incident %s has no open question %q; open are:%s", v.Incident, clip(v.Step), candidates(v.Incident, v.Approve, all))
	}
	in, err := d.Reader.Incident(ctx, v.Incident)
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
		return &problem{http.StatusConflict, fmt.Sprintf("incident %s asks nothing now; what was asked is answered: %s", v.Incident, clipReason(strings.Join(before, "; ")))}
	}
	return missing("incident %s asks nothing; `stanch incidents %s` shows it", v.Incident, v.Incident)
}
