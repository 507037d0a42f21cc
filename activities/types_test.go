package activities_test

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
)

func TestActivityTypesAreMethods(t *testing.T) {
	kind := reflect.TypeFor[*activities.Activities]()
	for _, name := range []string{
		activities.TypeObserve, activities.TypePlan, activities.TypeApply, activities.TypeVerify, activities.TypeUndo,
		activities.TypeCountVotes, activities.TypeRecordAttempt, activities.TypeSyncMessage,
	} {
		_, found := kind.MethodByName(name)
		require.True(t, found, "no method %s: a worker would not run what histories name so", name)
	}
}
