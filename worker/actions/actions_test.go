package actions_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/worker/actions"
)

func TestEveryReversibleActionHasAnEndMechanism(t *testing.T) {
	reversible := 0
	for _, action := range actions.All(actions.Deps{}) {
		if spec := action.Spec(); spec.Reversible {
			reversible++
			require.NotEmpty(t, spec.EndMechanism.String(), spec.Name)
		}
	}
	require.NotZero(t, reversible)
}

// An action that changes objects of a cluster or an account leaves them changed if its lease is lost, so it finds them
// again. What it needs for that is granted in every phase.
func TestEveryReversibleActionFindsItsOrphans(t *testing.T) {
	finders := 0
	for _, action := range actions.All(actions.Deps{}) {
		spec := action.Spec()
		if !spec.Reversible || len(spec.ApplyPermissions)+len(spec.ApplyIAMPermissions) == 0 {
			continue // its node ends it
		}
		finder, ok := action.(activities.OrphanFinder)
		require.True(t, ok, "%s implements no activities.OrphanFinder", spec.Name)
		finders++
		if len(spec.ApplyIAMPermissions) == 0 {
			require.NotEmpty(t, spec.OrphanPermissions, spec.Name)
		}
		orphans, err := finder.FindOrphans(t.Context(), time.Now())
		require.NoError(t, err, "%s without a cluster and an account", spec.Name)
		require.Empty(t, orphans, spec.Name)
	}
	require.GreaterOrEqual(t, finders, 8)
}
