package api_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/testenv/temporal"
	"stanch/testenv/voters"
	"stanch/worker/api"
	"stanch/worker/decisions"
	"stanch/worker/guards"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// knownIncidentWorkflow is an open incident as its workflow knows it.
func knownIncidentWorkflow(ctx workflow.Context, in playbooks.Incident) (playbooks.Incident, error) {
	if err := workflow.SetQueryHandler(ctx, workflows.QueryIncident, func() (playbooks.Incident, error) {
		return in,
			nil
	}); err != nil {
		return in, err
	}
	workflow.GetSignalChannel(ctx, "close").Receive(ctx, nil)
	return in, nil
}

// runningPlaybookWorkflow is a running playbook: its steps so far and its approval requests.
func runningPlaybookWorkflow(ctx workflow.Context, report playbook.Report, requests []voters.Request) error {
	var open []activities.ApprovalRequest
	for _, a := range requests {
		open = append(open, a.ApprovalRequest(workflow.GetInfo(ctx).WorkflowExecution.ID))
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryPendingApprovals, func() ([]activities.ApprovalRequest,
		error,
	) {
		return open, nil
	}); err != nil {
		return err
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QuerySteps, func() (playbook.Report, error) {
		return report,
			nil
	}); err != nil {
		return err
	}
	workflow.GetSignalChannel(ctx, "end").Receive(ctx, nil)
	return nil
}

// servedAPI is an API whose callers identify themselves in a header.
type servedAPI struct {
	*api.API
	url string
}

func newServedAPI(t *testing.T, s *temporal.Server) *servedAPI {
	t.Helper()
	d, who := voters.NewResponders(t, s)
	d.KillSwitch = &guards.FileKillSwitch{FilePath: filepath.Join(t.TempDir(), "switch"), Authority: d.Authority}
	d.Log = slog.New(slog.DiscardHandler)
	served := &api.API{Service: d, InstallationInfo: api.InstallationInfo{
		Version: "v0", StartedAt: time.Now(),
		PlaybookNames: func() []string { return []string{"miner"} },
	}, Identify: func(r *http.Request) (decisions.Principal, error) {
		speaker := who(r.Header.Get("Who"))
		speaker.IsOperator = speaker.Name == "alice"
		return speaker, nil
	}}
	server := httptest.NewServer(served.Handler())
	t.Cleanup(server.Close)
	return &servedAPI{API: served, url: server.URL}
}

// callAs calls the API as a person and decodes the response.
func (s *servedAPI) callAs(t *testing.T, who, method, path, body string, out any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Who", who)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, json.NewDecoder(resp.Body).Decode(out))
}

// While a playbook waits for an approval, everybody sees its steps, its request, and the approvers.
func TestLiveStateIsShownWhileApprovalIsPending(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": knownIncidentWorkflow, "Playbook": runningPlaybookWorkflow})
	served := newServedAPI(t, s)
	opened := time.Now().UTC().Truncate(time.Second)
	pod := playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1", UID: "1"}
	s.StartWorkflow("Incident", "incident/a", voters.IncidentID, playbooks.Incident{
		ID: voters.IncidentID, Status: "open", TotalDetections: 2, Opened: opened, Targets: []playbooks.Target{pod},
		Playbooks: []playbooks.PlaybookRun{{Playbook: "miner", WorkflowID: "playbook/a/1", Started: opened}},
		Detections: []playbooks.DetectionSummary{
			{Title: "Connection to a mining pool's port", Severity: "medium"},
			{Title: "Reverse shell", Severity: "critical"},
		},
		Timeline: []playbooks.TimelineEntry{{At: opened.Add(2 * time.Second), Text: "later"}, {At: opened, Text: "first"}},
	})
	evidence := playbooks.EvidenceRef{Name: "processes.json", Action: "pod.processes", SHA256: "ab"}
	s.StartWorkflow("Playbook", "playbook/a/1", voters.IncidentID, playbook.Report{
		WorkflowID: "playbook/a/1", Playbook: "miner", Evidence: []playbooks.EvidenceRef{evidence},
		Steps: []playbooks.StepReport{{
			Step: "steps[0]", Action: "pod.processes", Verb: playbooks.VerbEvidence,
			Outcome: playbooks.OutcomeSucceeded, At: opened.Add(time.Second),
		}},
	}, []voters.Request{{ID: "steps[2]#1", Step: "steps[2]", Title: "isolate the pod", Action: "pod.isolate"}})
	s.WaitUntilListed("Incident", "Running", 1)
	s.WaitUntilListed("Playbook", "Running", 1)

	var in api.IncidentView
	served.callAs(t, "alice", http.MethodGet, "/v1/incidents/"+voters.IncidentID, "", &in)
	require.Equal(t, []playbooks.EvidenceRef{evidence}, in.Evidence)
	require.Equal(t, "pod.processes", in.Playbooks[0].Steps[0].Action)
	require.Equal(t, "Reverse shell", in.Headline)
	var entries []string
	for _, e := range in.Timeline {
		entries = append(entries, e.Text)
	}
	require.Equal(t, []string{"first", "miner: pod.processes succeeded", "later"}, entries,
		"in order, with the running playbook")

	for who, yours := range map[string]bool{"alice": true, "eve": false} {
		var list []api.IncidentView
		served.callAs(t, who, http.MethodGet, "/v1/incidents", "", &list)
		require.Len(t, list, 1)
		require.Len(t, list[0].OpenApprovals, 1)
		require.Equal(t, "isolate the pod for 1h", list[0].OpenApprovals[0].Title)
		require.Equal(t, yours, list[0].OpenApprovals[0].ViewerCanApprove, "%s", who)
		require.NotEmpty(t, list[0].Evidence)
	}
	var status api.Status
	served.callAs(t, "alice", http.MethodGet, "/v1/status", "", &status)
	require.Equal(t, 1, status.OpenIncidents)
	require.Equal(t, voters.IncidentID, status.OpenApprovals[0].IncidentID)
	require.True(t, status.OpenApprovals[0].ViewerCanApprove)
	require.Equal(t, []string{"miner"}, status.Playbooks)
	require.Equal(t, []string{"no sensor is connected: nothing is detected or contained on any node"}, status.Problems)

	// Slack shows the same.
	shown, err := served.Queries.Incident(t.Context(), voters.IncidentID)
	require.NoError(t, err)
	require.Equal(t, in.Evidence, shown.Evidence)
	require.Equal(t, in.Timeline, shown.Timeline)
}

// A request that too few people may approve, or that is approved while new containments are paused, shows a warning.
func TestApprovalRequestShowsWarnings(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": knownIncidentWorkflow, "Playbook": voters.Workflow})
	served := newServedAPI(t, s)
	run := "playbook/" + voters.IncidentID + "/1/mine"
	s.StartWorkflow("Incident", "incident/a", voters.IncidentID, playbooks.Incident{
		ID: voters.IncidentID, Status: "open", TotalDetections: 1, Opened: time.Now(), Actors: []string{
			"person:bob",
			"person:alice",
		},
		Playbooks: []playbooks.PlaybookRun{{
			Playbook: "mine", WorkflowID: run, Started: time.Now(), RequestID: "request/1",
			RequestedBy: "bob",
		}},
	})
	s.StartWorkflow("Playbook", run, voters.IncidentID,
		[]voters.Request{{ID: "steps[2]#1", Step: "steps[2]", Title: "isolate the pod", Action: "pod.isolate"}})
	s.WaitUntilListed("Incident", "Running", 1)
	s.WaitUntilListed("Playbook", "Running", 1)
	var in api.IncidentView
	served.callAs(t, "alice", http.MethodGet, "/v1/incidents/"+voters.IncidentID, "", &in)
	require.Equal(t, "1/steps[2]#1", in.OpenApprovals[0].Name)
	require.True(t, in.OpenApprovals[0].ViewerCanApprove, "she requested another containment of this incident")
	require.Equal(t, []string{"only 1 of the 2 required approvers are allowed to vote, so it cannot be approved without " +
		"break-glass"}, in.OpenApprovals[0].Warnings)
	var other api.IncidentView
	served.callAs(t, "bob", http.MethodGet, "/v1/incidents/"+voters.IncidentID, "", &other)
	require.False(t, other.OpenApprovals[0].ViewerCanApprove)

	var done map[string]any
	served.callAs(t, "bob", http.MethodPost, "/v1/pause", `{"reason":"migration"}`, &done)
	served.callAs(t, "alice", http.MethodGet, "/v1/incidents/"+voters.IncidentID, "", &in)
	require.Regexp(t, "^new containments are paused \\(by bob .*: migration\\): containments approved now are refused; "+
		"run `stanch resume` first$", in.OpenApprovals[0].Warnings[0])
	var a decisions.VoteResult
	served.callAs(t, "alice", http.MethodPost, "/v1/vote", `{"incident":"`+voters.IncidentID+
		`","approve":true,"wait_for_result":true}`, &a)
	require.Equal(t, decisions.ResultCounted, a.Result)
	require.Contains(t, a.Message, "waiting for 1 more from responders; new containments are paused (")
	served.callAs(t, "alice", http.MethodPost, "/v1/vote", `{"incident":"`+voters.IncidentID+
		`","approve":true,"wait_for_result":true,"break_glass":true,"reason":"nobody else"}`, &a)
	require.Equal(t, decisions.ResultApproved, a.Result)
	require.NotContains(t, a.Message, "goes ahead")
	require.Contains(t, a.Message, "alone with break-glass, in place of the full quorum; it is refused, since new "+
		"containments are paused (")
}

// Containments that were refused while paused are listed at the resume.
func TestResumeListsContainmentsRefusedWhilePaused(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": knownIncidentWorkflow, "Lease": voters.ExtendableLease})
	served := newServedAPI(t, s)
	var paused api.KillSwitchStatus
	served.callAs(t, "bob", http.MethodGet, "/v1/kill-switch", "", &paused)
	require.False(t, paused.Paused)
	var answer map[string]any
	served.callAs(t, "bob", http.MethodPost, "/v1/pause", `{"reason":"migration"}`, &answer)
	served.callAs(t, "bob", http.MethodGet, "/v1/kill-switch", "", &paused)
	require.True(t, paused.Paused)
	require.Equal(t, "bob (a test)", paused.ChangedBy)
	require.Equal(t, "migration", paused.Reason)
	require.WithinDuration(t, time.Now(), paused.Since, time.Minute)

	pod := func(n string) playbooks.Target {
		return playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-" + n, UID: n}
	}
	refused := func(n string) playbooks.StepReport {
		return playbooks.StepReport{
			Action: "pod.isolate", Verb: playbooks.VerbContain, Target: "pod:" + n,
			Outcome: playbooks.OutcomeRefused, Reason: playbooks.ReasonPaused + " (by bob); …", At: time.Now(),
		}
	}
	contained := playbooks.StepReport{
		Action: "pod.isolate", Verb: playbooks.VerbContain, Target: "pod:2",
		LeaseID: "LSE-1", Outcome: playbooks.OutcomeChanged, At: time.Now().Add(time.Minute),
	}
	in := playbooks.Incident{
		ID: voters.IncidentID, Status: "open", TotalDetections: 1, Opened: time.Now(), Targets: []playbooks.Target{
			pod("1"),
			pod("2"),
		},
		Playbooks: []playbooks.PlaybookRun{{Playbook: "miner", Ended: time.Now(), Steps: []playbooks.StepReport{
			refused("1"),
			refused("1"), refused("2"), contained,
		}}},
	}
	s.StartWorkflow("Incident", "incident/a", voters.IncidentID, in)
	other := in
	other.ID, other.Disposition, other.DispositionBy = "INC-01BRZ3NDEKTSV4RRFFQ69G5FAV", "false-positive", "alice"
	s.StartWorkflow("Incident", "incident/b", other.ID, other)
	s.StartWorkflow("Lease", "lease/prod/pod:2/network", "", time.Hour)
	s.WaitUntilListed("Incident", "Running", 2)
	s.WaitUntilListed("Lease", "Running", 1)

	var status api.Status
	served.callAs(t, "alice", http.MethodGet, "/v1/status", "", &status)
	require.True(t, status.KillSwitch.Paused)
	require.Equal(t, 1, status.LeaseCount)
	require.WithinDuration(t, time.Now().Add(time.Hour), status.NextLeaseExpiry, time.Minute)
	require.Contains(t, strings.Join(status.Problems, "\n"), "containments of open incidents refused while paused: 1")

	var done api.ResumeResult
	served.callAs(t, "alice", http.MethodPost, "/v1/resume", "", &done)
	require.Len(t, done.RefusedContainments, 1, "listed once, without contained targets and resolved incidents")
	require.Equal(t, voters.IncidentID, done.RefusedContainments[0].IncidentID)
	require.Equal(t, "pod shop/web-1", done.RefusedContainments[0].Target)
	require.Equal(t, "stanch run miner --on pod/shop/web-1 --reason 'refused while paused'",
		done.RefusedContainments[0].RetryCommand)

	var view api.IncidentView
	served.callAs(t, "alice", http.MethodGet, "/v1/incidents/"+voters.IncidentID, "", &view)
	require.Len(t, view.RefusedWhilePaused, 1, "the incident still lists it after the resume")
	served.callAs(t, "alice", http.MethodGet, "/v1/incidents/"+other.ID, "", &view)
	require.Equal(t, "resolved: false-positive by alice", view.StatusText)
}
