// Package interpreter runs playbooks through the production workflows on a real Temporal, with actions of its own
// whose answers a scenario chooses: the outcome table of the language, line by line.
package interpreter

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

func TestStepOutcomes(t *testing.T) {
	const approval = `
  - evidence: snapshot
  - approval: sure
    from: { groups: [people] }
    timeout: 5s
    on_timeout: deny
    steps:
      - contain: scale
        for: 1h
    on_denied:
      - notify: tell
`
	for name, s := range map[string]testScenario{
		"a containment that holds": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    on_failure:\n      - notify: tell\n",
			wantLines: []string{"snapshot a succeeded", "snapshot b succeeded", "isolate a changed", "isolate b changed"},
		},
		"a refusal runs on_failure": {
			stepsYAML:      "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n    on_failure:\n      - notify: tell\n",
			errorsByAction: map[string][]error{"isolate": {activities.Refusef("host network")}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "isolate a refused (host network)",
				"tell a succeeded", "tell b succeeded",
			},
		},
		"one target that fails makes the step fail, the other is held": {
			stepsYAML:      "\n  - evidence: snapshot\n  - contain: isolate\n    id: i\n    for: 1h\n  - notify: tell\n    if: i.outcome == \"refused\" && i.targets == 2\n",
			errorsByAction: map[string][]error{"isolate": {activities.Refusef("no"), nil}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "isolate ? refused (no)",
				"isolate ? changed", "tell a succeeded", "tell b succeeded",
			},
		},
		"evidence that fails does not stop the containment": {
			stepsYAML: "\n  - evidence: snapshot\n    timeout: 2s\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			errorsByAction: map[string][]error{"snapshot": {
				errUnavailable, errUnavailable, errUnavailable, errUnavailable,
				errUnavailable, errUnavailable, errUnavailable, errUnavailable,
			}},
			wantLines: []string{"snapshot a failed", "snapshot b failed", "isolate a changed"},
		},
		"what the phase does not let run is proposed, and on_failure does not run": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n    on_failure:\n      - notify: tell\n",
			decisionsByAction: map[string]activities.GuardDecision{"isolate": {
				Verdict: activities.VerdictPropose,
				Reason:  "phase 1",
			}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded",
				"isolate a proposed (would isolate a (phase 1))",
			},
		},
		"an if that is false skips": {
			stepsYAML: "\n  - enrich: ctx\n    id: c\n  - notify: tell\n    if: c.count > 100\n  - notify: tell\n    if: c.count == 7\n",
			wantLines: []string{
				"ctx a succeeded", "ctx b succeeded", "tell  skipped (`if` is false)", "tell a succeeded",
				"tell b succeeded",
			},
		},
		"a retry tries again": {
			stepsYAML:      "\n  - enrich: ctx\n    target: incident.targets[0]\n    retry: { attempts: 2, backoff: 10ms }\n",
			errorsByAction: map[string][]error{"ctx": {errUnavailable, errUnavailable, errUnavailable, nil}},
			wantLines:      []string{"ctx a failed", "ctx a succeeded"},
		},
		"parallel branches are joined before what follows": {
			stepsYAML: "\n  - parallel:\n      - enrich: ctx\n        id: c\n      - evidence: snapshot\n  - notify: tell\n    if: c.count == 7\n",
			wantLines: []string{
				"ctx a succeeded", "ctx b succeeded", "snapshot a succeeded", "snapshot b succeeded",
				"tell a succeeded", "tell b succeeded",
			},
		},
		"an approval that is given runs its steps": {
			stepsYAML:         approval,
			decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
			approverVote:      voteYes(),
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "approval  succeeded", "scale a changed",
				"scale b changed",
			},
		},
		"an approval that is refused runs on_denied and nothing else": {
			stepsYAML:         approval,
			decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
			approverVote:      voteNo(),
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "approval  denied", "tell a succeeded",
				"tell b succeeded",
			},
			check: func(t *testing.T, w *fakeBackend) { require.Zero(t, w.countCalls("scale a")) },
		},
		"silence denies": {
			stepsYAML:         approval,
			decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "approval  denied", "tell a succeeded",
				"tell b succeeded",
			},
		},
		"where the phase lets nothing run nobody is asked": {
			stepsYAML: approval,
			decisionsByAction: map[string]activities.GuardDecision{
				"scale": {Verdict: activities.VerdictPropose, Reason: "phase 2"},
			},
			approverVote: voteYes(),
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded",
				"approval  proposed (would request approval: phase 2)", "scale a proposed", "scale b proposed",
			},
			check: func(t *testing.T, w *fakeBackend) { require.Zero(t, w.countCalls("scale a")) },
		},
		"a scope that wants its approvers asked asks them": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			decisionsByAction: map[string]activities.GuardDecision{"isolate": {
				Verdict:   activities.VerdictAskApproval,
				Approvers: playbooks.Approvers{Groups: []string{"people"}, Quorum: 1, Timeout: 5 * time.Second},
			}},
			approverVote: voteYes(),
			wantLines:    []string{"snapshot a succeeded", "snapshot b succeeded", "isolate a changed (approved by "},
		},
		"a scope without approvers denies": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			decisionsByAction: map[string]activities.GuardDecision{"isolate": {
				Verdict:   activities.VerdictAskApproval,
				Approvers: playbooks.Approvers{Quorum: 1, Timeout: 5 * time.Second},
			}},
			wantLines: []string{"snapshot a succeeded", "snapshot b succeeded", "isolate a denied (the scope has no approvers"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, report := runScenario(t, s)
			got := make([]string, 0, len(report.Steps))
			names := map[string]string{"pod:" + t.Name() + "/a": "a", "pod:" + t.Name() + "/b": "b"}
			for _, step := range report.Steps {
				got = append(got, strings.TrimSuffix(fmt.Sprintf("%s %s %s (%s)", step.Action, names[step.Target], step.Outcome,
					step.Reason), " ()"))
			}
			compareLines(t, s.wantLines, got)
			if s.check != nil {
				s.check(t, w)
			}
		})
	}
}

// An approved plan has changed before its effect: approval is requested again, with the differences.
func TestChangedPlanIsRequestedAgain(t *testing.T) {
	for name, steps := range map[string]string{
		"approval of a step": "\n  - evidence: snapshot\n  - approval: sure\n    from: { groups: [people] }\n    timeout: 5s\n" +
			"    on_timeout: deny\n    steps:\n" +
			"      - contain: scale\n        for: 1h\n        target: incident.targets[0]\n",
		"approval of the scope": "\n  - evidence: snapshot\n  - contain: scale\n    for: 1h\n    target: incident.targets[0]\n",
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); testChangedPlan(t, steps) })
	}
}

func testChangedPlan(t *testing.T, steps string) {
	t.Helper()
	_, report := runScenario(t, testScenario{
		changePlans: true,
		decisionsByAction: map[string]activities.GuardDecision{"scale": {
			Verdict:   activities.VerdictAskApproval,
			Approvers: playbooks.Approvers{Groups: []string{"people"}, Quorum: 1, Timeout: 5 * time.Second},
		}},
		approverVote: voteYes(),
		stepsYAML:    steps,
		afterStart: func(t *testing.T, c client.Client, id string, _ func(func())) {
			var again playbook.ApprovalRequest
			require.Eventually(t, func() bool {
				var open []playbook.ApprovalRequest
				value, err := c.QueryWorkflow(t.Context(), id, "", workflows.QueryPendingApprovals)
				if err != nil || value.Get(&open) != nil || len(open) != 1 || open[0].ReplacesHash == "" {
					return false
				}
				again = open[0]
				return true
			}, 20*time.Second, 20*time.Millisecond, "it is asked again")
			require.Equal(t, []string{"no longer planned: scale a", "now: scale a and its neighbors"},
				again.ChangesSinceReplaced)
			require.NotEqual(t, again.ReplacesHash, again.PlansHash)
			// The old yes is worth nothing for the new plan.
			stale, err := sharedTemporal.key.Sign(attestation.PayloadTypeVote, attestation.Vote{
				IncidentID: again.IncidentID,
				WorkflowID: again.WorkflowID, Step: again.ID, PlanHash: again.ReplacesHash, Person: "bob",
				Groups: []string{"people"}, Approved: true, DecidedAt: time.Now(),
			})
			require.NoError(t, err)
			require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalVote, stale))
			answerWhenAsked(t, c, id, true)
		},
	})
	last := report.Steps[len(report.Steps)-1]
	require.Equal(t, playbooks.OutcomeChanged, last.Outcome, report.Steps)
}

// waitForApprovalRequest waits for the run's open question.
func waitForApprovalRequest(t *testing.T, c client.Client, id string) playbook.ApprovalRequest {
	t.Helper()
	var open []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		value, err := c.QueryWorkflow(t.Context(), id, "", workflows.QueryPendingApprovals)
		return err == nil && value.Get(&open) == nil && len(open) == 1
	}, 20*time.Second, 20*time.Millisecond, "it is asked")
	return open[0]
}

// sendVote signs and sends a vote as the gateway does.
func sendVote(t *testing.T, c client.Client, p playbook.ApprovalRequest, person string, approve bool) {
	t.Helper()
	signed, err := sharedTemporal.key.Sign(attestation.PayloadTypeVote, attestation.Vote{
		IncidentID: p.IncidentID,
		WorkflowID: p.WorkflowID, Step: p.ID, PlanHash: p.PlansHash, Person: person, Groups: []string{"people"},
		Approved: approve, DecidedAt: time.Now(),
	})
	require.NoError(t, err)
	require.NoError(t, c.SignalWorkflow(t.Context(), p.WorkflowID, "", workflows.SignalVote, signed))
}

func approvalScenario(steps string) testScenario {
	return testScenario{
		decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
		stepsYAML: "\n  - evidence: snapshot\n  - approval: sure\n    from: { groups: [people] }\n    timeout: 5s\n    on_timeout: deny\n    steps:\n" +
			"      - contain: scale\n        for: 1h\n        target: incident.targets[0]\n" + steps,
	}
}

// A vote before the deadline counts, even if no worker could count it before the deadline.
func TestVoteBeforeDeadlineIsCountedAfterOutage(t *testing.T) {
	t.Parallel()
	s := approvalScenario("")
	s.afterStart = func(t *testing.T, c client.Client, id string, away func(func())) {
		q := waitForApprovalRequest(t, c, id)
		away(func() {
			sendVote(t, c, q, "alice", true)
			require.Less(t, time.Now(), q.Deadline)
			require.Eventually(t, func() bool { return time.Now().After(q.Deadline.Add(time.Second)) }, 20*time.Second,
				50*time.Millisecond)
		})
	}
	_, report := runScenario(t, s)
	require.Equal(t, playbooks.OutcomeChanged, report.Steps[len(report.Steps)-1].Outcome, report.Steps)
}

// A person who votes repeatedly does not crowd out the votes of others.
func TestRepeatedVotesDoNotCrowdOutOthers(t *testing.T) {
	t.Parallel()
	s := approvalScenario("")
	s.quorum = 2
	s.afterStart = func(t *testing.T, c client.Client, id string, _ func(func())) {
		q := waitForApprovalRequest(t, c, id)
		for range 120 {
			sendVote(t, c, q, "alice", true)
		}
		sendVote(t, c, q, "bob", false)
	}
	_, report := runScenario(t, s)
	last := report.Steps[len(report.Steps)-1]
	require.Equal(t, playbooks.OutcomeDenied, last.Outcome, report.Steps)
	require.Contains(t, last.Reason, "bob denied it")
}

// A disposition as false positive suspends running playbooks: they request no further approvals and contain nothing.
func TestFalsePositiveSuspendsRunningPlaybook(t *testing.T) {
	t.Parallel()
	s := approvalScenario("  - contain: isolate\n    for: 1h\n")
	s.afterStart = func(t *testing.T, c client.Client, id string, _ func(func())) {
		q := waitForApprovalRequest(t, c, id)
		require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalSuspend,
			"bob says that it is a false positive"))
		sendVote(t, c, q, "alice", true)
	}
	w, report := runScenario(t, s)
	require.Zero(t, w.countCalls("scale a")+w.countCalls("isolate a")+w.countCalls("isolate b"))
	for _, step := range report.Steps[2:] {
		require.Equal(t, playbooks.OutcomeDenied, step.Outcome, report.Steps)
		require.Contains(t, step.Reason, "false positive")
	}
}
