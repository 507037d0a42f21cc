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
	"stanch/worker/actions"
	"stanch/worker/audit"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

const (
	testIncidentID     = "INC-01JABCDEFGHJKMNPQRSTVWXYZ0"
	testPlaybookSource = "playbook: miner\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    id: cut\n    for: 1h\n"
	playbookWorkflowID = "playbook/" + testIncidentID + "/1/miner"
	leaseWorkflowID    = "lease/prod/pod:u-1/network"
	testLeaseID        = "LSE-00000000000000000001"
)

var (
	startTime  = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	testTarget = playbooks.Target{
		Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1", UID: "u-1", Node: "n1",
		ContainerID: "c1",
	}
	testApprovers = playbooks.Approvers{Groups: []string{"responders"}, Quorum: 1, Timeout: 15 * time.Minute}
)

// historyBuilder builds an incident's histories event by event, one second apart, with real keys.
type historyBuilder struct {
	t             testing.TB
	authority     *authority.Authority
	dataConverter converter.DataConverter
	runs          []audit.WorkflowRun
	at            time.Time
}

func newHistoryBuilder(t testing.TB) *historyBuilder {
	t.Helper()
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	key := make([]byte, 32)
	c, err := codec.New(codec.KeyID(key), map[string][]byte{codec.KeyID(key): key})
	require.NoError(t, err)
	return &historyBuilder{t: t, authority: auth, dataConverter: c.DataConverter(), at: startTime}
}

func (m *historyBuilder) auditOptions() audit.Options {
	return audit.Options{
		IncidentID: testIncidentID, DataConverter: m.dataConverter, Keyring: m.authority.Keyring(),
		Catalog: actions.Catalog(), HistorySource: "temporal",
	}
}

func (m *historyBuilder) encodePayloads(v any) *commonpb.Payloads {
	p, err := m.dataConverter.ToPayloads(v)
	require.NoError(m.t, err)
	return p
}

func (m *historyBuilder) signStatement(purpose attestation.PayloadType, body any) attestation.Envelope {
	s, err := m.authority.Sign(purpose, body)
	require.NoError(m.t, err)
	return s
}

// startHistory starts a history; the functions below append to the last one.
func (m *historyBuilder) startHistory(kind, workflow string, in any) {
	m.runs = append(m.runs, audit.WorkflowRun{WorkflowID: workflow, RunID: "run-of-" + kind, WorkflowType: kind})
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{
			WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{
				WorkflowType: &commonpb.WorkflowType{Name: kind}, Input: m.encodePayloads(in),
				FirstExecutionRunId: "00000000-0000-0000-0001-000000000000",
			},
		},
	})
}

func (m *historyBuilder) addEvent(e *historypb.HistoryEvent) int64 {
	r := &m.runs[len(m.runs)-1]
	m.at = m.at.Add(time.Second)
	e.EventId, e.EventTime = int64(len(r.Events)+1), timestamppb.New(m.at)
	r.Events = append(r.Events, e)
	return e.GetEventId()
}

func (m *historyBuilder) addSignal(name string, v any) {
	m.addEvent(
		&historypb.HistoryEvent{
			EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
			Attributes: &historypb.HistoryEvent_WorkflowExecutionSignaledEventAttributes{
				WorkflowExecutionSignaledEventAttributes: &historypb.WorkflowExecutionSignaledEventAttributes{
					SignalName: name,
					Input:      m.encodePayloads(v),
				},
			},
		},
	)
}

// addActivity adds an activity, from its scheduling to its result.
func (m *historyBuilder) addActivity(name string, in, out any) {
	id := m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
		Attributes: &historypb.HistoryEvent_ActivityTaskScheduledEventAttributes{
			ActivityTaskScheduledEventAttributes: &historypb.ActivityTaskScheduledEventAttributes{
				ActivityType: &commonpb.ActivityType{Name: name},
				Input:        m.encodePayloads(in),
			},
		},
	})
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED,
		Attributes: &historypb.HistoryEvent_ActivityTaskCompletedEventAttributes{
			ActivityTaskCompletedEventAttributes: &historypb.ActivityTaskCompletedEventAttributes{
				ScheduledEventId: id,
				Result:           m.encodePayloads(out),
			},
		},
	})
}

// addLocalActivity adds a local activity.
func (m *historyBuilder) addLocalActivity(name string, out any) {
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_MARKER_RECORDED,
		Attributes: &historypb.HistoryEvent_MarkerRecordedEventAttributes{
			MarkerRecordedEventAttributes: &historypb.MarkerRecordedEventAttributes{
				MarkerName: "LocalActivity",
				Details: map[string]*commonpb.Payloads{
					"data": m.encodePayloads(map[string]any{"ActivityType": name, "Attempt": 1}), "result": m.encodePayloads(out),
				},
			},
		},
	})
}

func (m *historyBuilder) addTimerStarted(d time.Duration) int64 {
	return m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_TIMER_STARTED,
		Attributes: &historypb.HistoryEvent_TimerStartedEventAttributes{
			TimerStartedEventAttributes: &historypb.TimerStartedEventAttributes{StartToFireTimeout: durationpb.New(d)},
		},
	})
}

func (m *historyBuilder) addTimerFired(timer int64) {
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_TIMER_FIRED,
		Attributes: &historypb.HistoryEvent_TimerFiredEventAttributes{
			TimerFiredEventAttributes: &historypb.TimerFiredEventAttributes{StartedEventId: timer},
		},
	})
}

func (m *historyBuilder) addChildStarted(workflow string, in any) {
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
		Attributes: &historypb.HistoryEvent_StartChildWorkflowExecutionInitiatedEventAttributes{
			StartChildWorkflowExecutionInitiatedEventAttributes: &historypb.StartChildWorkflowExecutionInitiatedEventAttributes{
				WorkflowId: workflow, WorkflowType: &commonpb.WorkflowType{Name: audit.TypePlaybook}, Input: m.encodePayloads(in),
			},
		},
	})
}

func (m *historyBuilder) addWorkflowCompleted(v any) {
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionCompletedEventAttributes{
			WorkflowExecutionCompletedEventAttributes: &historypb.WorkflowExecutionCompletedEventAttributes{
				Result: m.encodePayloads(v),
			},
		},
	})
}

// newAttestedDetection returns a detection that the gateway attested.
func (m *historyBuilder) newAttestedDetection() incident.AttestedDetection {
	d := sensors.Detection{
		ID: "d1", Rule: "miner-process", Title: "Crypto-miner started", Severity: sensors.SeverityHigh, Confidence: 0.7,
		Objective: sensors.ObjectiveCryptoMining, Node: "n1", Time: startTime,
		Event: sensors.Event{
			Kind: sensors.KindExec, Process: sensors.Process{Exe: "/x\u001b[2J", Args: []string{"xmrig"}},
			Container: sensors.Container{ID: "c1", Pod: sensors.Pod{Namespace: "shop", Name: "web-1", UID: "u-1"}},
		},
	}
	return incident.AttestedDetection{Detection: d, Attestation: m.signStatement(attestation.PayloadTypeAttestation,
		attestation.Attestation{
			DetectionID: d.ID, DetectionHash: attestation.HashJSON(d), TargetID: "pod:u-1", Rule: d.Rule,
			Confidence: 0.7, AcceptedAt: startTime,
		})}
}

func newPlanResult() activities.PlanResult {
	p := activities.Plan{
		Action: "pod.isolate", TargetID: "pod:u-1", Params: json.RawMessage(`{}`), Duration: time.Hour,
		Changes: []string{"block all egress of pod shop/web-1"},
	}
	return activities.PlanResult{
		Plan: p, PlanHash: p.Hash(),
		Decision: activities.GuardDecision{
			Verdict: activities.VerdictAskApproval, Guard: "phase",
			Reason: "confidence 0.70 is below the 0.80", Phase: 2, Approvers: testApprovers, ConfigHash: "abcdef012345",
		},
	}
}

// signVote returns the vote of a person with these groups, some time after the request.
func (m *historyBuilder) signVote(person string, approve bool, after time.Duration,
	groups ...string,
) attestation.Envelope {
	return m.signStatement(attestation.PayloadTypeVote, attestation.Vote{
		IncidentID: testIncidentID, WorkflowID: playbookWorkflowID, Step: "cut#1",
		PlanHash: activities.ApprovalRequestHash([]activities.PlanResult{newPlanResult()}, testApprovers), Person: person,
		AuthenticatedBy: "uid 7 on the local socket",
		Approved:        approve, Groups: groups, DecidedAt: startTime.Add(after),
	})
}

func (m *historyBuilder) newCountVotesInput(votes ...attestation.Envelope) activities.CountVotesInput {
	plans := []activities.PlanResult{newPlanResult()}
	return activities.CountVotesInput{
		IncidentID: testIncidentID, WorkflowID: playbookWorkflowID, RequestID: "cut#1",
		PlansHash: activities.ApprovalRequestHash(plans, testApprovers), Plans: plans,
		Targets: []playbooks.Target{testTarget}, Approvers: testApprovers, Votes: votes,
		AskedAt: startTime, Deadline: startTime.Add(15 * time.Minute),
	}
}

func (m *historyBuilder) signGrant(change func(*attestation.Grant)) attestation.Envelope {
	g := attestation.Grant{
		Nonce: "n-1", Operation: attestation.OperationApply, PlanHash: newPlanResult().PlanHash,
		Targets: []string{"pod:u-1"}, IncidentID: testIncidentID, GrantedBy: []string{"alice (uid 7 on the local socket)"},
		IssuedAt: startTime, ExpiresAt: startTime.Add(10 * time.Minute),
	}
	if change != nil {
		change(&g)
	}
	return m.signStatement(attestation.PayloadTypeGrant, g)
}

// incidentParts are the parts of an incident from its detection to the end of its lease, which tests may change.
type incidentParts struct {
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

func (m *historyBuilder) buildFullIncident(change func(*incidentParts)) *historyBuilder {
	grant := m.signGrant(nil)
	steps := []playbooks.StepReport{{
		Step: "cut", Action: "pod.isolate", Target: "pod:u-1",
		Outcome: playbooks.OutcomeChanged, LeaseID: testLeaseID,
	}}
	p := &incidentParts{
		detection: m.newAttestedDetection(), votes: []attestation.Envelope{m.signVote("alice", true, time.Minute,
			"responders")}, grant: grant,
		tally: activities.VoteCount{
			Granted: true, Reason: "approved by alice",
			GrantsByPlanHash: map[string]attestation.Envelope{newPlanResult().PlanHash: grant},
		},
		token: attestation.LeaseToken{
			Nonce: "t", LeaseID: testLeaseID, Action: "pod.isolate", TargetID: "pod:u-1",
			AuthorizationID: "n-1", ExpiresAt: startTime.Add(time.Hour),
		},
		release: m.signStatement(attestation.PayloadTypeGrant, attestation.Grant{
			Nonce:     "r-1",
			Operation: attestation.OperationRelease, LeaseID: testLeaseID,
			GrantedBy: []string{"bob (uid 8 on the local socket)"},
		}),
		report: playbook.Report{WorkflowID: playbookWorkflowID, Playbook: "miner", Steps: steps},
		undone: activities.UndoResult{Undone: true},
		stored: playbooks.Incident{
			ID: testIncidentID, TotalDetections: 1, Objective: sensors.ObjectiveCryptoMining, Confidence: 0.7,
			Playbooks: []playbooks.PlaybookRun{{Playbook: "miner", WorkflowID: playbookWorkflowID, Steps: steps}},
			Leases:    []playbooks.LeaseReport{{ID: testLeaseID, Undone: true}},
			Evidence: []playbooks.EvidenceRef{{
				Name: "processes.json", SHA256: "aa", SizeBytes: 3, Action: "process.snapshot",
				Target: "pod:u-1",
			}},
		},
	}
	if change != nil {
		change(p)
	}
	input := playbook.Input{
		File: "miner.yaml", Source: []byte(testPlaybookSource),
		Incident: playbooks.Incident{ID: testIncidentID, Targets: []playbooks.Target{testTarget}},
	}
	m.startHistory(audit.TypeIncident, "incident/prod/shop/Pod/web-1", incident.Input{
		ID:          testIncidentID,
		GroupingKey: "prod/shop/Pod/web-1", Cluster: "prod", Scope: "web", Phase: 2, ConfigHash: "abcdef012345",
	})
	m.addSignal("detections", []incident.AttestedDetection{p.detection})
	m.addSignal("watch", playbookWorkflowID)
	m.addSignal("unwatch", playbookWorkflowID)
	m.addChildStarted(playbookWorkflowID, input)

	request := activities.Request{Action: "process.snapshot", Target: testTarget}
	m.startHistory(audit.TypePlaybook, playbookWorkflowID, input)
	m.addActivity("Observe", activities.ObserveInput{Request: request},
		activities.Result{
			Outcome: playbooks.OutcomeSucceeded,
			Evidence: []playbooks.EvidenceRef{{
				Name: "processes.json", SHA256: "aa", SizeBytes: 3, Action: "process.snapshot",
				Target: "pod:u-1",
			}},
		})
	m.addLocalActivity("Plan", newPlanResult())
	m.addTimerStarted(15 * time.Minute)
	for _, v := range p.votes {
		m.addSignal("vote", v)
	}
	m.addActivity("CountVotes", m.newCountVotesInput(p.votes...), p.tally)
	m.addLocalActivity("Plan", newPlanResult()) // again, before its effect
	m.addTimerStarted(15 * time.Minute)         // not the timer of an approval request
	for signal, with := range map[string]any{workflows.SignalSuspend: "no further containments start: bob has taken it over", workflows.SignalIncidentState: playbooks.Incident{}} {
		m.addSignal(signal, with)
	}
	m.addWorkflowCompleted(p.report)

	request = activities.Request{
		Action: "pod.isolate", Target: testTarget, LeaseID: testLeaseID,
		Params: json.RawMessage(`{}`), ExpiresAt: startTime.Add(time.Hour),
	}
	m.startHistory(audit.TypeLease, leaseWorkflowID, lease.Input{
		Target: testTarget, Facet: playbooks.FacetNetwork,
		FirstHolder: lease.Holder{Action: "pod.isolate", IncidentRef: activities.IncidentRef{ID: testIncidentID}},
	})
	token := m.signStatement(attestation.PayloadTypeLeaseToken, p.token)
	p.applied.Effect, p.applied.LeaseToken = activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: m.at}, &token
	p.applied.Decision = activities.GuardDecision{
		Verdict: activities.VerdictRun, Guard: "phase",
		Reason: "granted by alice", Phase: 2,
	}
	m.addActivity("Apply", activities.ApplyInput{
		Request:       request,
		Authorization: activities.Authorization{Grant: &p.grant},
	}, p.applied)
	for _, inForce := range []bool{true, true, false, true} {
		m.addActivity("Verify", activities.VerifyInput{Request: request}, activities.VerifyResult{
			InForce: inForce,
			Detail:  "looked",
		})
	}
	m.addSignal("release", lease.ReleaseSignal{Grant: p.release})
	m.addActivity("Undo", activities.UndoInput{Request: request}, p.undone)
	m.addWorkflowCompleted(nil)

	// The incident's own history continues after its children's.
	last := m.runs
	m.runs = last[:1]
	m.addWorkflowCompleted(p.stored)
	m.runs = append(m.runs[:1:1], last[1:]...)
	return m
}
