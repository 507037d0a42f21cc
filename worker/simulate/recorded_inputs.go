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

// recordedInputs are what the guards judged by when the incident was recorded, one for each of their decisions.
type recordedInputs struct {
	byTime    []recording.ActionResult            // those with inputs, by time
	byKey     map[string][]*recording.GuardInputs // byKey operation, action and target, in turn
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

// nextInputs is what was judged by at the same decision: the next of the same operation on the same target, else the nearest
// in time. Nil if the recording holds none.
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
	// Of another decision only what is the same for all: the state of the installation, and not of the target.
	return &recording.GuardInputs{PausedBy: nearest.PausedBy, UsedLastHour: nearest.UsedLastHour}
}

// inputsFor gives what was judged by at the decision that is asked for now.
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

// recordedKillSwitch is the kill switch as it was.
type recordedKillSwitch struct{ recordedInputs *recording.GuardInputs }

var _ guards.KillSwitchReader = recordedKillSwitch{}

// IsPaused says what the recording says of the moment.
func (l recordedKillSwitch) IsPaused(context.Context) (bool, string, error) {
	if l.recordedInputs != nil && l.recordedInputs.PausedBy != "" {
		return true, l.recordedInputs.PausedBy, nil
	}
	return false, "", nil
}

// simulatedBudget is the simulation's own, on top of what the recording says was spent and held by others.
type simulatedBudget struct {
	*guards.BudgetWindow
	recordedInputs *recording.GuardInputs
}

var _ guards.ContainmentBudget = simulatedBudget{}

// CheckLeft says why there is no budget, or "".
func (b simulatedBudget) CheckLeft(f guards.Input) string {
	if reason := b.BudgetWindow.CheckLeft(f); reason != "" || f.DrillTarget != nil {
		return reason
	}
	if b.recordedInputs == nil {
		return ""
	}
	hour, held := b.UsedCounts(f)
	return guards.BudgetExceededReason(f, max(hour, b.recordedInputs.UsedLastHour), max(held, b.recordedInputs.ContainedSiblings))
}

// Spend takes one containment out of the budget, or says why there is none left.
func (b simulatedBudget) Spend(f guards.Input) string {
	if reason := b.CheckLeft(f); reason != "" && f.Grant == nil {
		return reason
	}
	return b.BudgetWindow.Spend(f)
}

// recordedTargets says of targets what the API server said of them, as far as the recording holds it, else what its detections
// say.
type recordedTargets struct {
	simulation     *simulation
	recordedInputs *recording.GuardInputs
}

var _ activities.TargetResolver = recordedTargets{}

// ResolveTarget gives the facts that the target had in the recording.
func (r recordedTargets) ResolveTarget(_ context.Context, t playbooks.Target) activities.TargetFacts {
	if r.recordedInputs != nil && r.recordedInputs.TargetFacts != nil {
		f := r.recordedInputs.TargetFacts
		return activities.TargetFacts{
			UnresolvedReason: f.UnresolvedReason, OutsideCluster: f.OutsideCluster, Namespace: f.Namespace, Pod: f.Pod, Node: f.Node, HostNetwork: f.HostNetwork,
			Owners: f.Owners, IncompleteReason: f.IncompleteReason, Replicas: f.Replicas,
		}
	}
	if t.Kind == playbooks.TargetContainer {
		return activities.TargetFacts{OutsideCluster: true, Node: t.Node}
	}
	// Whether the host's network forbids an action is in that action's recorded or faked plan.
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

// scheduleTriage gives what people said about the incident, when they said it: so long after it was opened, or after the last
// question before it, which in a simulation comes earlier.
func (s *simulation) scheduleTriage() {
	s.sentTriage = make([]bool, len(s.recording.TriageDecisions))
	for i, m := range s.recording.TriageDecisions {
		s.testEnvironment.RegisterDelayedCallback(func() { s.sendTriage(i) }, max(time.Duration(m.OffsetMS)*time.Millisecond, time.Millisecond))
	}
}

// scheduleTriageAfterRequest schedules the marks that were made after a question of the recording and before the next one.
func (s *simulation) scheduleTriageAfterRequest(askedMS int64) {
	next := int64(-1)
	for _, q := range s.recording.ApprovalRequests {
		if q.OffsetMS > askedMS && (next < 0 || q.OffsetMS < next) {
			next = q.OffsetMS
		}
	}
	for i, m := range s.recording.TriageDecisions {
		if m.OffsetMS >= askedMS && (next < 0 || m.OffsetMS < next) {
			s.testEnvironment.RegisterDelayedCallback(func() { s.sendTriage(i) }, max(time.Duration(m.OffsetMS-askedMS)*time.Millisecond, time.Millisecond))
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
	s.addEvent("mark", "%s", what)
	s.testEnvironment.SignalWorkflow(workflows.SignalTriage, incident.TriageDecision{Kind: incident.TriageKind(m.Kind), Person: m.Person, Reason: m.Reason})
}
