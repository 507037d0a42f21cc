package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/worker/api"
	"stanch/worker/decisions"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

func TestRequestSucceedsOnlyIfTargetIsContained(t *testing.T) {
	answer := decisions.ContainResponse{
		IncidentID: "INC-1", Playbook: "contain-pod-isolate-1h",
		Targets: []decisions.ContainTarget{{Target: playbooks.Target{
			Kind: playbooks.TargetPod, Namespace: "shop", Name: "web",
			UID: "u",
		}, RequestID: "request/1"}},
	}
	step := func(outcome playbooks.Outcome, lease string) []playbooks.StepReport {
		return []playbooks.StepReport{{Action: "pod.isolate", Outcome: outcome, Reason: "because", LeaseID: lease}}
	}
	ended := time.Now()
	for name, c := range map[string]struct {
		run                playbooks.PlaybookRun
		pending            []playbook.ApprovalRequest
		settled, contained bool
		want               []string
	}{
		"not started": {
			run:  playbooks.PlaybookRun{RequestID: "request/other", Ended: ended},
			want: []string{"not contained yet; `stanch incidents INC-1`"},
		},
		"contained": {
			run:     playbooks.PlaybookRun{RequestID: "request/1", Ended: ended, Steps: step(playbooks.OutcomeChanged, "LSE-1")},
			settled: true, contained: true,
			want: []string{
				"pod shop/web: contained, lease LSE-1", "warning: another is cut off too",
				"`stanch release LSE-1`", "`stanch extend LSE-1 --for 1h`",
			},
		},
		"refused": {
			run: playbooks.PlaybookRun{
				RequestID: "request/1", Ended: ended,
				Outcome: playbooks.OutcomeRefused, Steps: step(playbooks.OutcomeRefused, ""),
			}, settled: true,
			want: []string{"pod.isolate refused: because", "not contained: refused"},
		},
		"refused lease": {
			run: playbooks.PlaybookRun{
				RequestID: "request/1", Ended: ended,
				Outcome: playbooks.OutcomeRefused, Steps: step(playbooks.OutcomeRefused, "LSE-1"),
			}, settled: true,
			want: []string{"not contained: refused"},
		},
		"proposed": {
			run: playbooks.PlaybookRun{
				RequestID: "request/1", Ended: ended,
				Outcome: playbooks.OutcomeProposed, Steps: step(playbooks.OutcomeProposed, ""),
			}, settled: true,
			want: []string{"not contained: proposed, not run"},
		},
		"waiting for approval": {
			run: playbooks.PlaybookRun{RequestID: "request/1", WorkflowID: "playbook/1"},
			pending: []playbook.ApprovalRequest{{
				ID: "contain#1", WorkflowID: "playbook/1", Title: "pod.isolate on pod shop/web",
				Approvers: playbooks.Approvers{Groups: []string{"sre"}}, Deadline: ended,
			}}, settled: true,
			want: []string{
				"not contained yet: waiting for approval by sre until",
				"approve it with `stanch approve INC-1 'contain#1'`",
			},
		},
		"waiting for a quorum": {
			run: playbooks.PlaybookRun{RequestID: "request/1", WorkflowID: "playbook/1"},
			pending: []playbook.ApprovalRequest{{
				ID: "contain#1", WorkflowID: "playbook/1", Title: "pod.isolate on pod shop/web",
				Approvers: playbooks.Approvers{Groups: []string{"sre"}, Quorum: 2}, Deadline: ended,
			}}, settled: true,
			want: []string{
				"not contained yet: waiting for approval by 2 of sre until", "warning: only 1 of the 2",
				"withdraw it with `stanch deny`",
			},
		},
	} {
		answer.Containments = []string{"pod.isolate"}
		results, settled := collectResults(answer,
			api.IncidentView{OpenApprovals: []api.OpenApproval{{
				Name:     "contain#1",
				Warnings: []string{"only 1 of the 2"},
			}}, Incident: playbooks.Incident{
				Playbooks: []playbooks.PlaybookRun{c.run},
				Leases:    []playbooks.LeaseReport{{ID: "LSE-1", Warnings: []string{"another is cut off too"}}},
			}}, c.pending)
		require.Equal(t, c.settled, settled, name)
		require.Equal(t, c.contained, results[0].Contained, name)
		var out bytes.Buffer
		printResults(&out, results)
		for _, want := range c.want {
			require.Contains(t, out.String(), want, name)
		}
	}
}

// One missing source of evidence does not fail a playbook that has no containments.
func TestPlaybookWithoutContainmentsSucceedsIfEvidenceIsCaptured(t *testing.T) {
	step := func(action string, o playbooks.Outcome) playbooks.StepReport {
		return playbooks.StepReport{Action: action, Verb: playbooks.VerbEvidence, Outcome: o}
	}
	for name, c := range map[string]struct {
		steps []playbooks.StepReport
		done  bool
		want  string
	}{
		"captured": {[]playbooks.StepReport{
			step("process.snapshot", playbooks.OutcomeSucceeded),
			step("pod.logs", playbooks.OutcomeRefused),
		}, true, "evidence captured; the playbook has no containments"},
		"none captured": {[]playbooks.StepReport{
			step("process.snapshot", playbooks.OutcomeFailed),
			step("pod.logs", playbooks.OutcomeRefused),
		}, false, "pod shop/web: no evidence captured"},
		"no evidence": {[]playbooks.StepReport{{
			Action: "slack", Verb: playbooks.VerbNotify,
			Outcome: playbooks.OutcomeRefused,
		}}, false, "not contained: refused"},
	} {
		answer := decisions.ContainResponse{
			IncidentID: "INC-1",
			Targets: []decisions.ContainTarget{{Target: playbooks.Target{
				Kind: playbooks.TargetPod, Namespace: "shop", Name: "web",
				UID: "u",
			}, RequestID: "request/1"}},
		}
		run := playbooks.PlaybookRun{
			RequestID: "request/1", Ended: time.Now(), Outcome: playbooks.OutcomeRefused,
			Steps: c.steps,
		}
		results, settled := collectResults(answer,
			api.IncidentView{Incident: playbooks.Incident{Playbooks: []playbooks.PlaybookRun{run}}}, nil)
		require.True(t, settled, name)
		require.Equal(t, c.done, results[0].Done, name)
		var out bytes.Buffer
		printResults(&out, results)
		require.Contains(t, out.String(), c.want, name)
		answer.Containments = []string{"pod.isolate"}
		results, _ = collectResults(
			answer,
			api.IncidentView{Incident: playbooks.Incident{Playbooks: []playbooks.PlaybookRun{run}}},
			nil,
		)
		require.False(t, results[0].Done, "%s: a playbook with containments is not done", name)
	}
}

func TestDryRunFailsIfNothingWouldRun(t *testing.T) {
	for verdict, want := range map[activities.Verdict]string{
		activities.VerdictRun: "would run: why", activities.VerdictPropose: "would only be proposed: why",
		activities.VerdictAskApproval: "would ask nobody (the scope has no approvers) for approval: why",
		activities.VerdictRefuse:      "would be refused: why",
	} {
		var out bytes.Buffer
		err := printPlans(&out, decisions.ContainResponse{
			Containments: []string{"pod.isolate"},
			Targets: []decisions.ContainTarget{{Plans: []decisions.ContainPlan{
				{
					Action: "pod.isolate", Plan: activities.Plan{
						Changes: []string{"hold it"}, Duration: 90 * time.Minute,
						AlreadyHeld: true, HeldByLease: "LSE-9", HeldUntil: time.Now(),
					},
					Decision: activities.GuardDecision{Verdict: verdict, Reason: "why"},
				},
				{Action: "workload.scale", UnplannableReason: "its parameters depend"},
			}}},
		})
		require.Equal(t, verdict == activities.VerdictRun, err == nil, verdict)
		for _, part := range []string{
			"pod.isolate: " + want, "already contained by lease LSE-9, until ",
			"would hold it", "would undo it after 1h30m", "workload.scale: not planned: its parameters depend",
		} {
			require.Contains(t, out.String(), part, verdict)
		}
	}
}

func TestTriageResultListsReleasedLeasesAndDeniedQuestions(t *testing.T) {
	in := playbooks.Incident{Targets: []playbooks.Target{{
		Kind: playbooks.TargetPod, Namespace: "shop", Name: "web",
		UID: "u",
	}}}
	var out bytes.Buffer
	printTriageResult(&out, "INC-1", incident.TriageFalsePositive, decisions.TriageResult{
		Incident:       in,
		ReleasedLeases: []playbooks.LeaseReport{{ID: "LSE-1", Action: "pod.isolate", Target: "pod:u"}},
		DeniedRequests: []string{"stop it for 1h"},
	})
	require.Equal(
		t,
		"INC-1: resolved as false-positive\n  released: pod.isolate on pod shop/web, lease LSE-1\n  denied: stop it for 1h\n",
		out.String(),
	)
	out.Reset()
	printTriageResult(&out, "INC-1", incident.TriageFalsePositive, decisions.TriageResult{})
	require.Contains(t, out.String(), "there were no active leases and no pending approval requests")
	out.Reset()
	printTriageResult(&out, "INC-1", incident.TriageTruePositive, decisions.TriageResult{})
	require.Equal(t, "INC-1: resolved as true-positive\n", out.String())
	out.Reset()
	printTriageResult(&out, "INC-1", incident.TriageAssigned, decisions.TriageResult{})
	require.Equal(t, "INC-1: assigned to you\n", out.String())
}
