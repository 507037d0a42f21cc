package corpus

import (
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
)

// The requests of the shipped playbooks to actions, and the results.

func (s *scenarioBuilder) startPlaybook(name string) {
	s.elapsedMS = max(s.elapsedMS, 5)
	s.rec.Playbooks = append(s.rec.Playbooks, recording.Playbook{
		Name: name, File: "library/" + name + ".yaml", SourceHash: randomHex(s.random, 64),
		WorkflowID: fmt.Sprintf("playbook/%s/%d/%s", s.rec.Incident.ID, 1+len(s.rec.Playbooks), name), OffsetMS: s.elapsedMS,
	})
}

func (s *scenarioBuilder) currentRun() string {
	return s.rec.Playbooks[len(s.rec.Playbooks)-1].WorkflowID
}

// addWorkloadResult adds the context of a pod.
func (s *scenarioBuilder) addWorkloadResult(p *podInfo) {
	out := activities.WorkloadContext{
		Owner: activities.Owner{Kind: s.kind, Name: s.name, UID: s.workloadUID}, Replicas: s.otherPods + len(s.pods),
		SameDigestPodCount: s.otherPods, SameDigestPodNames: []string{}, SameNodePodCount: s.random.IntN(20),
		ServiceAccount: s.name, DangerousPermissions: []string{}, Image: s.image, ImageDigest: s.digest,
		Labels: map[string]string{"app": s.name}, Changes: []playbooks.RecentChange{}, Missing: []string{},
	}
	for i := range s.otherPods {
		out.SameDigestPodNames = append(out.SameDigestPodNames, fmt.Sprintf("%s/%s-sibling-%d on node-%d", s.namespace,
			s.name, i, i))
	}
	if s.random.IntN(4) == 0 {
		out.DangerousPermissions = []string{"read secrets of its namespace"}
	}
	if s.random.IntN(3) == 0 {
		out.Changes = []playbooks.RecentChange{
			{
				ChangedAt:   s.rec.Incident.Opened.Add(-time.Duration(s.random.IntN(3000)) * time.Second),
				Description: "rollout of " + s.image,
			},
		}
	}
	s.addActionResult(recording.ActionResult{
		Operation: recording.OperationObserve, Action: "workload",
		Target: p.targetRef(), Outcome: playbooks.OutcomeSucceeded, Outputs: mustMarshal(out),
	})
}

func (s *scenarioBuilder) addSnapshotResult(p *podInfo) {
	a := recording.ActionResult{
		Operation: recording.OperationObserve, Action: "process.snapshot", Target: p.targetRef(),
		Params: mustMarshal(struct{}{}), Outcome: playbooks.OutcomeSucceeded,
		Artifacts: []recording.Artifact{newArtifact(s.random, "processes.json")},
	}
	if s.faultMode == faultEvidence {
		a.Outcome, a.Artifacts, a.FailureReason = playbooks.OutcomeFailed, nil, "process.snapshot of "+s.describePod(p)+
			": the node did not answer within 10s"
	}
	s.addActionResult(a)
	s.addStepOutcome(s.currentPlaybook(), "steps[0]", a.Action, a.Target, a.Outcome, a.FailureReason)
}

func (s *scenarioBuilder) currentPlaybook() string {
	return s.rec.Playbooks[len(s.rec.Playbooks)-1].Name
}

func (s *scenarioBuilder) addLogsResult(p *podInfo, tail int, previous bool) {
	s.addWorkloadResult(p)
	s.addStepOutcome(s.currentPlaybook(), "steps[2].parallel[0]", "workload", p.targetRef(), playbooks.OutcomeSucceeded,
		"")
	params := map[string]any{"previous": previous, "tail": tail}
	if s.random.IntN(12) == 0 {
		const gone = "the pod is gone"
		s.addActionResult(recording.ActionResult{
			Operation: recording.OperationObserve, Action: "pod.logs",
			Target: p.targetRef(), Params: mustMarshal(params), RefusalReason: gone, Outcome: playbooks.OutcomeRefused,
			Reason: gone,
		})
	} else {
		s.addActionResult(recording.ActionResult{
			Operation: recording.OperationObserve, Action: "pod.logs",
			Target: p.targetRef(), Params: mustMarshal(params), Outcome: playbooks.OutcomeSucceeded,
			Artifacts: []recording.Artifact{newArtifact(s.random, "app.log")},
		})
	}
	s.addActionResult(recording.ActionResult{
		Operation: recording.OperationObserve, Action: "pod.manifest",
		Target: p.targetRef(), Params: mustMarshal(struct{}{}), Outcome: playbooks.OutcomeSucceeded,
		Artifacts: []recording.Artifact{newArtifact(s.random, "pod.yaml")},
	})
}

func (s *scenarioBuilder) addNotification() {
	s.addActionResult(recording.ActionResult{
		Operation: recording.OperationObserve, Action: "log", Target: "incident:" +
			s.rec.Incident.ID, Params: mustMarshal(map[string]string{"text": s.rec.Incident.ID}),
		Outcome: playbooks.OutcomeSucceeded,
	})
}

// addIsolation adds a plan, its decision, and whether the containment was applied.
func (s *scenarioBuilder) addIsolation(p *podInfo, held time.Duration, confidence float64) {
	const action = "pod.isolate"
	target, params := p.targetRef(), mustMarshal(struct{}{})
	plan := recording.ActionResult{
		Operation: recording.OperationPlan, Action: action, Target: target, Params: params,
		LeaseDurationMS: held.Milliseconds(),
	}
	if p.hostNetwork {
		plan.RefusalReason = fmt.Sprintf("pod %s/%s has its node's network: isolating it would isolate the node", s.namespace,
			p.name)
		plan.GuardDecision = &recording.GuardDecision{Verdict: "refuse", Guard: "action", Reason: plan.RefusalReason}
		s.addActionResult(plan)
		s.addStepOutcome(s.currentPlaybook(), "isolate", action, target, playbooks.OutcomeRefused, plan.RefusalReason)
		s.addFreeze(p, confidence)
		return
	}
	plan.Changes = []string{
		"block all egress from " + s.describePod(p) + " on node " + p.node,
		"create networkpolicy stanch-" + p.uid[:8] + " that denies egress and ingress",
	}
	plan.PriorState = mustMarshal(map[string]bool{"uses_node_lock": true, "uses_network_policy": true})
	plan.GuardDecision = s.newDecision(confidence)
	s.addActionResult(plan)
	s.addEffect(plan, "isolate", held)
}

// addFreeze adds the fallback where isolation is not possible.
func (s *scenarioBuilder) addFreeze(p *podInfo, confidence float64) {
	plan := recording.ActionResult{
		Operation: recording.OperationPlan, Action: "pod.freeze", Target: p.targetRef(), Params: mustMarshal(struct{}{}),
		LeaseDurationMS: 60_000, Changes: []string{"freeze the processes of " + s.describePod(p)},
		PriorState:    mustMarshal(map[string]bool{"frozen": false}),
		GuardDecision: s.newDecision(confidence),
	}
	s.addActionResult(plan)
	s.addEffect(plan, "steps[1].on_failure[0]", time.Minute)
}

func (s *scenarioBuilder) newDecision(confidence float64) *recording.GuardDecision {
	d := &recording.GuardDecision{Guard: "phase", Phase: s.phase, ConfigHash: "0123456789ab"}
	switch {
	case s.phase < 2:
		d.Verdict, d.Reason = "propose", fmt.Sprintf("phase %d of scope %s does not allow a contain action", s.phase,
			s.namespace)
	case confidence < 0.8:
		d.Verdict, d.Reason = "ask", fmt.Sprintf("confidence %.2f is below the 0.80 that scope %s requires to run without approval",
			confidence, s.namespace)
		d.Approvers = recording.Approvers{
			Groups: []string{"responders"}, Quorum: 1,
			TimeoutMS: (15 * time.Minute).Milliseconds(),
		}
	default:
		d.Verdict, d.Reason = "run", fmt.Sprintf("phase %d, confidence %.2f from attested detections", s.phase, confidence)
	}
	return d
}

// addEffect adds the result of a plan.
func (s *scenarioBuilder) addEffect(plan recording.ActionResult, step string, held time.Duration) {
	done := func(o playbooks.Outcome, reason string) {
		s.addStepOutcome(s.currentPlaybook(), step, plan.Action, plan.Target, o, reason)
	}
	switch plan.GuardDecision.Verdict {
	case "propose":
		done(playbooks.OutcomeProposed, "would "+plan.Changes[0]+" ("+plan.GuardDecision.Reason+")")
		return
	case "ask":
		if yes, reason := s.addApproval(step, plan); !yes {
			done(playbooks.OutcomeDenied, reason)
			return
		}
	}
	apply := recording.ActionResult{
		Operation: recording.OperationApply, Action: plan.Action, Target: plan.Target,
		Params: plan.Params, Outcome: playbooks.OutcomeChanged, GuardDecision: plan.GuardDecision,
	}
	tries := 0
	switch s.faultMode {
	case faultFirstApply:
		tries = 1
	case faultEveryApply:
		tries = 4
	default: // the first one responds
	}
	for range tries {
		s.addActionResult(recording.ActionResult{
			Operation: recording.OperationApply, Action: plan.Action,
			Target: plan.Target, Params: plan.Params, FailureReason: "the node did not answer",
		})
	}
	if s.faultMode == faultEveryApply {
		done(playbooks.OutcomeFailed, "the node did not answer")
		return
	}
	apply.AppliedAfterMS = s.elapsedMS + 30
	s.addActionResult(apply)
	done(playbooks.OutcomeChanged, "")
	if s.faultMode == faultDrift {
		s.addActionResult(recording.ActionResult{
			Operation: recording.OperationVerify, Action: plan.Action,
			Target: plan.Target, VerifyDetail: "the network policy was removed",
		})
	}
	began := s.elapsedMS
	s.elapsedMS += held.Milliseconds()
	undo := recording.ActionResult{
		Operation: recording.OperationUndo, Action: plan.Action, Target: plan.Target,
		Params: plan.Params, Undone: true,
	}
	if s.faultMode == faultDrift && s.random.IntN(2) == 0 {
		undo.Undone, undo.Drift = false, "the network policy was changed by another writer"
	}
	s.addActionResult(undo)
	s.rec.Leases = append(s.rec.Leases, recording.LeaseReport{OffsetMS: s.elapsedMS, Report: playbooks.LeaseReport{
		ID: "LSE-" + randomHex(s.random, 20), Action: plan.Action, Target: plan.Target, Facet: "network", State: "ended",
		Outcome: playbooks.OutcomeChanged, Verified: true, Undone: undo.Undone,
		At:        s.rec.Incident.Opened.Add(time.Duration(s.elapsedMS) * time.Millisecond),
		AppliedAt: s.rec.Incident.Opened.Add(time.Duration(apply.AppliedAfterMS) * time.Millisecond),
	}})
	s.elapsedMS = began // the playbook continued meanwhile
}

// addApproval adds an approval request: two of three people respond, most of them with an approval.
func (s *scenarioBuilder) addApproval(step string, plan recording.ActionResult) (bool, string) {
	id := fmt.Sprintf("%s#%d", step, 1+len(s.rec.ApprovalRequests))
	asked := s.elapsedMS
	s.rec.ApprovalRequests = append(s.rec.ApprovalRequests, recording.ApprovalRequest{
		OffsetMS: asked, WorkflowID: s.currentRun(), Step: id, Approvers: plan.GuardDecision.Approvers,
		DeadlineAfterMS: asked + plan.GuardDecision.Approvers.TimeoutMS,
		Actions:         []string{plan.Action + " on " + plan.Target},
	})
	if s.random.IntN(3) == 0 {
		s.elapsedMS += plan.GuardDecision.Approvers.TimeoutMS
		return false, "no approver voted within 15m"
	}
	s.elapsedMS += 20_000 + s.random.Int64N(600_000)
	v := recording.Vote{
		OffsetMS: s.elapsedMS, WorkflowID: s.currentRun(), Step: id, Person: randomElement(s.random,
			samplePeople), AuthenticatedBy: "uid 1000 on the local socket", Groups: []string{"responders"},
		Approved: s.random.IntN(4) > 0,
	}
	s.rec.Votes = append(s.rec.Votes, v)
	if !v.Approved {
		return false, v.Person + " (uid 1000 on the local socket) denied it"
	}
	return true, ""
}

// combinedConfidence returns the confidence of the detections as the engine correlates them.
func (s *scenarioBuilder) combinedConfidence() float64 {
	var signals []playbooks.CorrelationInput
	for i, d := range s.rec.Detections {
		if i < 100 { // further detections of the same objective
			signals = append(signals, playbooks.CorrelationInput{
				Rule: d.Detection.Rule, Objective: d.Detection.Objective,
				Confidence: d.Detection.Confidence, Severity: d.Detection.Severity,
			})
		}
	}
	return playbooks.Correlate(signals).Confidence
}

// The shipped playbooks, as far as recordings contain them.

func (s *scenarioBuilder) respondToShell(p *podInfo) {
	s.startPlaybook("shell-in-production")
	s.addWorkloadResult(p)
	s.addSnapshotResult(p)
	s.addIsolation(p, 30*time.Minute, s.combinedConfidence())
	s.addLogsResult(p, 500, false)
	s.addNotification()
}

func (s *scenarioBuilder) respondByIsolating(p *podInfo) {
	s.startPlaybook("reverse-shell")
	s.addWorkloadResult(p)
	s.addSnapshotResult(p)
	s.addIsolation(p, 2*time.Hour, s.combinedConfidence())
	s.addLogsResult(p, 2000, true)
	s.addNotification()
}

func (s *scenarioBuilder) respondToMining(pods ...*podInfo) {
	s.startPlaybook("cryptominer")
	s.addWorkloadResult(pods[0])
	for _, p := range pods {
		s.addSnapshotResult(p)
	}
	for _, p := range pods {
		s.addIsolation(p, 2*time.Hour, s.combinedConfidence())
	}
	for _, p := range pods {
		s.addLogsResult(p, 2000, true)
	}
	if s.otherPods > 0 {
		s.addScaleDown()
	}
	s.addNotification()
}

// addScaleDown adds a plan to scale the workload to zero, with its own approval.
func (s *scenarioBuilder) addScaleDown() {
	plan := recording.ActionResult{
		Operation: recording.OperationPlan, Action: "workload.scale", Target: "workload:" + s.workloadUID,
		Params: mustMarshal(map[string]int{"replicas": 0}), LeaseDurationMS: (4 * time.Hour).Milliseconds(),
		Changes:    []string{fmt.Sprintf("scale %s/%s/%s from %d to 0", s.namespace, s.kind, s.name, s.otherPods+1)},
		PriorState: mustMarshal(map[string]int{"replicas": s.otherPods + 1}),
		GuardDecision: &recording.GuardDecision{
			Verdict: "ask", Guard: "phase", Reason: "this action requires approval",
			Phase: s.phase, Approvers: recording.Approvers{
				Groups: []string{"responders"}, Quorum: 1,
				TimeoutMS: (15 * time.Minute).Milliseconds(),
			},
		},
	}
	if s.phase < 3 {
		plan.GuardDecision = &recording.GuardDecision{
			Verdict: "propose", Guard: "phase",
			Reason: fmt.Sprintf("phase %d of scope %s does not allow a disrupt action", s.phase, s.namespace), Phase: s.phase,
		}
	}
	s.addActionResult(plan)
	trouble := s.faultMode
	s.faultMode = faultNone
	s.addEffect(plan, "steps[3]", 4*time.Hour)
	s.faultMode = trouble
}

func (s *scenarioBuilder) respondToStolenCredentials(p *podInfo) {
	s.startPlaybook("credentials")
	s.addWorkloadResult(p)
	s.addSnapshotResult(p)
	s.addIsolation(p, 2*time.Hour, s.combinedConfidence())
	s.addLogsResult(p, 2000, false)
	const none = "no AWS account is configured: `aws:` in stanch.yaml"
	s.addActionResult(recording.ActionResult{
		Operation: recording.OperationObserve, Action: "aws.identity",
		Target: p.targetRef(), Params: mustMarshal(struct{}{}), RefusalReason: none, Outcome: playbooks.OutcomeRefused,
		Reason: none,
	})
	s.addNotification()
}
