package gateway_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/gateway"
	"stanch/workflows"
)

type scopes struct{}

func (scopes) ApproversOf(string, bool) activities.Approvers {
	return activities.Approvers{Groups: []string{"sre"}}
}

// about is an open incident about the pod shop/web with the UID u-1.
func about(ctx workflow.Context, _ string) error {
	in := playbooks.Incident{ID: incidentID, Status: "open", Targets: []playbooks.Target{{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web", UID: "u-1", Node: "node-a"}}}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryIncident, func() (playbooks.Incident, error) { return in, nil }); err != nil {
		return err
	}
	workflow.GetSignalChannel(ctx, "close").Receive(ctx, nil)
	return nil
}

// A name that another pod has by now contains neither: what was asked for is a UID, and so is what is planned.
func TestARequestIsForAPodAndNotForItsName(t *testing.T) {
	api := newCluster(t)
	api.pod("shop", "web", "u-1", "node-a")
	server := temporal.Start(t, map[string]any{"Incident": about})
	server.Run("Incident", "incident/x", incidentID, "x")
	server.Listed("Incident", "Running", 1)
	auth, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	var planned []activities.PlanInput
	programs, problems := playbooks.LoadAll([]playbooks.Source{{File: "p.yaml", Source: []byte("playbook: p\ninputs: { x: { type: string, default: y } }\nsteps:\n  - notify: log\n")}}, playbooks.Catalogue{"log": {Name: "log", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve}})
	require.NoError(t, problems.Err())
	intake := api.intake(t)
	intake.Authority = auth
	d := &gateway.Decider{
		Reader: &gateway.Reader{Temporal: server}, Authority: auth, Roster: config.NewRoster(config.Default(), ""), Scopes: scopes{}, Log: slog.New(slog.DiscardHandler),
		Requests: &gateway.Requests{
			Intake: intake, Hub: &gateway.Hub{}, ProgramOf: func(sensors.Requested) (*playbooks.Program, error) { return programs[0], nil },
			Plan: func(_ context.Context, in activities.PlanInput) (activities.PlanResult, error) {
				planned = append(planned, in)
				return activities.PlanResult{}, nil
			},
		},
	}
	ann := gateway.Speaker{Person: config.Person{Name: "ann", Groups: []string{"sre"}}, Proved: "a test", Key: "ann"}
	dry := gateway.ContainRequest{Target: "pod/shop/web", Action: "pod.isolate", For: time.Hour, Reason: "beacons", DryRun: true}
	found, err := d.Contain(t.Context(), ann, dry)
	require.NoError(t, err)
	require.Equal(t, "u-1", found.Targets[0].Target.UID)
	byIncident := dry
	byIncident.Target = incidentID
	found, err = d.Contain(t.Context(), ann, byIncident)
	require.NoError(t, err)
	require.Equal(t, "u-1", found.Targets[0].Target.UID)

	api.pod("shop", "web", "u-2", "node-a") // the next pod of the name
	found, err = d.Contain(t.Context(), ann, dry)
	require.NoError(t, err)
	require.Equal(t, "u-2", found.Targets[0].Target.UID)
	known := dry
	known.UID = "u-1"
	for _, q := range []gateway.ContainRequest{known, byIncident} {
		_, err = d.Contain(t.Context(), ann, q)
		require.ErrorContains(t, err, "has the UID u-2 now, not u-1")
	}
	for _, target := range []string{"pod/shop/none", "pod/shop", "shop/web/x", "../x", "pod//x", "a b"} {
		q := dry
		q.Target = target
		_, err = d.Contain(t.Context(), ann, q)
		require.Error(t, err, target)
	}

	// People of other scopes, people who are nobody, and drills.
	for _, s := range []gateway.Speaker{
		{Person: config.Person{Name: "ben", Groups: []string{"interns"}}, Key: "ben"},
		{Key: "nobody"},
		{Person: config.Person{Name: "drill", Groups: []string{"sre"}}, Key: "drill", Drill: "cryptominer", Operator: true},
	} {
		_, err = d.Contain(t.Context(), s, dry)
		require.ErrorContains(t, err, "contain", s.Name)
		require.NotContains(t, err.Error(), "UID")
	}
	require.Empty(t, planned, "the playbook contains nothing")
}

// No sensor and no node makes a person's request.
func TestARequestFromASensorIsRefused(t *testing.T) {
	api := newCluster(t)
	api.pod("shop", "web", "u-1", "node-a")
	intake := api.intake(t)
	for name, change := range map[string]func(*sensors.Detection){
		"requested": func(d *sensors.Detection) {
			d.Requested = &sensors.Requested{Person: "alice", Action: "pod.isolate", For: time.Hour}
		},
		"rule":  func(d *sensors.Detection) { d.Rule = sensors.RuleRequested },
		"kind":  func(d *sensors.Detection) { d.Event.Kind = sensors.KindRequested },
		"actor": func(d *sensors.Detection) { d.Event.Actor = "person:alice" },
	} {
		for _, from := range []string{"", "node-a"} {
			d := sensors.Detection{
				ID: "1", Rule: "r", Title: "t", Severity: sensors.SeverityHigh, Confidence: 0.9, Objective: sensors.ObjectiveEscape, Time: time.Now(), Node: "node-a",
				Event: sensors.Event{Container: sensors.Container{ID: "c0ffee", Pod: sensors.Pod{Namespace: "shop", Name: "web", UID: "u-1"}}},
			}
			require.NoError(t, intake.Check(t.Context(), &d, from))
			d.Confirmed = false
			change(&d)
			require.ErrorContains(t, intake.Check(t.Context(), &d, from), "it is a person's request, which no sensor makes", name)
		}
	}
}
