package gateway

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/worker/config"
)

// asking are approvers of every namespace.
type asking activities.Approvers

func (a asking) ApproversForNamespace(string, bool) activities.Approvers { return activities.Approvers(a) }

// What takes two people to contain for so long, one of them does not get by extending.
func TestOnePersonDoesNotExtendPastWhatTakesTwo(t *testing.T) {
	two := asking{Groups: []string{"responders"}, Quorum: 2}
	d := &Decider{Roster: config.NewRoster(config.Default(), ""), Scopes: two}
	bob := Speaker{Person: config.Person{Name: "bob", Groups: []string{"responders"}}}
	require.NoError(t, d.aloneTooLong(bob, place{namespace: "shop"}, 24*time.Hour))
	require.ErrorContains(t, d.aloneTooLong(bob, place{namespace: "shop"}, 7*24*time.Hour),
		"one person may extend to at most 1d from now here, since longer takes 2 of responders: `stanch contain TARGET --for 7d --reason …` asks them")
	require.Error(t, d.aloneTooLong(Speaker{Operator: true, Drill: "cryptominer"}, place{}, 7*24*time.Hour), "a drill's key runs nothing")
	require.NoError(t, d.aloneTooLong(Speaker{Operator: true}, place{}, 7*24*time.Hour), "who runs Stanch may")
	d.Scopes = asking{Groups: []string{"responders"}, Quorum: 1}
	require.NoError(t, d.aloneTooLong(bob, place{}, 7*24*time.Hour))
}
