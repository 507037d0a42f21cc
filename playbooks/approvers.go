package playbooks

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// Approvers are the people who may approve. The zero value names nobody.
type Approvers struct {
	Groups  []string      `json:"groups,omitempty"`
	Users   []string      `json:"users,omitempty"`
	Quorum  int           `json:"quorum"`
	Timeout time.Duration `json:"timeout"`
	// Escalate adds approvers when nobody has decided for some time; nil means no escalation.
	Escalate *Escalation `json:"escalate,omitempty"`
}

// Escalation adds approvers some time after the request.
type Escalation struct {
	After  time.Duration `json:"after"`
	Groups []string      `json:"groups,omitempty"`
	Users  []string      `json:"users,omitempty"`
}

// CanApprove reports whether a person with these groups may vote at this time after the request.
func (a Approvers) CanApprove(person string, groups []string, after time.Duration) bool {
	if isListed(person, groups, a.Users, a.Groups) {
		return true
	}
	return a.Escalate != nil && after >= a.Escalate.After && isListed(person, groups, a.Escalate.Users, a.Escalate.Groups)
}

func isListed(person string, mine, users, groups []string) bool {
	return slices.Contains(users, person) ||
		slices.ContainsFunc(mine, func(g string) bool { return slices.Contains(groups, g) })
}

// IsEmpty reports whether there are no approvers.
func (a Approvers) IsEmpty() bool { return len(a.Groups)+len(a.Users) == 0 }

// Describe returns the approvers' names, for people.
func (a Approvers) Describe() string {
	who := strings.Join(slices.Concat(a.Groups, a.Users), ", ")
	if a.Escalate != nil {
		who += fmt.Sprintf("; after %s: also %s", duration.Format(a.Escalate.After),
			strings.Join(slices.Concat(a.Escalate.Groups, a.Escalate.Users), ", "))
	}
	return who
}
