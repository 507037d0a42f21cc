package audit_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/worker"
	"stanch/worker/audit"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

const (
	incidentID = "INC-01JABCDEFGHJKMNPQRSTVWXYZ0"
	source     = "playbook: miner\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    id: cut\n    for: 1h\n"
	runOf      = "playbook/" + incidentID + "/1/miner"
	leaseOf    = "lease/prod/pod:u-1/network"
	leaseID    = "LSE-00000000000000000001"
)

var (
	began  = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	target = playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1", UID: "u-1", Node: "n1", ContainerID: "c1"}
	people = activities.Approvers{Groups: []string{"responders"}, Quorum: 1, Timeout: 15 * time.Minute}
)

// made is an incident whose histories are written by hand, with real keys: each event at its second.
type made struct {
	t    testing.TB
	auth *authority.Authority
	conv converter.DataConverter
	runs []audit.Run
	at   time.Time
}

func newMade(t testing.TB) *made {
	t.Helper()
	auth, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	key := make([]byte, 32)
	c, err := codec.New(worker.CodecKeyID(key), map[string][]byte{worker.CodecKeyID(key): key})
	require.NoError(t, err)
	return &made{t: t, auth: auth, conv: c.Converter(), at: began}
}

func (m *made) options() audit.Options {
	return audit.Options{Incident: incidentID, Converter: m.conv, Keys: m.auth.Keys(), Catalogue: worker.Catalogue(), Source: "temporal"}
}

func (m *made) payloads(v any) *commonpb.Payloads {
	p, err := m.conv.ToPayloads(v)
	require.NoError(m.t, err)
	return p
}

func (m *made) sign(purpose attestation.PayloadType, body any) attestation.Envelope {
	s, err := m.auth.Sign(purpose, body)
	require.NoError(m.t, err)
	return s
}

// run begins a history; the functions below add to the last one.
func (m *made) run(kind, workflow string, in any) {
	m.runs = append(m.runs, audit.Run{Workflow: workflow, ID: "run-of-" + kind, Type: kind})
	m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED, Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
		WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{
			WorkflowType: &commonpb.WorkflowType{Name: kind}, Input: m.payloads(in), FirstExecutionRunId: "00000000-0000-0000-0001-000000000000",
		},
	}})
}

func (m *made) event(e *historypb.HistoryEvent) int64 {
	r := &m.runs[len(m.runs)-1]
	m.at = m.at.Add(time.Second)
	e.EventId, e.EventTime = int64(len(r.Events)+1), timestamppb.New(m.at)
	r.Events = append(r.Events, e)
	return e.GetEventId()
}

func (m *made) signal(name string, v any) {
	m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED, Attributes: &historypb.HistoryEvent_WorkflowExecutionSignaledEventAttributes{ //nolint:misspell // Temporal's word
		WorkflowExecutionSignaledEventAttributes: &historypb.WorkflowExecutionSignaledEventAttributes{SignalName: name, Input: m.payloads(v)},
	}})
}

// did is an activity from its scheduling to its result.
func (m *made) did(name string, in, out any) {
	id := m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED, Attributes: &historypb.HistoryEvent_ActivityTaskScheduledEventAttributes{
		ActivityTaskScheduledEventAttributes: &historypb.ActivityTaskScheduledEventAttributes{ActivityType: &commonpb.ActivityType{Name: name}, Input: m.payloads(in)},
	}})
	m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED, Attributes: &historypb.HistoryEvent_ActivityTaskCompletedEventAttributes{
		ActivityTaskCompletedEventAttributes: &historypb.ActivityTaskCompletedEventAttributes{ScheduledEventId: id, Result: m.payloads(out)},
	}})
}

// marked is a local activity.
func (m *made) marked(name string, out any) {
	m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_MARKER_RECORDED, Attributes: &historypb.HistoryEvent_MarkerRecordedEventAttributes{
		MarkerRecordedEventAttributes: &historypb.MarkerRecordedEventAttributes{MarkerName: "LocalActivity", Details: map[string]*commonpb.Payloads{
			"data": m.payloads(map[string]any{"ActivityType": name, "Attempt": 1}), "result": m.payloads(out),
		}},
	}})
}

func (m *made) timer(d time.Duration) int64 {
	return m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_TIMER_STARTED, Attributes: &historypb.HistoryEvent_TimerStartedEventAttributes{
		TimerStartedEventAttributes: &historypb.TimerStartedEventAttributes{StartToFireTimeout: durationpb.New(d)},
	}})
}

func (m *made) fired(timer int64) {
	m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_TIMER_FIRED, Attributes: &historypb.HistoryEvent_TimerFiredEventAttributes{
		TimerFiredEventAttributes: &historypb.TimerFiredEventAttributes{StartedEventId: timer},
	}})
}

func (m *made) child(workflow string, in any) {
	m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED, Attributes: &historypb.HistoryEvent_StartChildWorkflowExecutionInitiatedEventAttributes{
		StartChildWorkflowExecutionInitiatedEventAttributes: &historypb.StartChildWorkflowExecutionInitiatedEventAttributes{
			WorkflowId: workflow, WorkflowType: &commonpb.WorkflowType{Name: audit.TypePlaybook}, Input: m.payloads(in),
		},
	}})
}

func (m *made) completed(v any) {
	m.event(&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED, Attributes: &historypb.HistoryEvent_WorkflowExecutionCompletedEventAttributes{
		WorkflowExecutionCompletedEventAttributes: &historypb.WorkflowExecutionCompletedEventAttributes{Result: m.payloads(v)},
	}})
}

// detection is one that the gateway attested.
func (m *made) detection() incident.AttestedDetection {
	d := sensors.Detection{
		ID: "d1", Rule: "miner-process", Title: "Crypto-miner started", Severity: sensors.SeverityHigh, Confidence: 0.7, Objective: sensors.ObjectiveCryptoMining, Node: "n1", Time: began,
		Event: sensors.Event{Kind: sensors.KindExec, Process: sensors.Process{Exe: "/x\u001b[2J", Args: []string{"xmrig"}}, Container: sensors.Container{ID: "c1", Pod: sensors.Pod{Namespace: "shop", Name: "web-1", UID: "u-1"}}},
	}
	return incident.AttestedDetection{Detection: d, Attestation: m.sign(attestation.PayloadTypeAttestation, attestation.Attestation{DetectionID: d.ID, DetectionHash: attestation.HashJSON(d), TargetID: "pod:u-1", Rule: d.Rule, Confidence: 0.7, AcceptedAt: began})}
}

func plan() activities.PlanResult {
	p := activities.Plan{Action: "pod.isolate", TargetID: "pod:u-1", Params: json.RawMessage(`{}`), Duration: time.Hour, Changes: []string{"hold everything that pod shop/web-1 sends"}}
	return activities.PlanResult{Plan: p, PlanHash: p.Hash(), Decision: activities.GuardDecision{Verdict: activities.VerdictAskApproval, Guard: "phase", Reason: "confidence 0.70 is below the 0.80", Phase: 2, Approvers: people, ConfigHash: "abcdef012345"}}
}

// vote is one of a person of the groups given, so long after the question.
func (m *made) vote(person string, approve bool, after time.Duration, groups ...string) attestation.Envelope {
	return m.sign(attestation.PayloadTypeVote, attestation.Vote{
		IncidentID: incidentID, WorkflowID: runOf, Step: "cut#1", PlanHash: activities.ApprovalRequestHash([]activities.PlanResult{plan()}, people), Person: person, AuthenticatedBy: "uid 7 on the local socket",
		Approved: approve, Groups: groups, DecidedAt: began.Add(after),
	})
}

func (m *made) tally(votes ...attestation.Envelope) activities.CountVotesInput {
	plans := []activities.PlanResult{plan()}
	return activities.CountVotesInput{
		IncidentID: incidentID, WorkflowID: runOf, RequestID: "cut#1", PlansHash: activities.ApprovalRequestHash(plans, people), Plans: plans, Targets: []playbooks.Target{target}, Approvers: people, Votes: votes,
		AskedAt: began, Deadline: began.Add(15 * time.Minute),
	}
}

func (m *made) grant(change func(*attestation.Grant)) attestation.Envelope {
	g := attestation.Grant{Nonce: "n-1", Operation: attestation.OperationApply, PlanHash: plan().PlanHash, Targets: []string{"pod:u-1"}, IncidentID: incidentID, GrantedBy: []string{"alice (uid 7 on the local socket)"}, IssuedAt: began, ExpiresAt: began.Add(10 * time.Minute)}
	if change != nil {
		change(&g)
	}
	return m.sign(attestation.PayloadTypeGrant, g)
}

// whole writes an incident from its detection to its undone lease. change may alter what is written.
type parts struct {
	detection incident.AttestedDetection
	votes     []attestation.Envelope
	tally     activities.VoteCount
	grant     attestation.Envelope
	token     attestation.LeaseToken
	release   attestation.Envelope
	stored    playbooks.Incident
	report    playbook.Report
	applied   activities.ApplyResult
	undone    activities.UndoResult
}

func (m *made) whole(change func(*parts)) *made {
	grant := m.grant(nil)
	steps := []playbooks.StepReport{{Step: "cut", Action: "pod.isolate", Target: "pod:u-1", Outcome: playbooks.OutcomeChanged, LeaseID: leaseID}}
	p := &parts{
		detection: m.detection(), votes: []attestation.Envelope{m.vote("alice", true, time.Minute, "responders")}, grant: grant,
		tally:   activities.VoteCount{Granted: true, Reason: "approved by alice", GrantsByPlanHash: map[string]attestation.Envelope{plan().PlanHash: grant}},
		token:   attestation.LeaseToken{Nonce: "t", LeaseID: leaseID, Action: "pod.isolate", TargetID: "pod:u-1", AuthorizationID: "n-1", ExpiresAt: began.Add(time.Hour)},
		release: m.sign(attestation.PayloadTypeGrant, attestation.Grant{Nonce: "r-1", Operation: attestation.OperationRelease, LeaseID: leaseID, GrantedBy: []string{"bob (uid 8 on the local socket)"}}),
		report:  playbook.Report{WorkflowID: runOf, Playbook: "miner", Steps: steps},
		undone:  activities.UndoResult{Undone: true},
		stored: playbooks.Incident{
			ID: incidentID, TotalDetections: 1, Objective: sensors.ObjectiveCryptoMining, Confidence: 0.7, Playbooks: []playbooks.PlaybookRun{{Playbook: "miner", WorkflowID: runOf, Steps: steps}},
			Leases: []playbooks.LeaseReport{{ID: leaseID, Undone: true}}, Evidence: []playbooks.EvidenceRef{{Name: "processes.json", SHA256: "aa", SizeBytes: 3, Action: "process.snapshot", Target: "pod:u-1"}},
		},
	}
	if change != nil {
		change(p)
	}
	input := playbook.Input{File: "miner.yaml", Source: []byte(source), Incident: playbooks.Incident{ID: incidentID, Targets: []playbooks.Target{target}}}
	m.run(audit.TypeIncident, "incident/prod/shop/Pod/web-1", incident.Input{ID: incidentID, GroupingKey: "prod/shop/Pod/web-1", Cluster: "prod", Scope: "web", Phase: 2, ConfigHash: "abcdef012345"})
	m.signal("detections", []incident.AttestedDetection{p.detection})
	m.signal("watch", runOf)
	m.signal("unwatch", runOf)
	m.child(runOf, input)

	request := activities.Request{Action: "process.snapshot", Target: target}
	m.run(audit.TypePlaybook, runOf, input)
	m.did("Observe", activities.ObserveInput{Request: request}, activities.Result{Outcome: playbooks.OutcomeChanged, Evidence: []playbooks.EvidenceRef{{Name: "processes.json", SHA256: "aa", SizeBytes: 3, Action: "process.snapshot", Target: "pod:u-1"}}})
	m.marked("Plan", plan())
	m.timer(15 * time.Minute)
	for _, v := range p.votes {
		m.signal("vote", v)
	}
	m.did("CountVotes", m.tally(p.votes...), p.tally)
	m.marked("Plan", plan())  // again, before its effect
	m.timer(15 * time.Minute) // which is not that of a question
	for signal, with := range map[string]any{"halt": "nothing further is contained: bob has taken it over", "live": playbooks.Incident{}} {
		m.signal(signal, with)
	}
	m.completed(p.report)

	request = activities.Request{Action: "pod.isolate", Target: target, LeaseID: leaseID, Params: json.RawMessage(`{}`), ExpiresAt: began.Add(time.Hour)}
	m.run(audit.TypeLease, leaseOf, lease.Input{Target: target, Facet: playbooks.FacetNetwork, FirstHolder: lease.Holder{Action: "pod.isolate", IncidentRef: activities.IncidentRef{ID: incidentID}}})
	token := m.sign(attestation.PayloadTypeLeaseToken, p.token)
	p.applied.Effect, p.applied.LeaseToken = activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: m.at}, &token
	p.applied.Decision = activities.GuardDecision{Verdict: activities.VerdictRun, Guard: "phase", Reason: "granted by alice", Phase: 2}
	m.did("Apply", activities.ApplyInput{Request: request, Authorization: activities.Authorization{Grant: &p.grant}}, p.applied)
	for _, inForce := range []bool{true, true, false, true} {
		m.did("Verify", activities.VerifyInput{Request: request}, activities.VerifyResult{InForce: inForce, Detail: "looked"})
	}
	m.signal("release", lease.ReleaseSignal{Grant: p.release})
	m.did("Undo", activities.UndoInput{Request: request}, p.undone)
	m.completed(nil)

	// The incident's own history goes on behind its children's.
	last := m.runs
	m.runs = last[:1]
	m.completed(p.stored)
	m.runs = append(m.runs[:1:1], last[1:]...)
	return m
}
