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
	"stanch/playbooks/recording"
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// Answers say what people answer. The zero value answers as they did when the recording was made.
type Answers struct {
	All  bool // whoever is asked says yes
	None bool // nobody answers
	List []Answer
}

// Answer is one person's answer.
type Answer struct {
	Person string `yaml:"person"`
	Answer string `yaml:"answer"` // yes or no
	// After is how long after the question; default a minute.
	After config.Duration `yaml:"after"`
	// To is the question's title, step or action; "" answers every question.
	To     string   `yaml:"to"`
	Reason string   `yaml:"reason"`
	Groups []string `yaml:"groups"` // of the person; default: those of the configuration
}

// thinking is how long people take unless it is said.
const thinking = time.Minute

const maxAnswersFile = 1 << 20

// ParseAnswers reads a file of answers strictly.
func ParseAnswers(file string, raw []byte) (Answers, error) {
	if len(raw) > maxAnswersFile {
		return Answers{}, fmt.Errorf("%s has %d bytes, at most %d are read", file, len(raw), maxAnswersFile)
	}
	var doc struct {
		Answers []Answer `yaml:"answers"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	if err := decoder.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return Answers{}, fmt.Errorf("%s: %s", file, strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", " "), "yaml: "))
	}
	if len(doc.Answers) == 0 || len(doc.Answers) > 1000 {
		return Answers{}, fmt.Errorf("%s: it needs from 1 to 1000 `answers`, each with `person` and `answer: yes` or `answer: no`", file)
	}
	for i, a := range doc.Answers {
		if a.Person == "" || a.Answer != "yes" && a.Answer != "no" {
			return Answers{}, fmt.Errorf("%s: answers[%d] needs a `person` and `answer: yes` or `answer: no`", file, i)
		}
	}
	return Answers{List: doc.Answers}, nil
}

// questions finds what is newly asked, and lets people answer it.
func (s *sim) questions(cfg *config.Config) {
	s.mu.Lock()
	runs := slices.Clone(s.runs)
	s.mu.Unlock()
	for _, run := range runs {
		value, err := s.env.QueryWorkflowByID(run, workflows.QueryPendingApprovals)
		if err != nil {
			continue // it has ended
		}
		var open []playbook.ApprovalRequest
		if value.Get(&open) != nil {
			continue
		}
		for _, p := range open {
			if id := p.WorkflowID + "\x00" + p.ID; !s.known[id] {
				s.known[id] = true
				s.asked(p, cfg)
			}
		}
	}
}

// asked notes a question and schedules its answers.
func (s *sim) asked(p playbook.ApprovalRequest, cfg *config.Config) {
	q := Asked{
		AtMS: s.after(), Playbook: playbookOf(p.WorkflowID), Run: runOf(p.WorkflowID), Step: p.Step, Title: p.Title, Ask: p.Question, Would: []string{}, Approvers: p.Approvers.Describe(), Quorum: max(p.Approvers.Quorum, 1),
		TimeoutMS: p.Approvers.Timeout.Milliseconds(), Answers: []string{},
	}
	for _, plan := range p.Plans {
		q.Would = append(q.Would, plan.Plan.Changes...)
	}
	s.mu.Lock()
	s.result.Questions = append(s.result.Questions, q)
	n := len(s.result.Questions) - 1
	s.mu.Unlock()
	s.event("question", "%s would be asked, of whom %d must agree within %s: %s A yes would: %s", q.Approvers, q.Quorum, duration.Format(p.Approvers.Timeout), asking(p.Title), strings.Join(q.Would, "; "))
	for _, a := range s.answersTo(p, cfg) {
		s.env.RegisterDelayedCallback(func() { s.vote(p, a, n) }, max(a.after, time.Millisecond))
	}
}

// ballot is one answer to one question.
type ballot struct {
	person, proved, reason string
	groups                 []string
	approve                bool
	breakGlass             bool
	withdraws              bool   // they had asked for it
	refused                string // why the answer did not count when it was given
	after                  time.Duration
}

func (s *sim) answersTo(p playbook.ApprovalRequest, cfg *config.Config) []ballot {
	var out []ballot
	switch {
	case s.o.Answers.None:
	case s.o.Answers.All:
		for _, who := range entitled(p.Approvers, cfg) {
			if len(out) < max(p.Approvers.Quorum, 1) {
				out = append(out, ballot{person: who.Name, groups: who.Groups, proved: "simulated", approve: true, after: thinking})
			}
		}
	case len(s.o.Answers.List) > 0:
		for _, a := range s.o.Answers.List {
			if a.To != "" && a.To != p.Title && a.To != p.Step && a.To != p.ID && !slices.ContainsFunc(p.Plans, func(r activities.PlanResult) bool { return r.Plan.Action == a.To }) {
				continue
			}
			groups := a.Groups
			for _, person := range cfg.People {
				if person.Name == a.Person && groups == nil {
					groups = person.Groups
				}
			}
			after := time.Duration(a.After)
			if after == 0 {
				after = thinking
			}
			out = append(out, ballot{person: a.Person, groups: groups, proved: "simulated", reason: a.Reason, approve: a.Answer == "yes", after: after})
		}
	default:
		out = s.recorded(p, cfg)
	}
	return out
}

// recorded are the answers that people gave to this question: to the same run's or, where there is none in the recording,
// to one of the same playbook.
func (s *sim) recorded(p playbook.ApprovalRequest, cfg *config.Config) []ballot {
	same := func(run, step string) bool { return step == p.ID && run == p.WorkflowID }
	if !slices.ContainsFunc(s.rec.ApprovalRequests, func(q recording.ApprovalRequest) bool { return same(q.WorkflowID, q.Step) }) {
		same = func(run, step string) bool { return step == p.ID && playbookOf(run) == playbookOf(p.WorkflowID) }
	}
	asked := int64(-1)
	for _, q := range s.rec.ApprovalRequests {
		if same(q.WorkflowID, q.Step) {
			asked = q.OffsetMS
		}
	}
	if asked >= 0 {
		s.marksAfter(asked)
	}
	var out []ballot
	for _, v := range s.rec.Votes {
		if !same(v.WorkflowID, v.Step) {
			continue
		}
		after := thinking
		if asked >= 0 {
			after = time.Duration(max(v.OffsetMS-asked, 1)) * time.Millisecond
		}
		b := ballot{person: v.Person, proved: v.AuthenticatedBy, reason: v.Reason, groups: v.Groups, approve: v.Approved, breakGlass: v.BreakGlass, withdraws: v.WithdrawsRequest, refused: v.RejectionReason, after: after}
		if s.o.Config != nil && !s.rec.Anonymized && !v.WithdrawsRequest { // people without names keep the rights that they had
			b.judgedBy(cfg)
		}
		out = append(out, b)
	}
	return out
}

// judgedBy takes a person's rights from a configuration that was given: who is not in it any more may not answer.
func (b *ballot) judgedBy(cfg *config.Config) {
	i := slices.IndexFunc(cfg.People, func(p config.Person) bool { return p.Name == b.person })
	switch {
	case i < 0 && len(cfg.People) > 0:
		b.refused = fmt.Sprintf("%s is not in the configuration", b.person)
	case i >= 0:
		b.groups = cfg.People[i].Groups
		if b.breakGlass && !cfg.People[i].BreakGlass {
			b.refused = fmt.Sprintf("%s may not break the glass: `break_glass` is not set for them", b.person)
		}
	}
}

// playbookOf is the name at the end of a run's id; its number may be another in a simulation.
func playbookOf(run string) string { return run[strings.LastIndexByte(run, '/')+1:] }

// runOf is the number in a run's id, before the playbook's name.
func runOf(run string) int {
	parts := strings.Split(run, "/")
	if len(parts) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(parts[len(parts)-2])
	return n
}

// entitled are people who may answer: those of the configuration or, where it names nobody, somebody of the group.
func entitled(a activities.Approvers, cfg *config.Config) []config.Person {
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
		out = append(out, config.Person{Name: fmt.Sprintf("somebody of %s (%d)", group, i+1), Groups: []string{group}})
	}
	return out
}

// vote gives an answer as the gateway would have given it.
func (s *sim) vote(p playbook.ApprovalRequest, b ballot, n int) {
	answer := "no"
	if b.approve {
		answer = "yes"
	}
	if b.breakGlass {
		answer += ", breaking the glass"
	}
	note := ""
	switch {
	case b.refused != "":
		note = fmt.Sprintf(" (not counted: %s)", b.refused)
	case s.env.Now().After(p.Deadline):
		note = " (too late)"
	case !b.breakGlass && !b.withdraws && !p.Approvers.CanApprove(b.person, b.groups, s.env.Now().Sub(p.AskedAt)):
		note = " (who may not answer this: not counted)"
	}
	signed, err := s.keys.Sign(attestation.PayloadTypeVote, attestation.Vote{
		IncidentID: p.IncidentID, WorkflowID: p.WorkflowID, Step: p.ID, PlanHash: p.PlansHash, Person: b.person, AuthenticatedBy: b.proved, Approved: b.approve, Reason: b.reason, Groups: b.groups, DecidedAt: s.env.Now(),
		BreakGlass: b.breakGlass, WithdrawsRequest: b.withdraws, RejectionReason: b.refused,
	})
	if err == nil {
		err = s.env.SignalWorkflowByID(p.WorkflowID, workflows.SignalVote, signed)
	}
	if err != nil {
		note = " (the question was closed already)"
	}
	text := fmt.Sprintf("%s says %s%s", b.person, answer, note)
	s.mu.Lock()
	s.result.Questions[n].Answers = append(s.result.Questions[n].Answers, text)
	s.mu.Unlock()
	s.event("vote", "%s to %q", text, p.Title)
}

// asking is a title as a question, which it may be already.
func asking(title string) string { return strings.TrimRight(strings.TrimSpace(title), "?.! ") + "?" }
