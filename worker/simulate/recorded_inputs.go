package simulate

import (
	"context"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/worker/guards"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// recordedInputs are the recorded inputs of the guards' decisions.
type recordedInputs struct {
	byTime    []recording.ActionResult            // results with inputs, by time
	byKey     map[string][]*recording.GuardInputs // by operation, action and target, in order
	nextIndex map[string]int
}

func newRecordedInputs(rec recording.Recording) *recordedInputs {
	out := &recordedInputs{byKey: map[string][]*recording.GuardInputs{}, nextIndex: map[string]int{}}
	for _, a := range rec.ActionResults {
		if a.GuardDecision != nil && a.GuardDecision.GuardInputs != nil {
			out.byTime = append(out.byTime, a)
			k := resultKey(a.Operation, a.Action, a.Target)
			out.byKey[k] = append(out.byKey[k], a.GuardDecision.GuardInputs)
		}
	}
	return out
}

// nextInputs returns the inputs of the same decision: the next one of the same operation on the same target, otherwise
// the nearest in time. It returns nil if the recording has none.
func (i *recordedInputs) nextInputs(op recording.Operation, action, target string, atMS int64) *recording.GuardInputs {
	k := resultKey(op, action, target)
	if list := i.byKey[k]; len(list) > 0 {
		n := min(i.nextIndex[k], len(list)-1)
		i.nextIndex[k]++
		return list[n]
	}
	var nearest *recording.GuardInputs
	best := int64(-1)
	for _, a := range i.byTime {
		if away := max(a.OffsetMS-atMS, atMS-a.OffsetMS); best < 0 || away < best {
			best, nearest = away, a.GuardDecision.GuardInputs
		}
	}
	if nearest == nil {
		return nil
	}
	// From another decision, only the installation's state is used, and not the target's.
	return &recording.GuardInputs{PausedBy: nearest.PausedBy, UsedLastHour: nearest.UsedLastHour}
}

// inputsFor returns the recorded inputs of the current decision.
func (s *simulation) inputsFor(q activities.GuardInput) *recording.GuardInputs {
	op := recording.OperationPlan
	if q.Enforce {
		op = recording.OperationApply
	}
	at := s.elapsedMS()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recordedInputs.nextInputs(op, q.Request.Action, q.Request.Target.ID(), at)
}

// recordedKillSwitch is the recorded kill switch.
type recordedKillSwitch struct{ recordedInputs *recording.GuardInputs }

var _ guards.KillSwitchReader = recordedKillSwitch{}

// IsPaused returns the recorded state.
func (l recordedKillSwitch) IsPaused(context.Context) (bool, string, error) {
	if l.recordedInputs != nil && l.recordedInputs.PausedBy != "" {
		return true, l.recordedInputs.PausedBy, nil
	}
	return false, "", nil
}

// simulatedBudget is the simulation's own budget, in addition to the recorded usage of others.
type simulatedBudget struct {
	*guards.BudgetWindow
	recordedInputs *recording.GuardInputs
}

var _ guards.ContainmentBudget = simulatedBudget{}

// CheckLeft returns why the budget is used up, or "".
func (b simulatedBudget) CheckLeft(f guards.Input) string {
	if reason := b.BudgetWindow.CheckLeft(f); reason != "" || f.DrillTarget != nil {
		return reason
	}
	if b.recordedInputs == nil {
		return ""
	}
	hour, held := b.UsedCounts(f)
	return guards.BudgetExceededReason(f, max(hour, b.recordedInputs.UsedLastHour),
		max(held, b.recordedInputs.ContainedSiblings))
}

// Spend uses the budget for one containment, or returns why it is used up.
func (b simulatedBudget) Spend(f guards.Input) string {
	if reason := b.CheckLeft(f); reason != "" && f.Grant == nil {
		return reason
	}
	return b.BudgetWindow.Spend(f)
}

// recordedTargets returns the recorded facts about targets, otherwise those of the detections.
type recordedTargets struct {
	simulation     *simulation
	recordedInputs *recording.GuardInputs
}

var _ activities.TargetResolver = recordedTargets{}

// ResolveTarget returns the recorded facts about a target.
func (r recordedTargets) ResolveTarget(_ context.Context, t playbooks.Target) activities.TargetFacts {
	if r.recordedInputs != nil && r.recordedInputs.TargetFacts != nil {
		f := r.recordedInputs.TargetFacts
		return activities.TargetFacts{
			UnresolvedReason: f.UnresolvedReason, OutsideCluster: f.OutsideCluster, Namespace: f.Namespace, Pod: f.Pod,
			Node: f.Node, HostNetwork: f.HostNetwork,
			Owners: f.Owners, IncompleteReason: f.IncompleteReason, Replicas: f.Replicas,
		}
	}
	if t.Kind == playbooks.TargetContainer {
		return activities.TargetFacts{OutsideCluster: true, Node: t.Node}
	}
	// Whether the host's network forbids an action is part of the recorded or fake plan.
	facts := activities.TargetFacts{Namespace: t.Namespace, Pod: t.Name, Node: t.Node, IgnoreReplicas: true}
	for _, a := range r.simulation.recording.ActionResults {
		if a.Target == t.ID() && a.GuardDecision != nil && a.GuardDecision.BudgetReplicas != 0 {
			facts.Replicas, facts.IgnoreReplicas = max(a.GuardDecision.BudgetReplicas, 0), false
		}
	}
	if t.Kind == playbooks.TargetWorkload {
		facts.Owners = []playbooks.WorkloadIdentity{{Namespace: t.Namespace, Kind: t.WorkloadKind, Name: t.Name, UID: t.UID}}
		return facts
	}
	for _, d := range r.simulation.recording.Detections {
		if incident.HasContainer(d.Detection) && incident.TargetOfDetection(d.Detection).ID() == t.ID() {
			w := incident.WorkloadOfDetection(d.Detection)
			facts.Owners = []playbooks.WorkloadIdentity{{Namespace: w.Namespace, Kind: w.Kind, Name: w.Name}}
			break
		}
	}
	return facts
}

// scheduleTriage schedules the recorded triage decisions: at the recorded delay after the start, or after the previous
// approval request, which may come earlier in a simulation.
func (s *simulation) scheduleTriage() {
	s.sentTriage = make([]bool, len(s.recording.TriageDecisions))
	for i, m := range s.recording.TriageDecisions {
		s.testEnvironment.RegisterDelayedCallback(func() { s.sendTriage(i) }, max(time.Duration(m.OffsetMS)*time.Millisecond,
			time.Millisecond))
	}
}

// scheduleTriageAfterRequest schedules the triage decisions between an approval request of the recording and the next
// one.
func (s *simulation) scheduleTriageAfterRequest(askedMS int64) {
	next := int64(-1)
	for _, q := range s.recording.ApprovalRequests {
		if q.OffsetMS > askedMS && (next < 0 || q.OffsetMS < next) {
			next = q.OffsetMS
		}
	}
	for i, m := range s.recording.TriageDecisions {
		if m.OffsetMS >= askedMS && (next < 0 || m.OffsetMS < next) {
			s.testEnvironment.RegisterDelayedCallback(func() { s.sendTriage(i) },
				max(time.Duration(m.OffsetMS-askedMS)*time.Millisecond, time.Millisecond))
		}
	}
}

func (s *simulation) sendTriage(i int) {
	if s.sentTriage[i] {
		return
	}
	s.sentTriage[i] = true
	m := s.recording.TriageDecisions[i]
	what := "assigned to " + m.Person
	if kind := incident.TriageKind(m.Kind); kind.IsDisposition() {
		what = m.Person + " resolves the incident as " + kind.Describe()
	}
	s.addEvent("triage", "%s", what)
	s.testEnvironment.SignalWorkflow(workflows.SignalTriage, incident.TriageDecision{
		Kind:   incident.TriageKind(m.Kind),
		Person: m.Person, Reason: m.Reason,
	})
}
