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
)

// Attempted gives a receipt for evidence that was attempted and never answered.
func (s *Set) Attempted(_ context.Context, r Request) (attestation.Envelope, error) {
	signed, err := s.Authority.Sign(attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{IncidentID: r.Incident.ID, TargetID: r.Target.ID(), Action: r.Action, AttemptedAt: s.now()})
	if err != nil {
		return attestation.Envelope{}, failed(fmt.Errorf("sign the receipt: %w", err))
	}
	return signed, nil
}

// QuestionHash is what a vote is bound to: every plan with its target, in order, and who had to agree.
func QuestionHash(plans []PlanResult, approvers Approvers) string {
	hashes := make([]string, len(plans))
	for i, p := range plans {
		hashes[i] = p.Hash
	}
	return attestation.HashJSON(struct {
		Plans     []string
		Approvers Approvers
	}{hashes, approvers})
}

// TallyInput is a question with the votes so far.
type TallyInput struct {
	Incident  string         `json:"incident"`
	Run       string         `json:"run"`
	Step      string         `json:"step"` // Pending.ID
	Hash      string         `json:"hash"`
	Plans     []PlanResult   `json:"plans"`
	Approvers Approvers      `json:"approvers"`
	Votes     []attestation.Envelope `json:"votes"`
	Asked     time.Time      `json:"asked,omitzero"`
	Deadline  time.Time      `json:"deadline"`
	// Targets are the plans', in their order.
	Targets []playbooks.Target `json:"targets,omitempty"`
	// Selection proves whose playbook asks; nil where the scope's own approvers are asked.
	Selection *attestation.Envelope `json:"selection,omitempty"`
}

// Tally is what the votes come to.
type Tally struct {
	Granted bool     `json:"granted"`
	Denied  bool     `json:"denied"`
	Reason  string   `json:"reason,omitempty"`
	Yes     []string `json:"yes,omitempty"` // who has agreed so far
	// Ignored says of each vote that does not count why not.
	Ignored []string                `json:"ignored,omitempty"`
	Grants  map[string]attestation.Envelope `json:"grants,omitempty"` // by plan hash
	// Entry is the hash of its line in the incident's manifest; Unrecorded says why there is none.
	Entry      string `json:"entry,omitempty"`
	Unrecorded string `json:"unrecorded,omitempty"`
}

// grantLife is how long an approved plan may wait for its effect, from the last vote that counts. Votes that are counted
// again later give no younger grant.
const grantLife = 15 * time.Minute

// CountVotes verifies every vote and, when enough different people with the right said yes to exactly these plans,
// signs a grant for each plan. One no of somebody with the right denies. Who has the right is the scope's or a known
// playbook's to say, and not the workflow's.
func (s *Set) CountVotes(_ context.Context, in TallyInput) (Tally, error) {
	if in.Hash != QuestionHash(in.Plans, in.Approvers) {
		return Tally{Denied: true, Reason: "the question that is counted is not the one that people answered"}, nil
	}
	if reason := s.mayAsk(in); reason != "" {
		return Tally{Denied: true, Reason: reason}, nil
	}
	c := s.count(in)
	if c.no != nil {
		said := "said no"
		if c.no.WithdrawsRequest {
			said = "withdrew the request"
		}
		return Tally{Denied: true, Reason: strings.TrimSpace(fmt.Sprintf("%s %s. %s", c.no.Person, said, c.no.Reason)), Ignored: c.ignored}, nil
	}
	out := Tally{Yes: slices.Sorted(maps.Keys(c.yes)), Ignored: c.ignored}
	quorum := max(in.Approvers.Quorum, 1)
	if len(c.yes) < quorum && c.broke == nil {
		out.Reason = fmt.Sprintf("%d of %d", len(c.yes), quorum)
		return out, nil
	}
	out.Granted = true
	return s.grant(in, c, out)
}

// mayAsk says why these people may not be asked about these plans, or "".
func (s *Set) mayAsk(in TallyInput) string {
	if len(in.Targets) != len(in.Plans) {
		return "the question does not name the target of each plan"
	}
	for i, p := range in.Plans {
		switch {
		case p.Plan.Hash() != p.Hash:
			return "the plan that was shown is not the plan that was hashed"
		case in.Targets[i].ID() != p.Plan.Target:
			return "a plan's target is not the one that is named"
		}
	}
	if in.Selection != nil {
		var selection attestation.PlaybookAuthorization
		if err := s.Authority.Keys().Verify(*in.Selection, attestation.PayloadTypePlaybookAuthorization, &selection); err != nil {
			return "the playbook that asks is not one of this installation's: " + err.Error()
		}
		if slices.Contains(selection.ApproverHashes, AsksHash(in.Approvers)) {
			return ""
		}
	}
	if s.Scopes == nil {
		return "nobody is configured who may approve"
	}
	for _, target := range in.Targets {
		if !sameApprovers(in.Approvers, s.Scopes.ApproversOf(target.Namespace, false)) && !sameApprovers(in.Approvers, s.Scopes.ApproversOf("", true)) {
			return fmt.Sprintf("whom it asks (%s) is neither the scope of %s nor the playbook's to ask", clip(in.Approvers.Who(), 200), target)
		}
	}
	return ""
}

// AsksHash names whom an approval asks.
func AsksHash(a Approvers) string { return attestation.HashJSON(a) }

func sameApprovers(a, b Approvers) bool { return !a.Nobody() && attestation.HashJSON(a) == attestation.HashJSON(b) }

// counted is what the votes come to.
type counted struct {
	yes     map[string]attestation.Vote
	no      *attestation.Vote
	broke   *attestation.Vote // one who broke the glass
	ignored []string
}

func (s *Set) count(in TallyInput) counted {
	c := counted{yes: map[string]attestation.Vote{}}
	ignore := func(who, why string) { c.ignored = append(c.ignored, clip(who, 80)+": "+why) }
	for _, signed := range in.Votes {
		var v attestation.Vote
		if err := s.Authority.Keys().Verify(signed, attestation.PayloadTypeVote, &v); err != nil {
			s.Log.Warn("a vote is not proved", "incident", in.Incident, "step", in.Step, "error", err)
			ignore("somebody", err.Error())
			continue
		}
		switch {
		case v.IncidentID != in.Incident || v.WorkflowID != in.Run || v.Step != in.Step:
			continue // another question's
		case v.RejectionReason != "":
			ignore(v.Person, v.RejectionReason)
		case v.PlanHash != in.Hash:
			ignore(v.Person, "answered another plan")
		case v.DecidedAt.After(in.Deadline):
			ignore(v.Person, "answered too late")
		case v.BreakGlass && v.Approved:
			c.broke, c.yes[v.Person] = &v, v
		case v.WithdrawsRequest && !v.Approved:
			c.no = &v
			return c
		case !in.Approvers.May(v.Person, v.Groups, v.DecidedAt.Sub(in.Asked)):
			ignore(v.Person, "may not answer this")
		case !v.Approved:
			c.no = &v
			return c
		default:
			c.yes[v.Person] = v
		}
	}
	return c
}

// newest is when the last of the votes that agree was given.
func (c counted) newest() time.Time {
	var at time.Time
	for _, v := range c.yes {
		if v.DecidedAt.After(at) {
			at = v.DecidedAt
		}
	}
	return at
}

// grantNonce is the same whenever the votes on one question are counted: a grant that was used is not made anew.
func grantNonce(in TallyInput, plan string) string {
	return attestation.HashJSON([]string{in.Incident, in.Run, in.Step, in.Hash, plan})[:32]
}

// grant signs a grant for each plan.
func (s *Set) grant(in TallyInput, c counted, out Tally) (Tally, error) {
	var people []string
	drill := false
	for _, v := range c.yes {
		people = append(people, display.FormatPerson(v.Person, v.AuthenticatedBy))
		drill = drill || v.DrillOnly
	}
	slices.Sort(people)
	out.Reason, out.Grants = "approved by "+strings.Join(people, ", "), map[string]attestation.Envelope{}
	act := Act{Action: in.Step, Who: people, On: in.Hash}
	kind := EntryApproval
	if c.broke != nil {
		out.Reason = fmt.Sprintf("%s broke the glass: %s. %s", c.broke.Person, c.broke.Reason, out.Reason)
		kind, act.Note = EntryBreakGlass, c.broke.Person+": "+c.broke.Reason
	}
	issued := c.newest()
	for i, p := range in.Plans {
		grant, err := s.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
			Nonce: grantNonce(in, p.Hash), Operation: attestation.OperationApply, PlanHash: p.Hash, Targets: []string{p.Plan.Target}, Namespace: in.Targets[i].Namespace,
			IncidentID: in.Incident, Step: in.Step, GrantedBy: people, DrillOnly: drill, BreakGlass: c.broke != nil, IssuedAt: issued, ExpiresAt: issued.Add(grantLife),
		})
		if err != nil {
			return Tally{}, failed(fmt.Errorf("sign the grant: %w", err))
		}
		out.Grants[p.Hash] = grant
	}
	out.Entry, out.Unrecorded = s.record(in.Incident, kind, act)
	return out, nil
}
