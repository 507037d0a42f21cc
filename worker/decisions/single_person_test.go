package decisions

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/worker/config"
)

// allNamespaceApprovers are the approvers of every namespace.
type allNamespaceApprovers playbooks.Approvers

func (a allNamespaceApprovers) ApproversForNamespace(string, bool) playbooks.Approvers {
	return playbooks.Approvers(a)
}

// A containment that requires two approvers for this duration cannot be extended that long by one of them.
func TestOnePersonCannotExtendPastQuorumLimit(t *testing.T) {
	two := allNamespaceApprovers{Groups: []string{"responders"}, Quorum: 2}
	d := &Service{Roster: config.NewRoster(config.Default(), ""), ScopeApprovers: two}
	bob := Principal{Person: config.Person{Name: "bob", Groups: []string{"responders"}}}
	require.NoError(t, d.checkSinglePersonLimit(bob, leaseScope{namespace: "shop"}, 24*time.Hour))
	require.ErrorContains(t, d.checkSinglePersonLimit(bob, leaseScope{namespace: "shop"}, 7*24*time.Hour),
		"one person can extend this lease to at most 1d from now; a longer extension requires 2 approvals from responders: request it with "+
			"`stanch contain TARGET --for 7d --reason …`")
	require.Error(t, d.checkSinglePersonLimit(Principal{IsOperator: true, DrillName: "cryptominer"}, leaseScope{},
		7*24*time.Hour), "a drill's key is not the operator")
	require.NoError(t, d.checkSinglePersonLimit(Principal{IsOperator: true}, leaseScope{}, 7*24*time.Hour),
		"the operator may")
	d.ScopeApprovers = allNamespaceApprovers{Groups: []string{"responders"}, Quorum: 1}
	require.NoError(t, d.checkSinglePersonLimit(bob, leaseScope{}, 7*24*time.Hour))
}
