package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/worker/api"
)

var testNow = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

func testViews() []api.IncidentView {
	view := func(id string, severity sensors.Severity, objective sensors.Objective, age time.Duration,
		change func(*api.IncidentView),
	) api.IncidentView {
		v := api.IncidentView{StatusText: "open", Incident: playbooks.Incident{
			ID: id, Status: "open", Severity: severity, Objective: objective, Opened: testNow.Add(-age),
			Updated: testNow.Add(-age), Confidence: 0.5,
		}}
		if change != nil {
			change(&v)
		}
		return v
	}
	return []api.IncidentView{
		view("INC-1", "low", "execution", 3*24*time.Hour, func(v *api.IncidentView) { v.Status = "closed" }),
		view("INC-2", "high", "discovery", 2*time.Hour, func(v *api.IncidentView) {
			v.OpenApprovals = []api.OpenApproval{
				{Title: "stop the workload", Quorum: 2, ApprovedBy: []string{"bob"}},
				{Title: "isolate the pod", Quorum: 1, ViewerCanApprove: true},
			}
		}),
		view("INC-3", "low", "execution", time.Hour, func(v *api.IncidentView) {
			v.Disposition, v.DispositionBy, v.StatusText = "false-positive", "alice", "resolved: false-positive by alice"
		}),
		view("INC-4", "high", "execution", time.Minute, func(v *api.IncidentView) { v.Confidence = 0.9 }),
	}
}

func TestFlagsFilterIncidents(t *testing.T) {
	for name, c := range map[string]struct {
		list incidentQuery
		want []string
		more int
	}{
		"newest first":        {list: incidentQuery{}, want: []string{"INC-4", "INC-3", "INC-2", "INC-1"}},
		"since":               {list: incidentQuery{since: "1d"}, want: []string{"INC-4", "INC-3", "INC-2"}},
		"until":               {list: incidentQuery{until: "90m"}, want: []string{"INC-2", "INC-1"}},
		"open":                {list: incidentQuery{status: "open"}, want: []string{"INC-4", "INC-2"}},
		"resolved":            {list: incidentQuery{status: "resolved"}, want: []string{"INC-3"}},
		"closed":              {list: incidentQuery{status: "closed"}, want: []string{"INC-1"}},
		"at least a severity": {list: incidentQuery{severity: "medium"}, want: []string{"INC-4", "INC-2"}},
		"objective":           {list: incidentQuery{objectives: []string{"discovery"}}, want: []string{"INC-2"}},
		"waiting":             {list: incidentQuery{onlyWaiting: true}, want: []string{"INC-2"}},
		"by severity":         {list: incidentQuery{sort: "severity"}, want: []string{"INC-4", "INC-2", "INC-3", "INC-1"}},
		"a limit":             {list: incidentQuery{limit: 1}, want: []string{"INC-4"}, more: 3},
	} {
		t.Run(name, func(t *testing.T) {
			if c.list.sort == "" {
				c.list.sort = "opened"
			}
			c.list.output = "text"
			require.NoError(t, c.list.validate(false))
			shown, more := c.list.filter(testViews(), testNow)
			var got []string
			for _, in := range shown {
				got = append(got, in.ID)
			}
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.more, more)
		})
	}
}

// Questions that the viewer can approve come first.
func TestIncidentTableAlignsWithAndWithoutColors(t *testing.T) {
	var plain, color bytes.Buffer
	printIncidentTable(&plain, testViews(), false, false)
	printIncidentTable(&color, testViews(), false, true)
	assert.NotContains(t, plain.String(), "\x1b")
	assert.Contains(t, color.String(), "\x1b[31mhigh\x1b[0m")
	assert.Contains(t, plain.String(), "for you: isolate the pod (+1)")
	assert.Contains(t, plain.String(), "resolved: false-positive by alice")
	stripped := color.String()
	for _, code := range []string{"\x1b[1;31m", "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[2m", "\x1b[0m"} {
		stripped = string(bytes.ReplaceAll([]byte(stripped), []byte(code), nil))
	}
	assert.Equal(t, plain.String(), stripped)
	assert.False(t, useColor(&plain), "a file is not a terminal")
}

// Control characters of an attacker are escaped.
func TestIncidentShowsOpenQuestionsAndOutcome(t *testing.T) {
	v := testViews()[1]
	v.Summary = "a \x1b[2Jminer"
	v.OutcomeText = "miner: contained: pod.isolate on pod shop/web-1 applied and verified"
	var out bytes.Buffer
	printIncident(&out, v, nil, false)
	text := out.String()
	assert.Contains(t, text, "[open]")
	assert.NotContains(t, text, "\x1b")
	assert.Contains(t, text, "outcome     miner: contained: pod.isolate on pod shop/web-1")
	assert.Contains(t, text, "waiting     stop the workload: 1 of 2 approved (bob); waiting for 1 more from")
	assert.Contains(t, text, "waiting for you")
	v = testViews()[2]
	out.Reset()
	printIncident(&out, v, nil, false)
	assert.Contains(t, out.String(), "[resolved: false-positive by alice]")
}

func TestPauseBannerNamesTimePersonAndReason(t *testing.T) {
	assert.Empty(t, formatPause(api.KillSwitchStatus{}))
	assert.Equal(t, "PAUSED by ops in the ConfigMap: new containments are refused; `stanch resume` ends the pause",
		formatPause(api.KillSwitchStatus{Paused: true, ChangedBy: "by ops in the ConfigMap"}))
	assert.Contains(t, formatPause(api.KillSwitchStatus{
		Paused: true, ChangedBy: "alice (uid 7)", Since: testNow,
		Reason: "migration",
	}), "by alice (uid 7) (migration): ")
}
