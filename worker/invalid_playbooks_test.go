package worker_test

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/diagnostic"
	"stanch/worker/playbookstore"
)

// A playbook without a description runs: its log line is a warning, and does not say that it is omitted.
func TestPlaybookWarningIsNotLoggedAsUnused(t *testing.T) {
	var out bytes.Buffer
	playbookstore.LogPlaybookProblems(slog.New(slog.NewTextHandler(&out, nil)), diagnostic.Diagnostics{
		{
			File: "mine.yaml", Line: 1, Column: 1, Severity: "warning", Code: "no-description",
			Message: "the playbook has no description",
		},
		{File: "bad.yaml", Line: 2, Column: 1, Severity: "error", Code: "unknown-action", Message: "there is no such action"},
	}, false)
	require.Regexp(t, `level=WARN msg="playbook warning" problem="mine.yaml`, out.String())
	require.Regexp(t, `level=ERROR msg="invalid playbook; it is not used" problem="bad.yaml`, out.String())
	require.NotRegexp(t, `level=ERROR.*mine.yaml`, out.String())
}
