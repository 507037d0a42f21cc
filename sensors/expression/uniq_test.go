package expression_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/expression"
)

func TestUniqInPredicateIsAnError(t *testing.T) {
	env := map[string]any{"l": []string{}}
	for _, source := range []string{"map(l, len(uniq(l)))", "filter(l, count(l, len(uniq(l)) > 1) > 0)"} {
		_, err := expression.Compile(source, env)
		require.ErrorContains(t, err, "not allowed inside a predicate", source)
	}
	_, err := expression.Compile("len(uniq(map(l, upper(#)))) > 1", env)
	require.NoError(t, err)
}
