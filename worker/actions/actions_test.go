package actions_test

import (
	"testing"

	"github.com/stretchr/testify/require"

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
