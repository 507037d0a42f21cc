package activities

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"stanch/sensors/proof"
)

// Attempted gives a receipt for evidence that was attempted and never answered.
func (s *Set) Attempted(_ context.Context, r Request) (proof.Signed, error) {
	signed, err := s.Authority.Sign(proof.PurposeReceipt, proof.Receipt{Incident: r.Incident.ID, Target: r.Target.ID(), Action: r.Action, At: time.Now()})
	if err != nil {
		return proof.Signed{}, failed(fmt.Errorf("sign the receipt: %w", err))
	}
	return signed, nil
}

// QuestionHash is what a vote is bound to: every plan with its target, in order, and who had to agree.
func QuestionHash(plans []PlanResult, approvers Approvers) string {
	hashes := make([]string, len(plans))
	for i, p := range plans {
		hashes[i] = p.Hash
	}
	return proof.Hash(struct {
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
	Votes     []proof.Signed `json:"votes"`
	Deadline  time.Time      `json:"deadline"`
}

// Tally is what the votes come to.
type Tally struct {
	Granted bool                    `json:"granted"`
	Denied  bool                    `json:"denied"`
	Reason  string                  `json:"reason,omitempty"`
	Grants  map[string]proof.Signed `json:"grants,omitempty"` // by plan hash
	// Entry is the hash of its line in the incident's manifest; Unrecorded says why there is none.
	Entry      string `json:"entry,omitempty"`
	Unrecorded string `json:"unrecorded,omitempty"`
}

// grantLife is how long an approved plan may wait for its effect.
const grantLife = 10 * time.Minute

// CountVotes verifies every vote and, when enough different people with the right said yes to exactly these plans,
// signs a grant for each plan. One no of somebody with the right denies.
func (s *Set) CountVotes(_ context.Context, in TallyInput) (Tally, error) {
	if in.Hash != QuestionHash(in.Plans, in.Approvers) {
		return Tally{Denied: true, Reason: "the question that is counted is not the one that people answered"}, nil
	}
	yes := map[string]proof.Vote{}
	for _, signed := range in.Votes {
		var v proof.Vote
		if err := s.Authority.Keys().Open(signed, proof.PurposeVote, &v); err != nil {
			s.Log.Warn("a vote is not proved", "incident", in.Incident, "step", in.Step, "error", err)
			continue
		}
		if v.Incident != in.Incident || v.Run != in.Run || v.Step != in.Step || v.PlanHash != in.Hash || v.At.After(in.Deadline) || !entitled(v, in.Approvers) {
			continue
		}
		if !v.Approve {
			return Tally{Denied: true, Reason: strings.TrimSpace(fmt.Sprintf("%s said no. %s", v.Person, v.Reason))}, nil
		}
		yes[v.Person] = v
	}
	if len(yes) < max(in.Approvers.Quorum, 1) {
		return Tally{Reason: fmt.Sprintf("%d of %d", len(yes), in.Approvers.Quorum)}, nil
	}
	var people []string
	for _, v := range yes {
		people = append(people, fmt.Sprintf("%s (%s)", v.Person, v.Proved))
	}
	slices.Sort(people)
	out := Tally{Granted: true, Reason: "approved by " + strings.Join(people, ", "), Grants: map[string]proof.Signed{}}
	now := time.Now()
	for _, p := range in.Plans {
		if p.Plan.Hash() != p.Hash {
			return Tally{Denied: true, Reason: "the plan that was shown is not the plan that was hashed"}, nil
		}
		grant, err := s.Authority.Sign(proof.PurposeGrant, proof.Grant{
			Nonce: uuid.NewString(), Operation: proof.OperationApply, PlanHash: p.Hash, Targets: []string{p.Plan.Target},
			Incident: in.Incident, Step: in.Step, People: people, Issued: now, Expires: now.Add(grantLife),
		})
		if err != nil {
			return Tally{}, failed(fmt.Errorf("sign the grant: %w", err))
		}
		out.Grants[p.Hash] = grant
	}
	out.Entry, out.Unrecorded = s.record(in.Incident, EntryApproval, Act{Action: in.Step, Who: people, On: in.Hash})
	return out, nil
}

func entitled(v proof.Vote, a Approvers) bool {
	if slices.Contains(a.Users, v.Person) {
		return true
	}
	return slices.ContainsFunc(v.Groups, func(g string) bool { return slices.Contains(a.Groups, g) })
}
