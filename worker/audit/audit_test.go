package audit_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/redact"
	"stanch/worker/audit"
	"stanch/worker/auditpage"
	"stanch/worker/authority"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// timelineText returns the timeline as kinds and sentences.
func timelineText(s audit.Timeline) string {
	var b strings.Builder
	for _, l := range s.Entries {
		b.WriteString(string(l.Kind) + ": " + l.Text + "\n")
	}
	return b.String()
}

func differencesText(all []audit.Difference) string {
	var b strings.Builder
	for _, d := range all {
		b.WriteString(d.Description + " " + d.WorkflowID + "\n")
	}
	return b.String()
}

func TestTimelineIsInOrder(t *testing.T) {
	m := newHistoryBuilder(t).buildFullIncident(nil)
	s, differences := audit.VerifyTimeline(m.runs, m.auditOptions())
	require.Empty(t, differences, differencesText(differences))
	text, at := timelineText(s), 0
	for _, next := range []string{
		"opened: Incident " + testIncidentID, "detection: Detected on node n1: Crypto-miner started on pod shop/web-1",
		"playbook: Playbook miner started on pod shop/web-1",
		"evidence: Evidence was stored: processes.json", "decision: Requires approval before pod.isolate on pod shop/web-1",
		"approval-request: Requested approval from responders (quorum 1, ",
		`vote: alice (uid 7 on the local socket) approved "pod.isolate"`,
		"approval-result: \"pod.isolate\" (request cut#1) was approved", "grant: A grant for this exact plan was signed",
		"ended: Playbook miner ended",
		"effect: pod.isolate on pod shop/web-1 was applied and verified", "Authorized by the grant of alice",
		"verification: Lease " + testLeaseID + " was verified 2 times", "no longer in force", "is in force",
		"release: bob (uid 8 on the local socket) released lease",
		"undo: pod.isolate on pod shop/web-1 was undone and verified: released by bob", "closed: ",
	} {
		i := strings.Index(text[at:], next)
		require.GreaterOrEqual(t, i, 0, "%q is missing or not in order:\n%s", next, text)
		at += i
	}
	require.Equal(t, 1, strings.Count(text, "approval-request: "),
		"an approved containment is planned again without a second request")
	require.NotContains(t, text, "failure: ", "a signal between Stanch's own workflows is no failure")
	require.Contains(t, text, "triage: The playbook run was suspended; it starts no further containments and requests no "+
		"approvals: no further containments start: bob has taken it over")
	require.Equal(t, []string{"abcdef012345"}, s.ConfigHashes)
	require.Len(t, s.Effects, 1)
	require.Equal(t, "undone", s.Effects[0].State)
	require.Equal(t, 3, s.Effects[0].VerificationCount)
	require.Equal(t, "alice", s.People[0].Name)
	require.Equal(t, []string{"uid 8 on the local socket"}, s.People[1].AuthenticatedBy)
	for _, l := range s.Entries {
		var event *historypb.HistoryEvent
		for _, r := range m.runs {
			if r.WorkflowID == l.WorkflowID && r.RunID == l.RunID {
				event = r.Events[l.EventID-1]
			}
		}
		require.NotNil(t, event, "the event of %q exists", l.Text)
		require.Equal(t, l.At, event.GetEventTime().AsTime())
	}
	require.NotContains(t, redact.EscapeControlChars(text), "\u001b", "control characters are escaped")
}

func TestTimelineShowsHowEachVoteCounts(t *testing.T) {
	m := newHistoryBuilder(t)
	stranger, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	forged, err := stranger.Sign(attestation.PayloadTypeVote, attestation.Vote{Person: "mallory", Approved: true})
	require.NoError(t, err)
	m.buildFullIncident(func(p *incidentParts) {
		p.votes = []attestation.Envelope{
			m.signVote("eve", true, time.Minute, "visitors"), m.signVote("carol", true, time.Hour, "responders"), forged,
			m.signVote("alice", true, time.Minute, "responders"), m.signVote("alice", true, 2*time.Minute, "responders"),
		}
	})
	s := audit.BuildTimeline(m.runs, m.auditOptions())
	counted := map[string][]string{}
	for _, l := range s.Entries {
		if l.Kind == audit.KindVote {
			name, _ := l.Details["person"].(string)
			counted[name] = append(counted[name], l.Details["counted"].(string))
		}
	}
	require.Equal(t, map[string][]string{
		"eve": {"not counted: this person is not an approver"}, "carol": {"not counted: it was too late"},
		"mallory": {"not counted: its signature is invalid"},
		"alice":   {"counted as an approval", "not counted: the same person already approved"},
	}, counted)
	require.Contains(t, differencesText(s.Problems), "a vote is invalid")
	for _, p := range s.People {
		require.NotEqual(t, "mallory", p.Name, "an unauthenticated person has no actions")
	}
}

// The table of people contains whoever used break-glass, with the reason, and those whose votes did not count.
func TestPeopleIncludeBreakGlassAndRejectedVotes(t *testing.T) {
	m := newHistoryBuilder(t)
	cast := func(person string, change func(*attestation.Vote)) attestation.Envelope {
		v := attestation.Vote{
			IncidentID: testIncidentID, WorkflowID: playbookWorkflowID, Step: "cut#1",
			PlanHash: activities.ApprovalRequestHash([]activities.PlanResult{newPlanResult()}, testApprovers), Person: person,
			AuthenticatedBy: "uid 9 on the local socket",
			Approved:        true, DecidedAt: startTime.Add(time.Minute),
		}
		change(&v)
		return m.signStatement(attestation.PayloadTypeVote, v)
	}
	m.buildFullIncident(func(p *incidentParts) {
		p.votes = []attestation.Envelope{
			cast("eve", func(v *attestation.Vote) { v.RejectionReason = "eve is not allowed to vote on this" }),
			cast("dana", func(v *attestation.Vote) { v.BreakGlass, v.Reason = true, "nobody else is awake" }),
		}
	})
	did := map[string][]string{}
	for _, p := range audit.BuildTimeline(m.runs, m.auditOptions()).People {
		did[p.Name] = p.Actions
	}
	require.Contains(t, did["dana"],
		`used break-glass for "pod.isolate" (request cut#1), alone in place of the full quorum: nobody else is awake`)
	require.Contains(t, did["eve"],
		`approved "pod.isolate" (request cut#1) (not counted: eve is not allowed to vote on this)`)
}

// An approval request without votes has no event of its own: its plan and the timer of its deadline show it.
func TestTimelineShowsUnansweredApprovalRequest(t *testing.T) {
	m := newHistoryBuilder(t)
	m.startHistory(audit.TypePlaybook, playbookWorkflowID, map[string]any{
		"file":   "miner.yaml",
		"source": []byte(testPlaybookSource),
	})
	m.addLocalActivity("Plan", newPlanResult())
	m.addTimerFired(m.addTimerStarted(15 * time.Minute))
	text := timelineText(audit.BuildTimeline(m.runs, m.auditOptions()))
	require.Contains(t, text, "approval-request: Requested approval from responders")
	require.Contains(t, text, "approval-result: Denied, because the approvers did not decide in time")
}

func TestVerifyTimelineReportsEachManipulation(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *historyBuilder, p *incidentParts)
		after  func(m *historyBuilder)
		want   string
	}{
		"changed payload byte": {after: func(m *historyBuilder) {
			data := m.runs[0].Events[1].GetWorkflowExecutionSignaledEventAttributes().GetInput().GetPayloads()[0].Data
			data[len(data)/2] ^= 1
		}, want: "a batch of detections cannot be decoded"},
		"unencrypted payload": {after: func(m *historyBuilder) {
			p := m.runs[1].Events[1].GetActivityTaskScheduledEventAttributes().GetInput().GetPayloads()[0]
			p.Metadata, p.Data = map[string][]byte{"encoding": []byte("json/plain")}, []byte(`{}`)
		}, want: "not encrypted"},
		"missing event": {after: func(m *historyBuilder) {
			m.runs[2].Events = append(m.runs[2].Events[:3:3], m.runs[2].Events[4:]...)
		}, want: "events are missing"},
		"changed detection": {
			change: func(_ *historyBuilder, p *incidentParts) { p.detection.Detection.Confidence = 0.99 },
			want:   "or the detection was changed",
		},
		"attestation of another key": {change: func(m *historyBuilder, p *incidentParts) {
			other, err := authority.OpenOrCreate(m.t.TempDir())
			require.NoError(m.t, err)
			p.detection.Attestation, err = other.Sign(attestation.PayloadTypeAttestation,
				attestation.Attestation{DetectionID: "d1"})
			require.NoError(m.t, err)
		}, want: "the attestation of detection d1 is invalid"},
		"grant for another plan": {change: func(m *historyBuilder, p *incidentParts) {
			p.tally.GrantsByPlanHash[newPlanResult().PlanHash] = m.signGrant(func(g *attestation.Grant) { g.PlanHash = "other" })
		}, want: "does not match its plan"},
		"approval without votes": {
			change: func(_ *historyBuilder, p *incidentParts) { p.votes = nil },
			want:   "counted as an approval, but 0 people approved",
		},
		"ignored denial": {change: func(m *historyBuilder, p *incidentParts) {
			p.votes = append(p.votes, m.signVote("bob", false, time.Minute, "responders"))
		}, want: "1 denied"},
		"token of another lease": {
			change: func(_ *historyBuilder, p *incidentParts) { p.token.LeaseID = "LSE-OTHER" },
			want:   "the token is for LSE-OTHER",
		},
		"release of another lease": {change: func(m *historyBuilder, p *incidentParts) {
			p.release = m.signStatement(attestation.PayloadTypeGrant, attestation.Grant{
				Operation: attestation.OperationRelease,
				LeaseID:   "LSE-OTHER",
			})
		}, want: "not to release " + testLeaseID},
		"vote as a release": {change: func(m *historyBuilder, p *incidentParts) {
			p.release = m.signVote("bob", true, time.Minute)
		}, want: "the grant of the release is invalid"},
		"stored detection count": {
			change: func(_ *historyBuilder, p *incidentParts) { p.stored.TotalDetections = 7 },
			want:   "it has 7 detections, but the history has 1",
		},
		"stored confidence": {
			change: func(_ *historyBuilder, p *incidentParts) { p.stored.Confidence = 0.99 },
			want:   "with confidence 0.99",
		},
		"stored step": {change: func(_ *historyBuilder, p *incidentParts) {
			p.stored.Playbooks[0].Steps = []playbooks.StepReport{{
				Step: "cut", Action: "pod.isolate",
				Outcome: playbooks.OutcomeDenied,
			}}
		}, want: "the steps of playbook miner are not those"},
		"stored evidence": {
			change: func(_ *historyBuilder, p *incidentParts) { p.stored.Evidence[0].SHA256 = "bb" },
			want:   "which no activity stored",
		},
		"stored lease": {
			change: func(_ *historyBuilder, p *incidentParts) { p.stored.Leases[0].ID = "LSE-OTHER" },
			want:   "the lease LSE-OTHER, which has no history",
		},
		"another playbook source": {change: func(_ *historyBuilder, p *incidentParts) {
			p.report.SourceHash = "0123456789abcdef"
		}, want: "the report has the playbook SHA-256"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newHistoryBuilder(t)
			m.buildFullIncident(func(p *incidentParts) {
				if c.change != nil {
					c.change(m, p)
				}
			})
			if c.after != nil {
				c.after(m)
			}
			_, differences := audit.VerifyTimeline(m.runs, m.auditOptions())
			require.Contains(t, differencesText(differences), c.want)
		})
	}
}

func TestTimelineShowsTerminationAndRetries(t *testing.T) {
	m := newHistoryBuilder(t)
	m.startHistory(audit.TypeLease, leaseWorkflowID, map[string]any{"target": testTarget})
	id := m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
		Attributes: &historypb.HistoryEvent_ActivityTaskScheduledEventAttributes{
			ActivityTaskScheduledEventAttributes: &historypb.ActivityTaskScheduledEventAttributes{
				Input: m.encodePayloads(
					activities.ApplyInput{Request: activities.Request{Action: "pod.isolate", Target: testTarget}},
				),
			},
		},
	})
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED,
		Attributes: &historypb.HistoryEvent_ActivityTaskStartedEventAttributes{
			ActivityTaskStartedEventAttributes: &historypb.ActivityTaskStartedEventAttributes{ScheduledEventId: id, Attempt: 3},
		},
	})
	m.addEvent(&historypb.HistoryEvent{
		EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionTerminatedEventAttributes{
			WorkflowExecutionTerminatedEventAttributes: &historypb.WorkflowExecutionTerminatedEventAttributes{
				Reason:   "because",
				Identity: "someone@host",
			},
		},
	})
	text := timelineText(audit.BuildTimeline(m.runs, m.auditOptions()))
	require.Contains(t, text, "retry: ")
	require.Contains(t, text, "attempt 3")
	require.Contains(t, text, "terminated this workflow: because")
}

func TestHTMLIsEscapedAndSelfContained(t *testing.T) {
	m := newHistoryBuilder(t)
	m.buildFullIncident(func(p *incidentParts) {
		p.detection.Detection.Title = "<img src=x onerror=alert(1)>\u202e"
	})
	var b strings.Builder
	require.NoError(t, auditpage.WriteHTML(&b, audit.BuildTimeline(m.runs, m.auditOptions())))
	require.NotContains(t, b.String(), "<img")
	require.NotContains(t, b.String(), "\u202e")
	require.NotContains(t, b.String(), "http://")
	require.NotContains(t, b.String(), "<script")
	require.Contains(t, b.String(), "&lt;img")
}

// On a narrow screen, table rows become cards: each cell must carry its column's name, and nothing may make the page
// wider than the screen.
func TestHTMLFitsNarrowScreen(t *testing.T) {
	m := newHistoryBuilder(t)
	m.buildFullIncident(nil)
	var b strings.Builder
	require.NoError(t, auditpage.WriteHTML(&b, audit.BuildTimeline(m.runs, m.auditOptions())))
	if file := os.Getenv("STANCH_PAGE"); file != "" { // for manual review
		require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o600))
	}
	cells := regexp.MustCompile(`<td[^>]*>`).FindAllString(b.String(), -1)
	require.NotEmpty(t, cells)
	for _, cell := range cells {
		require.True(t, strings.Contains(cell, `data-th="`) || strings.Contains(cell, "colspan"), cell)
	}
	_, narrow, ok := strings.Cut(b.String(), "@media screen and (max-width: 720px)")
	require.True(t, ok)
	narrow, _, _ = strings.Cut(narrow, "</style>")
	for _, rule := range []string{
		"table, tbody, tr, td { display: block; }", "thead { display: none; }",
		"white-space: normal", "overflow-wrap: anywhere", "content: attr(data-th)",
	} {
		require.Contains(t, narrow, rule)
	}
}

// Every activity's result about the manifest is in the timeline, for comparison with the manifest.
func TestTimelineListsManifestRecords(t *testing.T) {
	m := newHistoryBuilder(t).buildFullIncident(func(p *incidentParts) {
		p.tally.ManifestEntryHash, p.applied.ManifestEntryHash, p.undone.UnrecordedReason = "aa", "bb", "no space left"
	})
	s := audit.BuildTimeline(m.runs, m.auditOptions())
	var got []string
	for _, a := range s.ManifestRecords {
		require.Equal(t, testIncidentID, a.IncidentID)
		require.NotZero(t, a.SourceEvent.EventID)
		got = append(got, a.Description+" "+a.EntryHash+a.UnrecordedReason)
	}
	require.Equal(t, []string{
		`the decision on "pod.isolate" (request cut#1) aa`,
		"applying pod.isolate on pod shop/web-1 bb", "undoing pod.isolate on pod shop/web-1 no space left",
	}, got)
	require.Empty(t, audit.BuildTimeline(newHistoryBuilder(t).buildFullIncident(nil).runs,
		m.auditOptions()).ManifestRecords, "histories of earlier versions have no manifest records")
}

// The audit shows a resolution like every other view, while the incident is open and afterwards.
func TestTimelineShowsDisposition(t *testing.T) {
	m := newHistoryBuilder(t).buildFullIncident(nil)
	runs := m.runs
	m.runs = runs[:1]
	m.addSignal(workflows.SignalTriage, incident.TriageDecision{
		Kind: incident.TriageFalsePositive, Person: "anna",
		Grant: m.signStatement(attestation.PayloadTypeGrant, attestation.Grant{
			Operation: attestation.OperationTriage, IncidentID: testIncidentID,
			GrantedBy: []string{"anna (uid 7 on the local socket)"},
		}),
	})
	m.runs = append(m.runs[:1:1], runs[1:]...)
	require.Equal(t, "closed, resolved: false-positive by anna",
		audit.BuildTimeline(m.runs, m.auditOptions()).StatusText())

	m = newHistoryBuilder(t).buildFullIncident(nil)
	m.runs = m.runs[:1]
	m.addSignal(workflows.SignalTriage, incident.TriageDecision{Kind: incident.TriageFalsePositive, Person: "anna"})
	require.Equal(t, "closed", audit.BuildTimeline(m.runs, m.auditOptions()).StatusText(),
		"a triage decision without a valid grant resolves nothing")
}
