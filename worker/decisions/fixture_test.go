package decisions_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/voters"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/guards"
	"stanch/worker/queries"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// decisionFixture is an installation with one incident, one run, and its requests. It answers as Temporal would, and
// keeps the signals.
type decisionFixture struct {
	client.Client
	*decisions.Service
	t          *testing.T
	cfg        *config.Config
	file       string
	incident   playbooks.Incident
	open       []activities.ApprovalRequest
	signals    []any
	signalErr  error
	incidents  error // of queries of the incident
	leases     error // of the list of leases
	countVotes bool  // a vote is counted at once
	killSwitch *guards.FileKillSwitch
}

const fixtureConfig = `
phase: 2
people:
  - { name: alice, groups: [responders], break_glass: true, kubernetes: alice@example.com }
  - { name: bob, groups: [responders] }
  - { name: eve, groups: [interns] }
groups: [{ name: responders, slack: S0ABCDEFG }]
slack: { channel: C0ABCDEFG, bot_token_file: bot, app_token_file: app }
scopes: [{ name: shop, namespaces: [shop], approvers: { groups: [responders], quorum: 2 } }]
`

func newDecisionFixture(t *testing.T) *decisionFixture {
	t.Helper()
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	f := &decisionFixture{t: t, file: filepath.Join(t.TempDir(), "stanch.yaml")}
	require.NoError(t, os.WriteFile(f.file, []byte(fixtureConfig), 0o600))
	cfg, problems, err := config.Load(f.file)
	require.NoError(t, err)
	require.NoError(t, problems.Err())
	f.cfg = cfg
	f.killSwitch = &guards.FileKillSwitch{FilePath: filepath.Join(t.TempDir(), "switch"), Authority: auth}
	f.Service = &decisions.Service{
		Queries: &queries.Service{Temporal: f}, Authority: auth, Roster: config.NewRoster(cfg, f.file),
		ScopeApprovers: &guards.GuardChain{Config: cfg}, KillSwitch: f.killSwitch, Log: slog.New(slog.DiscardHandler),
		Evidence: &activities.EvidenceStore{Dir: t.TempDir(), Authority: auth},
	}
	f.incident = playbooks.Incident{
		ID: voters.IncidentID, GroupingKey: "shop/web", Status: "open", TotalDetections: 1,
		Workload:  playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Deployment", Name: "web"},
		Playbooks: []playbooks.PlaybookRun{{WorkflowID: "playbook/a/1", Playbook: "p"}},
	}
	asked := voters.Request{ID: "cut#1", Step: "cut", Title: "isolate the pod", Action: "pod.isolate"}
	q := asked.ApprovalRequest("playbook/a/1")
	q.AskedAt = time.Now().Add(-time.Minute)
	f.open = []activities.ApprovalRequest{q}
	return f
}

func (f *decisionFixture) ListWorkflow(_ context.Context, in *workflowservice.ListWorkflowExecutionsRequest) (
	*workflowservice.ListWorkflowExecutionsResponse, error,
) {
	id := ""
	switch {
	case strings.Contains(in.GetQuery(), "'Incident'"):
		id = "incident/shop/web"
	case strings.Contains(in.GetQuery(), "'Playbook'"):
		id = "playbook/a/1"
	default:
		return &workflowservice.ListWorkflowExecutionsResponse{}, f.leases
	}
	return &workflowservice.ListWorkflowExecutionsResponse{Executions: []*workflowpb.WorkflowExecutionInfo{{
		Execution: &commonpb.WorkflowExecution{WorkflowId: id}, Status: enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING,
	}}}, nil
}

func (f *decisionFixture) QueryWorkflow(_ context.Context, _, _, query string, _ ...any) (converter.EncodedValue,
	error,
) {
	var value any
	switch query {
	case workflows.QueryIncident:
		if f.incidents != nil {
			return nil, f.incidents
		}
		value = f.incident
	case workflows.QueryPendingApprovals:
		value = f.open
	default:
		return nil, errors.New("unknown query")
	}
	payloads, err := converter.GetDefaultDataConverter().ToPayloads(value)
	return client.NewValue(payloads), err
}

func (f *decisionFixture) SignalWorkflow(_ context.Context, _, _, _ string, arg any) error {
	if f.signalErr == nil {
		f.signals = append(f.signals, arg)
	}
	if f.countVotes {
		f.open[0].ApprovedBy = append(f.open[0].ApprovedBy, f.lastVote().Person)
	}
	return f.signalErr
}

func (f *decisionFixture) person(name string) decisions.Principal {
	for _, p := range f.cfg.People {
		if p.Name == name {
			return decisions.Principal{Person: p, AuthenticatedBy: "a test", RateLimitKey: name}
		}
	}
	return decisions.Principal{Person: config.Person{Name: name}, AuthenticatedBy: "a test", RateLimitKey: name}
}

func (f *decisionFixture) operator() decisions.Principal {
	p := f.person("uid 0")
	p.IsOperator = true
	return p
}

// drillKey returns the caller with a drill's key.
func (f *decisionFixture) drillKey() decisions.Principal {
	p := f.person("drill")
	p.IsOperator, p.DrillName, p.Groups = true, "cryptominer", []string{"responders"}
	return p
}

func (f *decisionFixture) vote(who decisions.Principal, v decisions.VoteRequest) (*decisions.VoteResult, error) {
	v.IncidentID, v.RequestID = voters.IncidentID, "cut#1"
	return f.Vote(f.t.Context(), who, v)
}

// lastVote returns the vote that was sent last.
func (f *decisionFixture) lastVote() attestation.Vote {
	f.t.Helper()
	require.NotEmpty(f.t, f.signals, "no vote was sent")
	var v attestation.Vote
	require.NoError(f.t, f.Authority.Keyring().Verify(f.signals[len(f.signals)-1].(attestation.Envelope),
		attestation.PayloadTypeVote, &v))
	return v
}

// entries returns the entries of a manifest.
func (f *decisionFixture) entries(manifest string) []activities.ManifestEntry {
	f.t.Helper()
	lines, problems, err := f.Evidence.Verify(manifest, f.Authority.Keyring(), "")
	require.NoError(f.t, err)
	require.Empty(f.t, problems)
	var out []activities.ManifestEntry
	for _, l := range lines {
		out = append(out, l.Entry)
	}
	return out
}

// breakConfig makes the configuration invalid.
func (f *decisionFixture) breakConfig() {
	require.NoError(f.t, os.WriteFile(f.file, []byte("phase: none\n"), 0o600))
}

func (f *decisionFixture) triage(who decisions.Principal, kind incident.TriageKind) (*decisions.TriageResult, error) {
	q := decisions.TriageRequest{IncidentID: voters.IncidentID, Kind: kind, Reason: "a test"}
	return f.Triage(f.t.Context(), who, q)
}
