package corpus

import (
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
)

// What the shipped playbooks asked of actions, and what those answered.

func (s *story) play(name string) {
	s.at = max(s.at, 5)
	s.rec.Playbooks = append(s.rec.Playbooks, recording.Playbook{
		Name: name, File: "library/" + name + ".yaml", SourceHash: hexOf(s.random, 64), WorkflowID: fmt.Sprintf("playbook/%s/%d/%s", s.rec.Incident.ID, 1+len(s.rec.Playbooks), name), OffsetMS: s.at,
	})
}

func (s *story) run() string { return s.rec.Playbooks[len(s.rec.Playbooks)-1].WorkflowID }

// workload is what the context of a pod was.
func (s *story) workload(p *pod) {
	out := activities.WorkloadContext{
		Owner: activities.Owner{Kind: s.kind, Name: s.name, UID: s.workloadUID}, Replicas: s.others + len(s.pods), SameDigestPodCount: s.others, SameDigestPodNames: []string{}, SameNodePodCount: s.random.IntN(20),
		ServiceAccount: s.name, DangerousPermissions: []string{}, Image: s.image, ImageDigest: s.digest, Labels: map[string]string{"app": s.name}, Changes: []playbooks.RecentChange{}, Missing: []string{},
	}
	for i := range s.others {
		out.SameDigestPodNames = append(out.SameDigestPodNames, fmt.Sprintf("%s/%s-sibling-%d on node-%d", s.namespace, s.name, i, i))
	}
	if s.random.IntN(4) == 0 {
		out.DangerousPermissions = []string{"read secrets of its namespace"}
	}
	if s.random.IntN(3) == 0 {
		out.Changes = []playbooks.RecentChange{{ChangedAt: s.rec.Incident.Opened.Add(-time.Duration(s.random.IntN(3000)) * time.Second), Description: "rollout of " + s.image}}
	}
	s.answer(recording.ActionResult{Operation: recording.OperationObserve, Action: "workload", Target: p.target(), Outcome: playbooks.OutcomeChanged, Outputs: raw(out)})
}

func (s *story) snapshot(p *pod) {
	a := recording.ActionResult{Operation: recording.OperationObserve, Action: "process.snapshot", Target: p.target(), Params: raw(struct{}{}), Outcome: playbooks.OutcomeChanged, Artifacts: []recording.Artifact{piece(s.random, "processes.json")}}
	if s.trouble == troubleEvidence {
		a.Outcome, a.Artifacts, a.FailureReason = playbooks.OutcomeFailed, nil, "process.snapshot of "+s.said(p)+": the node did not answer within 10s"
	}
	s.answer(a)
	s.step(s.playbook(), "steps[0]", a.Action, a.Target, a.Outcome, a.FailureReason)
}

func (s *story) playbook() string { return s.rec.Playbooks[len(s.rec.Playbooks)-1].Name }

func (s *story) after(p *pod, tail int, previous bool) {
	s.workload(p)
	s.step(s.playbook(), "steps[2].parallel[0]", "workload", p.target(), playbooks.OutcomeChanged, "")
	params := map[string]any{"previous": previous, "tail": tail}
	if s.random.IntN(12) == 0 {
		const gone = "the pod is gone"
		s.answer(recording.ActionResult{Operation: recording.OperationObserve, Action: "pod.logs", Target: p.target(), Params: raw(params), RefusalReason: gone, Outcome: playbooks.OutcomeRefused, Reason: gone})
	} else {
		s.answer(recording.ActionResult{Operation: recording.OperationObserve, Action: "pod.logs", Target: p.target(), Params: raw(params), Outcome: playbooks.OutcomeChanged, Artifacts: []recording.Artifact{piece(s.random, "app.log")}})
	}
	s.answer(recording.ActionResult{Operation: recording.OperationObserve, Action: "pod.manifest", Target: p.target(), Params: raw(struct{}{}), Outcome: playbooks.OutcomeChanged, Artifacts: []recording.Artifact{piece(s.random, "pod.yaml")}})
}

func (s *story) tell() {
	s.answer(recording.ActionResult{Operation: recording.OperationObserve, Action: "log", Target: "incident:" + s.rec.Incident.ID, Params: raw(map[string]string{"text": s.rec.Incident.ID}), Outcome: playbooks.OutcomeChanged})
}

// isolate plans, is decided about, and holds or does not.
func (s *story) isolate(p *pod, held time.Duration, confidence float64) {
	const action = "pod.isolate"
	target, params := p.target(), raw(struct{}{})
	plan := recording.ActionResult{Operation: recording.OperationPlan, Action: action, Target: target, Params: params, LeaseDurationMS: held.Milliseconds()}
	if p.hostNetwork {
		plan.RefusalReason = fmt.Sprintf("pod %s/%s has its node's network: isolating it would isolate the node", s.namespace, p.name)
		plan.GuardDecision = &recording.GuardDecision{Verdict: "refuse", Guard: "action", Reason: plan.RefusalReason}
		s.answer(plan)
		s.step(s.playbook(), "isolate", action, target, playbooks.OutcomeRefused, plan.RefusalReason)
		s.freeze(p, confidence)
		return
	}
	plan.Changes = []string{"hold everything that " + s.said(p) + " sends, on node " + p.node, "create networkpolicy stanch-" + p.uid[:8] + " that denies egress and ingress"}
	plan.PriorState = raw(map[string]bool{"lock": true, "policy": true})
	plan.GuardDecision = s.decide(confidence)
	s.answer(plan)
	s.effect(plan, "isolate", held)
}

// freeze is what is tried where isolation is not possible.
func (s *story) freeze(p *pod, confidence float64) {
	plan := recording.ActionResult{
		Operation: recording.OperationPlan, Action: "pod.freeze", Target: p.target(), Params: raw(struct{}{}), LeaseDurationMS: 60_000, Changes: []string{"freeze the processes of " + s.said(p)}, PriorState: raw(map[string]bool{"frozen": false}),
		GuardDecision: s.decide(confidence),
	}
	s.answer(plan)
	s.effect(plan, "steps[1].on_failure[0]", time.Minute)
}

func (s *story) decide(confidence float64) *recording.GuardDecision {
	d := &recording.GuardDecision{Guard: "phase", Phase: s.phase, ConfigHash: "0123456789ab"}
	switch {
	case s.phase < 2:
		d.Verdict, d.Reason = "propose", fmt.Sprintf("phase %d of scope %s does not let a contain action run", s.phase, s.namespace)
	case confidence < 0.8:
		d.Verdict, d.Reason = "ask", fmt.Sprintf("confidence %.2f is below the 0.80 that scope %s lets run by itself", confidence, s.namespace)
		d.Approvers = recording.Approvers{Groups: []string{"responders"}, Quorum: 1, TimeoutMS: (15 * time.Minute).Milliseconds()}
	default:
		d.Verdict, d.Reason = "run", fmt.Sprintf("phase %d, confidence %.2f from attested detections", s.phase, confidence)
	}
	return d
}

// effect is what became of a plan.
func (s *story) effect(plan recording.ActionResult, step string, held time.Duration) {
	done := func(o playbooks.Outcome, reason string) {
		s.step(s.playbook(), step, plan.Action, plan.Target, o, reason)
	}
	switch plan.GuardDecision.Verdict {
	case "propose":
		done(playbooks.OutcomeProposed, "would "+plan.Changes[0]+" ("+plan.GuardDecision.Reason+")")
		return
	case "ask":
		if yes, reason := s.ask(step, plan); !yes {
			done(playbooks.OutcomeDenied, reason)
			return
		}
	}
	apply := recording.ActionResult{Operation: recording.OperationApply, Action: plan.Action, Target: plan.Target, Params: plan.Params, Outcome: playbooks.OutcomeChanged, GuardDecision: plan.GuardDecision}
	tries := 0
	switch s.trouble {
	case troubleOnce:
		tries = 1
	case troubleAlways:
		tries = 4
	default: // the first one answers
	}
	for range tries {
		s.answer(recording.ActionResult{Operation: recording.OperationApply, Action: plan.Action, Target: plan.Target, Params: plan.Params, FailureReason: "the node did not answer"})
	}
	if s.trouble == troubleAlways {
		done(playbooks.OutcomeFailed, "the node did not answer")
		return
	}
	apply.AppliedAfterMS = s.at + 30
	s.answer(apply)
	done(playbooks.OutcomeChanged, "")
	if s.trouble == troubleDrift {
		s.answer(recording.ActionResult{Operation: recording.OperationVerify, Action: plan.Action, Target: plan.Target, VerifyDetail: "the network policy was taken away"})
	}
	began := s.at
	s.at += held.Milliseconds()
	undo := recording.ActionResult{Operation: recording.OperationUndo, Action: plan.Action, Target: plan.Target, Params: plan.Params, Undone: true}
	if s.trouble == troubleDrift && s.random.IntN(2) == 0 {
		undo.Undone, undo.Drift = false, "the network policy was changed by somebody else"
	}
	s.answer(undo)
	s.rec.Leases = append(s.rec.Leases, recording.LeaseReport{OffsetMS: s.at, Report: playbooks.LeaseReport{
		ID: "LSE-" + hexOf(s.random, 20), Action: plan.Action, Target: plan.Target, Facet: "network", State: "ended", Outcome: playbooks.OutcomeChanged, Verified: true, Undone: undo.Undone,
		At: s.rec.Incident.Opened.Add(time.Duration(s.at) * time.Millisecond), AppliedAt: s.rec.Incident.Opened.Add(time.Duration(apply.AppliedAfterMS) * time.Millisecond),
	}})
	s.at = began // the playbook went on meanwhile
}

// ask asks people: two of three answer, most of them yes.
func (s *story) ask(step string, plan recording.ActionResult) (bool, string) {
	id := fmt.Sprintf("%s#%d", step, 1+len(s.rec.ApprovalRequests))
	asked := s.at
	s.rec.ApprovalRequests = append(s.rec.ApprovalRequests, recording.ApprovalRequest{
		OffsetMS: asked, WorkflowID: s.run(), Step: id, Approvers: plan.GuardDecision.Approvers, DeadlineAfterMS: asked + plan.GuardDecision.Approvers.TimeoutMS, Actions: []string{plan.Action + " on " + plan.Target},
	})
	if s.random.IntN(3) == 0 {
		s.at += plan.GuardDecision.Approvers.TimeoutMS
		return false, "nobody with the right answered within 15m"
	}
	s.at += 20_000 + s.random.Int64N(600_000)
	v := recording.Vote{OffsetMS: s.at, WorkflowID: s.run(), Step: id, Person: pick(s.random, people), AuthenticatedBy: "uid 1000 on the local socket", Groups: []string{"responders"}, Approved: s.random.IntN(4) > 0}
	s.rec.Votes = append(s.rec.Votes, v)
	if !v.Approved {
		return false, v.Person + " (uid 1000 on the local socket) said no"
	}
	return true, ""
}

// confidence is what the detections say together, as the engine correlates them.
func (s *story) confidence() float64 {
	var signals []playbooks.CorrelationInput
	for i, d := range s.rec.Detections {
		if i < 100 { // more say the same
			signals = append(signals, playbooks.CorrelationInput{Rule: d.Detection.Rule, Objective: d.Detection.Objective, Confidence: d.Detection.Confidence, Severity: d.Detection.Severity})
		}
	}
	return playbooks.Correlate(signals).Confidence
}

// The shipped playbooks, as far as recordings show them.

func (s *story) shell(p *pod) {
	s.play("shell-in-production")
	s.workload(p)
	s.snapshot(p)
	s.isolate(p, 30*time.Minute, s.confidence())
	s.after(p, 500, false)
	s.tell()
}

func (s *story) cut(p *pod) {
	s.play("reverse-shell")
	s.workload(p)
	s.snapshot(p)
	s.isolate(p, 2*time.Hour, s.confidence())
	s.after(p, 2000, true)
	s.tell()
}

func (s *story) mined(pods ...*pod) {
	s.play("cryptominer")
	s.workload(pods[0])
	for _, p := range pods {
		s.snapshot(p)
	}
	for _, p := range pods {
		s.isolate(p, 2*time.Hour, s.confidence())
	}
	for _, p := range pods {
		s.after(p, 2000, true)
	}
	if s.others > 0 {
		s.scale()
	}
	s.tell()
}

// scale plans to stop the workload, behind an approval of its own.
func (s *story) scale() {
	plan := recording.ActionResult{
		Operation: recording.OperationPlan, Action: "workload.scale", Target: "workload:" + s.workloadUID, Params: raw(map[string]int{"replicas": 0}), LeaseDurationMS: (4 * time.Hour).Milliseconds(),
		Changes: []string{fmt.Sprintf("scale %s/%s/%s from %d to 0", s.namespace, s.kind, s.name, s.others+1)}, PriorState: raw(map[string]int{"replicas": s.others + 1}),
		GuardDecision: &recording.GuardDecision{Verdict: "ask", Guard: "phase", Reason: "it runs only with the grant of its approval", Phase: s.phase, Approvers: recording.Approvers{Groups: []string{"responders"}, Quorum: 1, TimeoutMS: (15 * time.Minute).Milliseconds()}},
	}
	if s.phase < 3 {
		plan.GuardDecision = &recording.GuardDecision{Verdict: "propose", Guard: "phase", Reason: fmt.Sprintf("phase %d of scope %s does not let a disrupt action run", s.phase, s.namespace), Phase: s.phase}
	}
	s.answer(plan)
	trouble := s.trouble
	s.trouble = troubleNone
	s.effect(plan, "steps[3]", 4*time.Hour)
	s.trouble = trouble
}

func (s *story) stolen(p *pod) {
	s.play("credentials")
	s.workload(p)
	s.snapshot(p)
	s.isolate(p, 2*time.Hour, s.confidence())
	s.after(p, 2000, false)
	const none = "no AWS account is configured: `aws:` in stanch.yaml"
	s.answer(recording.ActionResult{Operation: recording.OperationObserve, Action: "aws.identity", Target: p.target(), Params: raw(struct{}{}), RefusalReason: none, Outcome: playbooks.OutcomeRefused, Reason: none})
	s.tell()
}
