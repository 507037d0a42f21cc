package sourceserver_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"stanch/testenv/temporal"
	"stanch/worker/config"
	"stanch/worker/sourceserver"
	"stanch/workflows"
)

func TestSourceEndpoints(t *testing.T) {
	server := temporal.Start(t, map[string]any{"Story": incidentWorkflow})
	d := newSourceServerFixture(t, server, config.Source{Name: "edge"}, config.Source{Name: "t1", Kind: "tetragon"},
		config.Source{Name: "slow", RatePerSecond: 1})

	t.Run("one alert of each source", func(t *testing.T) {
		for path, body := range map[string]string{
			"/v1/falco":    newFalcoAlert("f-1", "c0ffee01"),
			"/v1/tetragon": `{"process_kprobe":{"process":{"pid":7,"binary":"/bin/x","docker":"c0ffee01"},"function_name":"tcp_connect","policy_name":"egress"},"time":"` + nowRFC3339 + `"}`,
			"/v1/tracee": `{"timestamp":"` + nowRFC3339 +
				`","eventName":"fileless_execution","containerId":"c0ffee01","metadata":{"Properties":{"signatureID":"TRC-105","Severity":3}}}`,
			"/v1/kubearmor": `{"UpdatedTime":"` + nowRFC3339 +
				`","Type":"MatchedPolicy","PolicyName":"p","ContainerID":"c0ffee01","Operation":"Process","Resource":"/bin/x"}`,
		} {
			code, s := d.post(t, path, "edge", body)
			require.Equal(t, http.StatusAccepted, code, "%s: %+v", path, s)
			require.Equal(t, 1, s.Accepted)
			require.Equal(t, "accepted", s.Status)
		}
		all := d.incidentDetections(t, "local/Container/c0ffee01")
		require.Len(t, all, 4)
		for _, one := range all {
			require.Equal(t, "edge", one.Source, "the source is the one with the token")
			require.NotContains(t, strings.Join(one.Event.Process.Args, " "), "hunter2", "secrets are redacted")
		}
	})

	t.Run("separate results per line", func(t *testing.T) {
		body := strings.Join([]string{
			newFalcoAlert("g-1", "c0ffee02"), "nonsense", "",
			`{"rule":"Falco internal: syscall event drop","priority":"Critical","hostname":"node-9","time":"` + nowRFC3339 +
				`","output_fields":{"n_drops":"7"}}`,
			strings.Replace(newFalcoAlert("g-2", "c0ffee02"), nowRFC3339, "2199-01-01T00:00:00Z", 1),
			newFalcoAlert("g-3", "c0ffee02"),
		}, "\n")
		code, s := d.post(t, "/v1/falco", "edge", body)
		require.Equal(t, http.StatusMultiStatus, code)
		require.Equal(t, 2, s.Accepted)
		require.Equal(t, 1, s.Health)
		require.Len(t, s.Refused, 2)
		require.Equal(t, 2, s.Refused[0].Line)
		require.Contains(t, s.Refused[0].Reason, "invalid Falco JSON")
		require.Equal(t, 5, s.Refused[1].Line)
		require.Contains(t, s.Refused[1].Reason, "is in the future")
		require.Len(t, d.receivedHealth.reports, 1)
		require.Equal(t, "edge", d.receivedHealth.reports[0].Source)
		require.Equal(t, uint64(7), d.receivedHealth.reports[0].Dropped)
		require.Equal(t, uint64(7), d.CountsBySource()["edge"].Dropped)

		code, s = d.post(t, "/v1/falco", "edge", "["+newFalcoAlert("g-1", "c0ffee02")+","+newFalcoAlert("g-3", "c0ffee02")+
			"]")
		require.Equal(t, http.StatusAccepted, code, "a retry as a list")
		require.Equal(t, 2, s.Accepted)
		var ids []string
		for _, one := range d.incidentDetections(t, "local/Container/c0ffee02") {
			ids = append(ids, one.ID)
		}
		slices.Sort(ids)
		require.Equal(t, []string{"g-1", "g-3"}, slices.Compact(ids), "under the same ids")
	})

	t.Run("telemetry", func(t *testing.T) {
		code, s := d.post(t, "/v1/tetragon", "t1",
			`{"process_exec":{"process":{"binary":"/bin/ls","docker":"c0ffee03"}},"time":"`+nowRFC3339+`"}`)
		require.Equal(t, http.StatusAccepted, code)
		require.Equal(t, ingestResponse{Status: "accepted", Telemetry: 1}, s)
		_, err := server.DescribeWorkflowExecution(t.Context(), workflows.IncidentWorkflowID("local/Container/c0ffee03"), "")
		require.Error(t, err)
	})

	t.Run("refusals", func(t *testing.T) {
		for name, c := range map[string]struct {
			path, source, body string
			want               int
		}{
			"missing token":            {"/v1/tetragon", "", "{}", 401},
			"wrong token":              {"/v1/tetragon", "nobody", "{}", 401},
			"endpoint of another kind": {"/v1/falco", "t1", newFalcoAlert("x", "c0ffee04"), 403},
			"invalid JSON":             {"/v1/kubearmor", "edge", "{", 400},
			"nothing":                  {"/v1/kubearmor", "edge", "", 400},
			"broken list":              {"/v1/falco", "edge", "[" + newFalcoAlert("x", "c0ffee04"), 400},
			"too many records":         {"/v1/falco", "edge", strings.Repeat("{}\n", 1001), 400},
			"request too large":        {"/v1/falco", "edge", `{"a":"` + strings.Repeat("a", 5<<20) + `"}`, 413},
			"record too large":         {"/v1/falco", "edge", `{"a":"` + strings.Repeat("a", 300<<10) + `"}`, 400},
			"time in the future": {"/v1/falco", "edge", strings.Replace(newFalcoAlert("x", "c0ffee04"), nowRFC3339,
				"2199-01-01T00:00:00Z", 1), 422},
			"list of detections": {"/v1/detections", "edge", "[]", 400},
			"unknown pod": {"/v1/falco", "edge", strings.Replace(newFalcoAlert("x", "c0ffee04"), `"evt.type"`,
				`"k8s.ns.name":"shop","k8s.pod.name":"gone","evt.type"`, 1), 422},
			"invalid pod name": {"/v1/falco", "edge", strings.Replace(newFalcoAlert("x", ""), `"evt.type"`,
				`"k8s.ns.name":"shop","k8s.pod.name":"../secrets","evt.type"`, 1), 422},
			"UID of another pod": {"/v1/falco", "edge", strings.Replace(newFalcoAlert("x", "c0ffee04"), `"evt.type"`,
				`"k8s.ns.name":"shop","k8s.pod.name":"web-7d9c4-bcdfg","k8s.pod.uid":"uid-0","evt.type"`, 1), 422},
		} {
			code, s := d.post(t, c.path, c.source, c.body)
			require.Equal(t, c.want, code, "%s: %+v", name, s)
			require.NotEqual(t, "accepted", s.Status, name)
		}
		_, err := server.DescribeWorkflowExecution(t.Context(), workflows.IncidentWorkflowID("local/Container/c0ffee04"), "")
		require.Error(t, err, "no detection was accepted")
	})

	t.Run("limit after decompression", func(t *testing.T) {
		for encoding, c := range map[string]struct {
			body string
			want int
		}{
			"gzip":     {gzipped(t, newFalcoAlert("z-1", "c0ffee05")), 202},
			"gzip ":    {gzipped(t, strings.Repeat(" ", 50<<20)), 413},
			"identity": {newFalcoAlert("z-2", "c0ffee05"), 202},
			"gzip  ":   {"nonsense", 400},
			"br":       {"x", 415},
		} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+"/v1/falco", strings.NewReader(c.body))
			require.NoError(t, err)
			r.Header.Set("Authorization", "Bearer "+tokenForSource("edge"))
			r.Header.Set("Content-Encoding", strings.TrimSpace(encoding))
			resp, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, c.want, resp.StatusCode, encoding)
		}
	})

	t.Run("pod data from the API server", func(t *testing.T) {
		line := strings.Replace(newFalcoAlert("p-1", "abcdef012345"), `"evt.type"`,
			`"k8s.ns.name":"shop","k8s.pod.name":"web-7d9c4-bcdfg","evt.type"`, 1)
		code, s := d.post(t, "/v1/falco", "edge", line+"\n"+strings.ReplaceAll(line, "p-1", "p-2"))
		require.Equal(t, http.StatusAccepted, code, "%+v", s)
		all := d.incidentDetections(t, "local/shop/Deployment/web")
		require.Len(t, all, 2)
		for _, one := range all {
			c := one.Event.Container
			require.Equal(t, "abcdef0123456789", c.ID, "a short id is completed")
			require.Equal(t, "web", c.Name)
			require.Equal(t, "sha256:0b3f", c.ImageDigest)
			require.Equal(t, "uid-1", c.Pod.UID)
			require.Equal(t, "node-1", one.Node)
		}
	})

	t.Run("API server outage", func(t *testing.T) {
		d.failKube = apierrors.NewServiceUnavailable("away")
		defer func() { d.failKube = nil }()
		code, s := d.post(t, "/v1/falco", "edge", strings.Replace(newFalcoAlert("q-1", "0a0a0a"), `"evt.type"`,
			`"k8s.ns.name":"shop","k8s.pod.name":"other","evt.type"`, 1))
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Equal(t, "5", s.retryAfter)
		require.Equal(t, uint64(1), d.CountsBySource()["edge"].RetryLater)
	})

	t.Run("rate limit", func(t *testing.T) {
		lines := strings.Repeat(`{"process_exec":{}}`+"\n", 990)
		code, _ := d.post(t, "/v1/tetragon", "slow", lines)
		require.Equal(t, http.StatusAccepted, code)
		code, s := d.post(t, "/v1/tetragon", "slow", lines)
		require.Equal(t, http.StatusTooManyRequests, code)
		wait, err := strconv.Atoi(s.retryAfter)
		require.NoError(t, err)
		require.Positive(t, wait)
		require.Equal(t, uint64(1), d.CountsBySource()["slow"].RateLimited)
		code, _ = d.post(t, "/v1/tetragon", "edge", lines)
		require.Equal(t, http.StatusAccepted, code, "other sources are not delayed")
	})
}

// unavailableTemporal is a Temporal that is unavailable.
type unavailableTemporal struct{ client.Client }

func (unavailableTemporal) SignalWithStartWorkflow(context.Context, string, string, any, client.StartWorkflowOptions,
	any, ...any,
) (client.WorkflowRun, error) {
	return nil, fmt.Errorf("no route")
}

func TestTemporalOutageDefersDetections(t *testing.T) {
	server := temporal.Start(t, map[string]any{"Story": incidentWorkflow})
	d := newSourceServerFixture(t, server, config.Source{Name: "edge"})
	d.ingester.Temporal = unavailableTemporal{server}
	health := `{"rule":"Falco internal: syscall event drop","priority":"Critical","time":"` + nowRFC3339 +
		`","output_fields":{"n_drops":"7"}}`
	code, s := d.post(t, "/v1/falco", "edge", newFalcoAlert("a-1", "c0ffee")+"\n"+health)
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.NotEmpty(t, s.retryAfter)
	require.Empty(t, d.receivedHealth.reports, "deferred events are not reported yet")
	d.ingester.Temporal = server
	code, _ = d.post(t, "/v1/falco", "edge", newFalcoAlert("a-1", "c0ffee")+"\n"+health)
	require.Equal(t, http.StatusAccepted, code)
	require.Len(t, d.receivedHealth.reports, 1)
}

func TestSourceTokensAreUnique(t *testing.T) {
	dir := t.TempDir()
	file := func(name, token string) string {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(token), 0o600))
		return filepath.Join(dir, name)
	}
	for want, sources := range map[string][]config.Source{
		"at least 16 characters": {{Name: "a", TokenFile: file("short", "short")}},
		"also the token of a": {
			{Name: "a", TokenFile: file("one", tokenForSource("a"))},
			{Name: "b", TokenFile: file("two", tokenForSource("a"))},
		},
		"no such file": {{Name: "a", TokenFile: filepath.Join(dir, "none")}},
	} {
		_, err := sourceserver.New(nil, sources, nil)
		require.ErrorContains(t, err, want)
	}
}
