package installation_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/installation"
)

// serveWorker returns the health address of a worker that answers with a status and a body.
func serveWorker(t *testing.T, status int, body string) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+installation.LeasesPath, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

const askPeople = "; if you know that none is, set uninstall.checkLeases=false with `helm upgrade` first, or roll back " +
	"with --no-hooks"

func TestLeasesInForceAreCompared(t *testing.T) {
	for _, c := range []struct {
		name      string
		status    int
		body      string
		permitted []string
		temporal  string
		want      string // the error; "" means none
	}{
		{name: "no lease", status: 200, body: `{"actions":{}}`},
		{
			name: "permitted", status: 200, body: `{"actions":{"pod.isolate":2}}`,
			permitted: []string{"pod.freeze", "pod.isolate"},
		},
		{
			name: "not permitted", status: 200, body: `{"actions":{"workload.scale":1,"pod.isolate":2,"node.cordon":3}}`,
			permitted: []string{"pod.isolate"},
			want: "leases are in force that could no longer be undone: 3 of node.cordon, 1 of workload.scale; end them " +
				"first with `stanch release --all`, or wait until they expire (`stanch leases` lists them)",
		},
		{
			name: "uninstallation", status: 200, body: `{"actions":{"pod.isolate":1}}`,
			want: "leases are in force that could no longer be undone: 1 of pod.isolate; end them first with " +
				"`stanch release --all`, or wait until they expire (`stanch leases` lists them)",
		},
		{
			name: "the same Temporal", status: 200, body: `{"actions":{"pod.isolate":1},"temporal":"a:7233/stanch"}`,
			permitted: []string{"pod.isolate"}, temporal: "a:7233/stanch",
		},
		{
			name: "another Temporal", status: 200, body: `{"actions":{"pod.isolate":1},"temporal":"a:7233/stanch"}`,
			permitted: []string{"pod.isolate"}, temporal: "b:7233/stanch",
			want: "leases are in force that could no longer be undone: 1 of pod.isolate; end them first with " +
				"`stanch release --all`, or wait until they expire (`stanch leases` lists them)",
		},
		{
			name: "Temporal does not respond", status: 503, body: "Temporal does not respond\n",
			want: "ask the worker which leases are in force: it answers 503 Service Unavailable: " +
				"Temporal does not respond" + askPeople,
		},
		{
			name: "something else", status: 200, body: "<html>",
			want: "ask the worker which leases are in force: it answers with something else than leases: <html>" + askPeople,
		},
		{
			name: "no actions", status: 200, body: `{}`,
			want: "ask the worker which leases are in force: it answers with something else than leases: {}" + askPeople,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := installation.LeaseCheck{
				WorkerURL: serveWorker(t, c.status, c.body), Permitted: c.permitted, Temporal: c.temporal,
			}.Run(t.Context())
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.want)
		})
	}
}

// If the worker does not answer, nobody knows whether a lease is in force.
func TestUnreachableWorkerIsAnError(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	err := installation.LeaseCheck{WorkerURL: s.URL}.Run(t.Context())
	require.EqualError(t, err, "ask the worker which leases are in force: it answers 404 Not Found: 404 page not found"+
		askPeople)
	s.Close()
	err = installation.LeaseCheck{WorkerURL: s.URL}.Run(t.Context())
	require.ErrorContains(t, err, "ask the worker which leases are in force: Get \""+s.URL+"/leases\": ")
	require.ErrorContains(t, err, "connection refused"+askPeople)
}
