package decisions

import (
	"context"
	"slices"
	"sync"
	"time"

	"stanch/playbooks"
	"stanch/worker/config"
	"stanch/worker/httpserver"
)

// Principal is an authenticated caller.
type Principal struct {
	config.Person
	// AuthenticatedBy is the authentication method: "uid 1000 on the local socket".
	AuthenticatedBy string
	// RateLimitKey is the key of the caller's rate limit: the identity, not the name.
	RateLimitKey string
	// DrillName is the name of the drill whose key was used; "" for people.
	DrillName string
	// IsOperator is true for the user who runs Stanch on this machine, who may release and pause without being in the
	// configuration.
	IsOperator bool
}

// GroupMembership looks up groups that another system manages.
type GroupMembership interface {
	// GroupsOfPerson returns which of the wanted groups the person is in. With an error, the membership is unknown.
	GroupsOfPerson(ctx context.Context, p config.Person, wanted []config.Group) ([]string, error)
}

// refusedVoteCounter limits how many refused votes of a request are recorded, per person and in total.
type refusedVoteCounter struct {
	mu                 sync.Mutex
	byRequestAndPerson map[string]map[string]int
}

const (
	maxRefusedVotes          = 10
	maxRefusedVotesPerPerson = 2
)

func (r *refusedVoteCounter) allow(question, person string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byRequestAndPerson == nil || len(r.byRequestAndPerson) > 1000 {
		r.byRequestAndPerson = map[string]map[string]int{}
	}
	if r.byRequestAndPerson[question] == nil {
		r.byRequestAndPerson[question] = map[string]int{}
	}
	all := 0
	for _, n := range r.byRequestAndPerson[question] {
		all += n
	}
	if all >= maxRefusedVotes || r.byRequestAndPerson[question][person] >= maxRefusedVotesPerPerson {
		return false
	}
	r.byRequestAndPerson[question][person]++
	return true
}

// GroupsForApprovers returns the caller's groups among those of the approvers.
func (d *Service) GroupsForApprovers(ctx context.Context, cfg *config.Config, s Principal,
	a playbooks.Approvers,
) ([]string, error) {
	groups := s.Groups
	if d.GroupMembership == nil || s.DrillName != "" {
		return groups, nil
	}
	var wanted []config.Group
	for _, g := range cfg.Groups {
		if g.SlackUserGroup != "" && (slices.Contains(a.Groups, g.Name) || a.Escalate != nil &&
			slices.Contains(a.Escalate.Groups, g.Name)) && !slices.Contains(groups, g.Name) {
			wanted = append(wanted, g)
		}
	}
	if len(wanted) == 0 {
		return groups, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	more, err := d.GroupMembership.GroupsOfPerson(ctx, s.Person, wanted)
	if err != nil {
		return nil, httpserver.Forbidden("look up the members of the group: %v; try again", err)
	}
	return append(append([]string{}, groups...), more...), nil
}
