package gateway

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"stanch/activities"
	"stanch/worker/config"
)

// Speaker is somebody whose identity was proved.
type Speaker struct {
	config.Person
	// Proved says how: "uid 1000 on the local socket".
	Proved string
	// Key is what their rate is bounded by: the identity, and not the name.
	Key string
	// Drill is the name of the drill whose key speaks.
	Drill string
	// Operator is who runs Stanch on this machine: they may release and stop without being in the configuration.
	Operator bool
}

// Membership finds the groups of a person that are kept elsewhere.
type Membership interface {
	// Groups are those of the wanted groups that the person is in. An error means that nobody can tell.
	Groups(ctx context.Context, p config.Person, wanted []config.Group) ([]string, error)
}

// limits bounds how often each identity may ask.
type limits struct {
	mu sync.Mutex
	by map[string]*rate.Limiter
}

const (
	limitBurst  = 60
	limitPerSec = 2
	// maxLimited bounds how many identities are told apart; past it all are forgotten and begin anew.
	maxLimited = 10_000
)

func (l *limits) allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil || len(l.by) > maxLimited {
		l.by = map[string]*rate.Limiter{}
	}
	if l.by[key] == nil {
		l.by[key] = rate.NewLimiter(limitPerSec, limitBurst)
	}
	return l.by[key].Allow()
}

// refusals bounds how many refused answers of a question are kept for the record, of each person and in all.
type refusals struct {
	mu sync.Mutex
	by map[string]map[string]int
}

const (
	maxRefusals       = 10
	maxRefusalsPerson = 2
)

func (r *refusals) keep(question, person string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil || len(r.by) > 1000 {
		r.by = map[string]map[string]int{}
	}
	if r.by[question] == nil {
		r.by[question] = map[string]int{}
	}
	all := 0
	for _, n := range r.by[question] {
		all += n
	}
	if all >= maxRefusals || r.by[question][person] >= maxRefusalsPerson {
		return false
	}
	r.by[question][person]++
	return true
}

// groupsOf are the speaker's groups among those that a question is for.
func (d *Decider) groupsOf(ctx context.Context, cfg *config.Config, s Speaker, a activities.Approvers) ([]string, error) {
	groups := s.Groups
	if d.Members == nil || s.Drill != "" {
		return groups, nil
	}
	var wanted []config.Group
	for _, g := range cfg.Groups {
		if g.Slack != "" && (slices.Contains(a.Groups, g.Name) || a.Escalate != nil && slices.Contains(a.Escalate.Groups, g.Name)) && !slices.Contains(groups, g.Name) {
			wanted = append(wanted, g)
		}
	}
	if len(wanted) == 0 {
		return groups, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	more, err := d.Members.Groups(ctx, s.Person, wanted)
	if err != nil {
		return nil, deny("who is in the group cannot be found out now: %v", err)
	}
	return append(append([]string{}, groups...), more...), nil
}
