package acceptance

import (
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/harness"
	"stanch/testenv/otlp"
)

// freeAddress is one that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// A real attack is one trace that shows causes and durations.
func TestAttackIsOneTraceUntilLeaseEnds(t *testing.T) {
	harness.SkipUnlessSupported(t)
	receiver, metrics := otlp.Start(t), freeAddress(t)
	s := harness.Start(t, stanchBinary, harness.Options{
		Config: autoContainConfig + "idle_timeout: 2s\n", Playbooks: isolatePlaybook(6 * time.Second),
		Args: []string{"--metrics", metrics},
		Env:  []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + receiver.URL, "OTEL_BSP_SCHEDULE_DELAY=100"},
	})
	c, in := startIsolatedContainer(t, s)
	s.WaitForIncident(t, c.ID, 40*time.Second, "the lease ended as undone", isUndone)

	// chain is the names from a span up to its root.
	chain := func(id string) []string {
		by := map[string]otlp.Span{}
		for _, s := range receiver.Spans() {
			by[s.SpanID()] = s
		}
		var names []string
		for at, ok := by[id]; ok; at, ok = by[at.ParentID()] {
			if names = append(names, at.GetName()); at.ParentID() == "" {
				return names
			}
		}
		return append(names, "a parent that did not come")
	}
	find := func(name, action string) (found []otlp.Span) {
		for _, s := range receiver.Spans() {
			if s.GetName() == name && (action == "" || s.Attributes["stanch.action"] == action &&
				s.Attributes["stanch.incident"] == in.ID) {
				found = append(found, s)
			}
		}
		return found
	}
	lease := []string{
		"StartActivity:PART", "RunWorkflow:Lease", "StartChildWorkflow:Lease", "RunWorkflow:Playbook",
		"StartChildWorkflow:Playbook", "RunWorkflow:Incident",
		"SignalWithStartWorkflow:Incident", "gateway.accept",
	}
	traces := map[string]bool{}
	for _, part := range []string{"Apply", "Verify", "Undo"} {
		want := strings.Split(strings.ReplaceAll("RunActivity:PART "+strings.Join(lease, " "), "PART", part), " ")
		require.Eventually(t, func() bool {
			found := find("RunActivity:"+part, "pod.isolate")
			return len(found) > 0 && len(chain(found[0].SpanID())) == len(want)
		}, 60*time.Second, 100*time.Millisecond, "%s belongs to the acceptance", part)
		found := find("RunActivity:"+part, "pod.isolate")[0]
		require.Equal(t, want, chain(found.SpanID()))
		traces[found.TraceIDText()] = true
	}
	evidence := find("RunActivity:Observe", "process.snapshot")
	require.NotEmpty(t, evidence)
	require.Equal(t, []string{
		"RunActivity:Observe", "StartActivity:Observe", "RunWorkflow:Playbook",
		"StartChildWorkflow:Playbook",
	}, chain(evidence[0].SpanID())[:4])
	traces[evidence[0].TraceIDText()] = true
	require.Len(t, traces, 1, "all of it is one trace")

	var accepted otlp.Span
	for _, s := range find("gateway.accept", "") {
		if traces[s.TraceIDText()] {
			accepted = s
		}
	}
	require.Equal(t, "stanch", accepted.Attributes["stanch.source"])
	require.NotEmpty(t, accepted.Attributes["stanch.rule"])
	require.NotEmpty(t, accepted.Attributes["stanch.node"])
	at, err := time.Parse(time.RFC3339Nano, accepted.Attributes["stanch.event_time"])
	require.NoError(t, err)
	for _, a := range accepted.GetAttributes() {
		if a.GetKey() == "stanch.delay_seconds" {
			require.InDelta(
				t,
				time.Unix(0, int64(accepted.GetStartTimeUnixNano())).Sub(at).Seconds(),
				a.GetValue().GetDoubleValue(),
				0.01,
			)
		}
	}
	require.Equal(t, []string{"stanch"}, receiver.Services())
	ids := map[string]bool{}
	for _, s := range receiver.Spans() {
		require.False(t, ids[s.SpanID()], "%s came twice", s.GetName())
		ids[s.SpanID()] = true
	}

	scrape := func() string {
		response, err := http.Get("http://" + metrics + "/metrics") //nolint:noctx // a test's own
		require.NoError(t, err)
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return string(text)
	}
	// What a node counts comes with its next word of its health.
	fired := regexp.MustCompile(`(?m)^stanch_node_rule_fired_total\{node="[^"]+",rule="[^"]+"\} [1-9]`)
	require.Eventually(t, func() bool { return fired.MatchString(scrape()) }, time.Minute, 200*time.Millisecond)
	text := scrape()
	require.Regexp(t, `(?m)^stanch_node_events_total\{kind="exec",node="[^"]+"\} [1-9]`, text, "the kernel's own events")
	require.Regexp(t, `(?m)^stanch_detections_total\{outcome="accepted",severity="[^"]+",source="stanch"\} [1-9]`, text)
	require.Regexp(t, `(?m)^stanch_temporal_activity_execution_seconds_count\{activity_type="Apply"\} [1-9]`, text)
	require.NotContains(t, text, s.ContainerPrefix, "a container's name is nobody's label")
}
