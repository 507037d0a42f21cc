package condition_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/condition"
)

type detection struct {
	Severity severity `expr:"severity"`
	Rule     string   `expr:"rule"`
	Count    int      `expr:"count"`
}

type severity string

func TestComparingTextsByOrderIsAnError(t *testing.T) {
	env := map[string]any{"incident": detection{}, "detections": []detection{}, "name": "web"}
	for _, marked := range []string{ // an @ stands before the operator that is meant
		`incident.severity @>= "high"`, `incident.severity @> "medium" || incident.count > 1`, `any(detections, .severity @>= "high")`, `"high" @<= incident.severity`,
		`name @< "x"`, `upper(name) @> incident.rule`, `incident.count > 1 && incident.severity @< "low"`, `len(filter(detections, .severity @< incident.severity)) > 0`,
	} {
		source := strings.Replace(marked, "@", "", 1)
		_, err := condition.Compile(source, env)
		require.ErrorContains(t, err, "compares", source)
		var located *condition.Error
		require.ErrorAs(t, err, &located)
		require.Equal(t, strings.Index(marked, "@"), located.At, source)
		require.Equal(t, located.At, located.Offset, source)
	}
	_, err := condition.Compile(`incident.severity >= "high"`, env)
	require.ErrorContains(t, err, `incident.severity in ["high", "critical"]`)
	for _, source := range []string{
		`incident.severity in ["high", "critical"]`, `incident.count >= 2`, `len(name) > 3`, `incident.severity == "high"`, `any(detections, .count > 1 && .severity != "low")`,
	} {
		_, err := condition.Compile(source, env)
		require.NoError(t, err, source)
	}
}
