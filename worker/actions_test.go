package worker_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker"
)

func TestEveryReversibleActionHasAnEndMechanism(t *testing.T) {
	reversible := 0
	for _, action := range worker.AllActions(worker.Deps{}) {
		if spec := action.Spec(); spec.Reversible {
			reversible++
			require.NotEmpty(t, spec.EndMechanism.String(), spec.Name)
		}
	}
	require.NotZero(t, reversible)
}
