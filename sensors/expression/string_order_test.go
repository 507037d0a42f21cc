package expression_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/expression"
)

type detection struct {
	Severity severity `expr:"severity"`
	Rule     string   `expr:"rule"`
	Count    int      `expr:"count"`
}

type severity string

func TestComparingStringsByOrderIsAnError(t *testing.T) {
	env := map[string]any{"incident": detection{}, "detections": []detection{}, "name": "web"}
	for _, marked := range []string{ // an @ marks the operator that the error must point to
		`incident.severity @>= "high"`, `incident.severity @> "medium" || incident.count > 1`,
		`any(detections, .severity @>= "high")`, `"high" @<= incident.severity`,
		`name @< "x"`, `upper(name) @> incident.rule`, `incident.count > 1 && incident.severity @< "low"`,
		`len(filter(detections, .severity @< incident.severity)) > 0`,
	} {
		source := strings.Replace(marked, "@", "", 1)
		_, err := expression.Compile(source, env)
		require.ErrorContains(t, err, "compares", source)
		var located *expression.Error
		require.ErrorAs(t, err, &located)
		require.Equal(t, strings.Index(marked, "@"), located.SourceOffset, source)
		require.Equal(t, located.SourceOffset, located.Column, source)
	}
	_, err := expression.Compile(`incident.severity >= "high"`, env)
	require.ErrorContains(t, err, `incident.severity in ["high", "critical"]`)
	for _, source := range []string{
		`incident.severity in ["high", "critical"]`, `incident.count >= 2`, `len(name) > 3`, `incident.severity == "high"`,
		`any(detections, .count > 1 && .severity != "low")`,
	} {
		_, err := expression.Compile(source, env)
		require.NoError(t, err, source)
	}
}
