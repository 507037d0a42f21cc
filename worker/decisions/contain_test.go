package decisions_test

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/testenv/podapi"
	"stanch/testenv/temporal"
	"stanch/testenv/voters"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/ingest"
	"stanch/worker/nodeserver"
	"stanch/worker/queries"
	"stanch/workflows"
)

type fixedScopeApprovers struct{}

func (fixedScopeApprovers) ApproversForNamespace(string, bool) playbooks.Approvers {
	return playbooks.Approvers{Groups: []string{"sre"}}
}

// webPodIncidentWorkflow is an open incident about the pod shop/web with the UID u-1.
func webPodIncidentWorkflow(ctx workflow.Context, _ string) error {
	in := playbooks.Incident{
		ID: voters.IncidentID, Status: "open",
		Targets: []playbooks.Target{{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web", UID: "u-1", Node: "node-a"}},
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryIncident, func() (playbooks.Incident, error) {
		return in,
			nil
	}); err != nil {
		return err
	}
	workflow.GetSignalChannel(ctx, "close").Receive(ctx, nil)
	return nil
}

// If another pod has the name by now, neither is contained: a request is for a UID, and so is its plan.
func TestManualRequestTargetsPodUID(t *testing.T) {
	api := podapi.Start(t)
	api.AddPod("shop", "web", "u-1", "node-a")
	server := temporal.Start(t, map[string]any{"Incident": webPodIncidentWorkflow})
	server.StartWorkflow("Incident", "incident/x", voters.IncidentID, "x")
	server.WaitUntilListed("Incident", "Running", 1)
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	var planned []activities.PlanInput
	programs, problems := playbooks.LoadPlaybooks([]playbooks.SourceFile{playbooks.ManualContainmentPlaybook("pod.isolate",
		time.Hour)}, playbooks.Catalog{
		"pod.isolate": {
			Name: "pod.isolate", Verb: playbooks.VerbContain, Class: playbooks.ClassContain,
			Reversible: true, Facet: playbooks.FacetNetwork,
		},
		"process.snapshot": {Name: "process.snapshot", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve},
	})
	require.NoError(t, problems.Err())
	intake := newIngester(t, api)
	intake.Authority = auth
	d := &decisions.Service{
		Queries: &queries.Service{Temporal: server}, Authority: auth, Roster: config.NewRoster(config.Default(),
			""), ScopeApprovers: fixedScopeApprovers{}, Log: slog.New(slog.DiscardHandler),
		ManualRequests: &decisions.ManualRequests{
			Ingester: intake, NodeServer: &nodeserver.Server{},
			ProgramForRequest: func(sensors.ManualRequest) (*playbooks.Program, error) { return programs[0], nil },
			Plan: func(_ context.Context, in activities.PlanInput) (activities.PlanResult, error) {
				planned = append(planned, in)
				return activities.PlanResult{}, nil
			},
		},
	}
	ann := decisions.Principal{
		Person: config.Person{Name: "ann", Groups: []string{"sre"}}, AuthenticatedBy: "a test",
		RateLimitKey: "ann",
	}
	dry := decisions.ContainRequest{
		Target: "pod/shop/web", Action: "pod.isolate", Duration: time.Hour, Reason: "beacons",
		DryRun: true,
	}
	found, err := d.Contain(t.Context(), ann, dry)
	require.NoError(t, err)
	require.Equal(t, "u-1", found.Targets[0].Target.UID)
	byIncident := dry
	byIncident.Target = voters.IncidentID
	found, err = d.Contain(t.Context(), ann, byIncident)
	require.NoError(t, err)
	require.Equal(t, "u-1", found.Targets[0].Target.UID)

	api.AddPod("shop", "web", "u-2", "node-a") // the next pod with this name
	found, err = d.Contain(t.Context(), ann, dry)
	require.NoError(t, err)
	require.Equal(t, "u-2", found.Targets[0].Target.UID)
	known := dry
	known.UID = "u-1"
	for _, q := range []decisions.ContainRequest{known, byIncident} {
		_, err = d.Contain(t.Context(), ann, q)
		require.ErrorContains(t, err, "now has the UID u-2, not u-1")
	}
	for _, target := range []string{"pod/shop/none", "pod/shop", "shop/web/x", "../x", "pod//x", "a b"} {
		q := dry
		q.Target = target
		_, err = d.Contain(t.Context(), ann, q)
		require.Error(t, err, target)
	}

	// Approvers of other scopes, unknown people, and drills.
	for _, s := range []decisions.Principal{
		{Person: config.Person{Name: "ben", Groups: []string{"interns"}}, RateLimitKey: "ben"},
		{RateLimitKey: "nobody"},
		{
			Person: config.Person{Name: "drill", Groups: []string{"sre"}}, RateLimitKey: "drill", DrillName: "cryptominer",
			IsOperator: true,
		},
	} {
		_, err = d.Contain(t.Context(), s, dry)
		require.ErrorContains(t, err, "contain", s.Name)
		require.NotContains(t, err.Error(), "UID")
	}
	var uids []string
	for _, in := range planned {
		uids = append(uids, in.Request.Target.UID)
		require.Equal(t, "pod.isolate", in.Request.Action)
		attested, err := auth.Keyring().VerifyAttestation(in.Authorization.Attestations[0], "pod:"+in.Request.Target.UID,
			time.Now(), time.Minute)
		require.NoError(t, err)
		require.Equal(t, &attestation.ManualRequest{
			Person: "ann", AuthenticatedBy: "a test", Reason: "beacons",
			Actions: []string{"pod.isolate"}, MaxDuration: time.Hour,
		}, attested.ManualRequest)
	}
	require.Equal(t, []string{"u-1", "u-1", "u-2"}, uids, "refused requests are not sent")
}

// podPairIncidentWorkflow is the incident of two pods, or one with the maximum number of manual runs.
func podPairIncidentWorkflow(ctx workflow.Context, id string) error {
	in := playbooks.Incident{ID: id, Status: "open", Targets: []playbooks.Target{
		{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web", UID: "u-1"},
		{Kind: playbooks.TargetPod, Namespace: "shop", Name: "db", UID: "u-2"},
	}}
	if id != voters.IncidentID {
		in.Playbooks = make([]playbooks.PlaybookRun, 200)
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryIncident, func() (playbooks.Incident, error) {
		return in,
			nil
	}); err != nil {
		return err
	}
	workflow.GetSignalChannel(ctx, "close").Receive(ctx, nil)
	return nil
}

// An incident accepts a limited number of requests. Those before a refused one are recorded.
func TestManualRequestsPerIncidentAreLimited(t *testing.T) {
	const full = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAX"
	api := podapi.Start(t)
	api.AddPod("shop", "web", "u-1", "node-a")
	api.AddPod("shop", "db", "u-2", "node-a")
	server := temporal.Start(t, map[string]any{"Incident": podPairIncidentWorkflow})
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	intake := newIngester(t, api)
	intake.Authority, intake.Temporal, intake.IncidentWorkflow = auth, server, "Incident"
	program, problems := playbooks.LoadPlaybooks([]playbooks.SourceFile{{
		File:    "p.yaml",
		Content: []byte("playbook: p\ninputs: { x: { type: string, default: y } }\nsteps:\n  - notify: log\n"),
	}},
		playbooks.Catalog{"log": {Name: "log", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve}})
	require.NoError(t, problems.Err())
	var log bytes.Buffer
	d := &decisions.Service{
		Queries: &queries.Service{Temporal: server}, Authority: auth, Roster: config.NewRoster(config.Default(),
			""), ScopeApprovers: fixedScopeApprovers{}, Log: slog.New(slog.NewTextHandler(&log, nil)),
		ManualRequests: &decisions.ManualRequests{
			Ingester: intake, NodeServer: &nodeserver.Server{},
			ProgramForRequest: func(sensors.ManualRequest) (*playbooks.Program, error) { return program[0], nil },
		},
	}
	keyOf := func(name, uid string) string {
		one := sensors.Detection{
			ID:        "x",
			Rule:      "r",
			Title:     "t",
			Severity:  sensors.SeverityHigh,
			Objective: sensors.ObjectiveEscape,
			Event:     sensors.Event{Container: sensors.Container{Pod: sensors.Pod{Namespace: "shop", Name: name, UID: uid}}},
		}
		require.NoError(t, intake.Check(t.Context(), &one, ""))
		return workflows.IncidentWorkflowID(intake.GroupingKey(one))
	}
	server.StartWorkflow("Incident", keyOf("web", "u-1"), voters.IncidentID, voters.IncidentID)
	server.StartWorkflow("Incident", keyOf("db", "u-2"), full, full)
	server.WaitUntilListed("Incident", "Running", 2)
	ann := decisions.Principal{
		Person: config.Person{Name: "ann", Groups: []string{"sre"}}, AuthenticatedBy: "a test",
		RateLimitKey: "ann",
	}
	ask := decisions.ContainRequest{
		ID: "one", Target: "pod/shop/db", Action: "pod.isolate", Duration: time.Hour,
		Reason: "beacons",
	}
	_, err = d.Contain(t.Context(), ann, ask)
	require.ErrorContains(t, err, "incident "+full+" has 200 playbook runs and accepts no more requests")
	require.Empty(t, log.String())
	ask.Target = voters.IncidentID
	_, err = d.Contain(t.Context(), ann, ask)
	require.ErrorContains(t, err, "containment of 1 of 2 targets was requested, the last one in incident "+voters.IncidentID+
		"; pod shop/db could not be requested: incident "+full)
	require.Contains(t, log.String(), `msg="a person requested a containment" person=ann`)
}

// Sensors and nodes cannot send a person's request.
func TestManualRequestFromSensorIsRefused(t *testing.T) {
	api := podapi.Start(t)
	api.AddPod("shop", "web", "u-1", "node-a")
	intake := newIngester(t, api)
	for name, change := range map[string]func(*sensors.Detection){
		"requested": func(d *sensors.Detection) {
			d.ManualRequest = &sensors.ManualRequest{Person: "alice", Action: "pod.isolate", Duration: time.Hour}
		},
		"rule":      func(d *sensors.Detection) { d.Rule = sensors.RuleManualRequest },
		"objective": func(d *sensors.Detection) { d.Objective = sensors.ObjectiveManualRequest },
		"kind":      func(d *sensors.Detection) { d.Event.Kind = sensors.KindManualRequest },
		"actor":     func(d *sensors.Detection) { d.Event.Actor = "person:alice" },
	} {
		for _, from := range []string{"", "node-a"} {
			d := sensors.Detection{
				ID: "1", Rule: "r", Title: "t", Severity: sensors.SeverityHigh, Confidence: 0.9, Objective: sensors.ObjectiveEscape,
				Time: time.Now(), Node: "node-a",
				Event: sensors.Event{Container: sensors.Container{ID: "c0ffee", Pod: sensors.Pod{
					Namespace: "shop", Name: "web",
					UID: "u-1",
				}}},
			}
			require.NoError(t, intake.Check(t.Context(), &d, from))
			d.TargetConfirmed = false
			change(&d)
			require.ErrorContains(t, intake.Check(t.Context(), &d, from),
				"only a person can make a manual request, not a sensor", name)
		}
	}
}

// newIngester returns an ingester that looks up pods at a server.
func newIngester(t *testing.T, server *podapi.Server) *ingest.Ingester {
	t.Helper()
	return &ingest.Ingester{
		Kube: server.Client(t), Config: config.Default(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}
