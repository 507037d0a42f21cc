package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// The chart passes the actions that can still be undone as one value.
func TestCheckLeasesComparesPermittedActions(t *testing.T) {
	worker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"actions":{"pod.isolate":1,"pod.freeze":2}}`)
	}))
	defer worker.Close()
	check := func(permitted string) error {
		c := rootCommand()
		c.SetArgs([]string{"installation", "check-leases", "--worker", worker.URL, "--permitted=" + permitted})
		return c.ExecuteContext(t.Context())
	}
	require.NoError(t, check("node.cordon,pod.freeze,pod.isolate"))
	require.ErrorContains(t, check("pod.isolate"), "could no longer be undone: 2 of pod.freeze;")
	require.ErrorContains(t, check(""), "could no longer be undone: 2 of pod.freeze, 1 of pod.isolate;")
}
