package simulate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// ApprovalAnswers are people's answers to approval requests. The zero value repeats the recorded answers.
type ApprovalAnswers struct {
	ApproveAll      bool // everybody who is asked approves
	NoAnswers       bool // nobody answers
	ExplicitAnswers []ApprovalAnswer
}

// ApprovalAnswer is one person's answer.
type ApprovalAnswer struct {
	Person  string `yaml:"person"`
	YesOrNo string `yaml:"answer"` // yes or no
	// AnswerDelay is the time after the request; default one minute.
	AnswerDelay config.Duration `yaml:"after"`
	// RequestName is the request's title, step or action; "" matches every request.
	RequestName string   `yaml:"to"`
	Reason      string   `yaml:"reason"`
	Groups      []string `yaml:"groups"` // of the person; default: those in the configuration
}

// defaultAnswerDelay is the default of AnswerDelay.
const defaultAnswerDelay = time.Minute

const maxAnswersFileBytes = 1 << 20

// ParseAnswers parses a file of answers strictly.
func ParseAnswers(file string, raw []byte) (ApprovalAnswers, error) {
	if len(raw) > maxAnswersFileBytes {
		return ApprovalAnswers{}, fmt.Errorf("read %s: it is %d bytes; the maximum is %d", file, len(raw),
			maxAnswersFileBytes)
	}
	var doc struct {
		Answers []ApprovalAnswer `yaml:"answers"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	if err := decoder.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return ApprovalAnswers{}, fmt.Errorf("%s: %s", file, strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", " "),
			"yaml: "))
	}
	if len(doc.Answers) == 0 || len(doc.Answers) > 1000 {
		return ApprovalAnswers{}, fmt.Errorf(
			"%s: invalid number of `answers`; use 1 to 1000, each with `person` and `answer: yes` or `answer: no`", file)
	}
	for i, a := range doc.Answers {
		if a.Person == "" || a.YesOrNo != "yes" && a.YesOrNo != "no" {
			return ApprovalAnswers{}, fmt.Errorf("%s: invalid answers[%d]; use a `person` and `answer: yes` or `answer: no`",
				file, i)
		}
	}
	return ApprovalAnswers{ExplicitAnswers: doc.Answers}, nil
}

// answerNewRequests finds new approval requests and schedules their answers.
func (s *simulation) answerNewRequests(cfg *config.Config) {
	s.mu.Lock()
	runs := slices.Clone(s.playbookRunIDs)
	s.mu.Unlock()
	for _, run := range runs {
		value, err := s.testEnvironment.QueryWorkflowByID(run, workflows.QueryPendingApprovals)
		if err != nil {
			continue // it has ended
		}
		var open []playbook.ApprovalRequest
		if value.Get(&open) != nil {
			continue
		}
		for _, p := range open {
			if id := p.WorkflowID + "\x00" + p.ID; !s.seenRequests[id] {
				s.seenRequests[id] = true
				s.addApprovalRequest(p, cfg)
			}
		}
	}
}

// addApprovalRequest records a request and schedules its answers.
func (s *simulation) addApprovalRequest(p playbook.ApprovalRequest, cfg *config.Config) {
	q := ApprovalRequest{
		AskedAtMS: s.elapsedMS(), Playbook: playbookNameOfRun(p.WorkflowID), RunNumber: playbookRunNumber(p.WorkflowID),
		Step: p.Step, Title: p.Title, Question: p.Question, ProposedActions: []string{}, Approvers: p.Approvers.Describe(),
		Quorum:    max(p.Approvers.Quorum, 1),
		TimeoutMS: p.Approvers.Timeout.Milliseconds(), Answers: []string{},
	}
	for _, plan := range p.Plans {
		q.ProposedActions = append(q.ProposedActions, plan.Plan.Changes...)
	}
	s.mu.Lock()
	s.result.ApprovalRequests = append(s.result.ApprovalRequests, q)
	n := len(s.result.ApprovalRequests) - 1
	s.mu.Unlock()
	s.addEvent("approval-request", "%s would be asked for approval, quorum %d within %s: %s Approved actions: %s",
		q.Approvers, q.Quorum, duration.Format(p.Approvers.Timeout), titleAsQuestion(p.Title), strings.Join(q.ProposedActions,
			"; "))
	for _, a := range s.votesFor(p, cfg) {
		s.testEnvironment.RegisterDelayedCallback(func() { s.castVote(p, a, n) }, max(a.delay, time.Millisecond))
	}
}

// scheduledVote is one answer to one request.
type scheduledVote struct {
	person, authenticatedBy, reason string
	groups                          []string
	approve                         bool
	breakGlass                      bool
	withdrawsRequest                bool   // they withdraw their own request
	rejectionReason                 string // why the vote was not counted when it was cast
	delay                           time.Duration
}

func (s *simulation) votesFor(p playbook.ApprovalRequest, cfg *config.Config) []scheduledVote {
	var out []scheduledVote
	switch {
	case s.options.ApprovalAnswers.NoAnswers:
	case s.options.ApprovalAnswers.ApproveAll:
		for _, who := range eligibleApprovers(p.Approvers, cfg) {
			if len(out) < max(p.Approvers.Quorum, 1) {
				out = append(out, scheduledVote{
					person: who.Name, groups: who.Groups, authenticatedBy: "simulated", approve: true,
					delay: defaultAnswerDelay,
				})
			}
		}
	case len(s.options.ApprovalAnswers.ExplicitAnswers) > 0:
		for _, a := range s.options.ApprovalAnswers.ExplicitAnswers {
			if a.RequestName != "" && a.RequestName != p.Title && a.RequestName != p.Step && a.RequestName != p.ID &&
				!slices.ContainsFunc(p.Plans, func(r activities.PlanResult) bool { return r.Plan.Action == a.RequestName }) {
				continue
			}
			groups := a.Groups
			for _, person := range cfg.People {
				if person.Name == a.Person && groups == nil {
					groups = person.Groups
				}
			}
			after := time.Duration(a.AnswerDelay)
			if after == 0 {
				after = defaultAnswerDelay
			}
			out = append(out, scheduledVote{
				person: a.Person, groups: groups, authenticatedBy: "simulated", reason: a.Reason,
				approve: a.YesOrNo == "yes", delay: after,
			})
		}
	default:
		out = s.recordedVotes(p, cfg)
	}
	return out
}

// recordedVotes returns the recorded votes for this request: those of the same run or, if the recording has none, of
// the same playbook.
func (s *simulation) recordedVotes(p playbook.ApprovalRequest, cfg *config.Config) []scheduledVote {
	same := func(run, step string) bool { return step == p.ID && run == p.WorkflowID }
	if !slices.ContainsFunc(s.recording.ApprovalRequests,
		func(q recording.ApprovalRequest) bool { return same(q.WorkflowID, q.Step) }) {
		same = func(run, step string) bool {
			return step == p.ID && playbookNameOfRun(run) == playbookNameOfRun(p.WorkflowID)
		}
	}
	asked := int64(-1)
	for _, q := range s.recording.ApprovalRequests {
		if same(q.WorkflowID, q.Step) {
			asked = q.OffsetMS
		}
	}
	if asked >= 0 {
		s.scheduleTriageAfterRequest(asked)
	}
	var out []scheduledVote
	for _, v := range s.recording.Votes {
		if !same(v.WorkflowID, v.Step) {
			continue
		}
		after := defaultAnswerDelay
		if asked >= 0 {
			after = time.Duration(max(v.OffsetMS-asked, 1)) * time.Millisecond
		}
		b := scheduledVote{
			person: v.Person, authenticatedBy: v.AuthenticatedBy, reason: v.Reason, groups: v.Groups,
			approve: v.Approved, breakGlass: v.BreakGlass, withdrawsRequest: v.WithdrawsRequest,
			rejectionReason: v.RejectionReason, delay: after,
		}
		// anonymized people keep their recorded entitlement
		if s.options.Config != nil && !s.recording.Anonymized && !v.WithdrawsRequest {
			b.applyConfig(cfg)
		}
		out = append(out, b)
	}
	return out
}

// applyConfig applies a person's entitlement in the given configuration: people who are not in it may not vote.
func (b *scheduledVote) applyConfig(cfg *config.Config) {
	i := slices.IndexFunc(cfg.People, func(p config.Person) bool { return p.Name == b.person })
	switch {
	case i < 0 && len(cfg.People) > 0:
		b.rejectionReason = fmt.Sprintf("%s is not in the configuration", b.person)
	case i >= 0:
		b.groups = cfg.People[i].Groups
		if b.breakGlass && !cfg.People[i].BreakGlass {
			b.rejectionReason = fmt.Sprintf("%s is not allowed to use break-glass: `break_glass` is not set for them", b.person)
		}
	}
}

// playbookNameOfRun returns the name at the end of a run's id; the number before it may differ in a simulation.
func playbookNameOfRun(run string) string { return run[strings.LastIndexByte(run, '/')+1:] }

// playbookRunNumber returns the number in a run's id.
func playbookRunNumber(run string) int {
	parts := strings.Split(run, "/")
	if len(parts) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(parts[len(parts)-2])
	return n
}

// eligibleApprovers returns the people who may vote: those of the configuration or, if it names nobody, an invented
// member of the group.
func eligibleApprovers(a playbooks.Approvers, cfg *config.Config) []config.Person {
	var out []config.Person
	for _, p := range cfg.People {
		if a.CanApprove(p.Name, p.Groups, 0) {
			out = append(out, p)
		}
	}
	for _, u := range a.Users {
		if !slices.ContainsFunc(out, func(p config.Person) bool { return p.Name == u }) {
			out = append(out, config.Person{Name: u})
		}
	}
	for i := 0; len(out) < max(a.Quorum, 1) && len(a.Groups) > 0; i++ {
		group := a.Groups[i%len(a.Groups)]
		out = append(out, config.Person{Name: fmt.Sprintf("member of %s (%d)", group, i+1), Groups: []string{group}})
	}
	return out
}

// castVote casts a vote as the gateway would.
func (s *simulation) castVote(p playbook.ApprovalRequest, b scheduledVote, n int) {
	answer := "denies"
	if b.approve {
		answer = "approves"
	}
	if b.breakGlass {
		answer += " with break-glass"
	}
	note := ""
	switch {
	case b.rejectionReason != "":
		note = fmt.Sprintf(" (not counted: %s)", b.rejectionReason)
	case s.testEnvironment.Now().After(p.Deadline):
		note = " (too late)"
	case !b.breakGlass && !b.withdrawsRequest && !p.Approvers.CanApprove(b.person, b.groups,
		s.testEnvironment.Now().Sub(p.AskedAt)):
		note = " (not counted: not an approver)"
	}
	signed, err := s.authority.Sign(attestation.PayloadTypeVote, attestation.Vote{
		IncidentID: p.IncidentID, WorkflowID: p.WorkflowID, Step: p.ID, PlanHash: p.PlansHash, Person: b.person,
		AuthenticatedBy: b.authenticatedBy, Approved: b.approve, Reason: b.reason, Groups: b.groups,
		DecidedAt:  s.testEnvironment.Now(),
		BreakGlass: b.breakGlass, WithdrawsRequest: b.withdrawsRequest, RejectionReason: b.rejectionReason,
	})
	if err == nil {
		err = s.testEnvironment.SignalWorkflowByID(p.WorkflowID, workflows.SignalVote, signed)
	}
	if err != nil {
		note = " (not counted: the approval request was already closed)"
	}
	text := fmt.Sprintf("%s %s%s", b.person, answer, note)
	s.mu.Lock()
	s.result.ApprovalRequests[n].Answers = append(s.result.ApprovalRequests[n].Answers, text)
	s.mu.Unlock()
	s.addEvent("vote", "%s: %q", text, p.Title)
}

// titleAsQuestion returns a title as a question, which it may already be.
func titleAsQuestion(title string) string {
	return strings.TrimRight(strings.TrimSpace(title), "?.! ") + "?"
}
