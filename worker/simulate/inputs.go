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

// inputs are what the guards judged by when the incident was recorded, one for each of their decisions.
type inputs struct {
	all  []recording.ActionResult             // those with inputs, by time
	by   map[string][]*recording.GuardInputs // by operation, action and target, in turn
	next map[string]int
}

func newInputs(rec recording.Recording) *inputs {
	out := &inputs{by: map[string][]*recording.GuardInputs{}, next: map[string]int{}}
	for _, a := range rec.ActionResults {
		if a.GuardDecision != nil && a.GuardDecision.GuardInputs != nil {
			out.all = append(out.all, a)
			k := key(a.Operation, a.Action, a.Target)
			out.by[k] = append(out.by[k], a.GuardDecision.GuardInputs)
		}
	}
	return out
}

// give is what was judged by at the same decision: the next of the same operation on the same target, else the nearest
// in time. Nil if the recording holds none.
func (i *inputs) give(op recording.Operation, action, target string, atMS int64) *recording.GuardInputs {
	k := key(op, action, target)
	if list := i.by[k]; len(list) > 0 {
		n := min(i.next[k], len(list)-1)
		i.next[k]++
		return list[n]
	}
	var nearest *recording.GuardInputs
	best := int64(-1)
	for _, a := range i.all {
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

// of gives what was judged by at the decision that is asked for now.
func (s *sim) of(q activities.GuardInput) *recording.GuardInputs {
	op := recording.OperationPlan
	if q.Enforce {
		op = recording.OperationApply
	}
	at := s.after()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inputs.give(op, q.Request.Action, q.Request.Target.ID(), at)
}

// lever is the kill switch as it was.
type lever struct{ in *recording.GuardInputs }

var _ guards.Switch = lever{}

// Stopped says what the recording says of the moment.
func (l lever) Stopped(context.Context) (bool, string, error) {
	if l.in != nil && l.in.PausedBy != "" {
		return true, l.in.PausedBy, nil
	}
	return false, "", nil
}

// budget is the simulation's own, on top of what the recording says was spent and held by others.
type budget struct {
	*guards.Window
	in *recording.GuardInputs
}

var _ guards.Budget = budget{}

// Left says why there is no budget, or "".
func (b budget) Left(f guards.Facts) string {
	if reason := b.Window.Left(f); reason != "" || f.Drill != nil {
		return reason
	}
	if b.in == nil {
		return ""
	}
	hour, held := b.Used(f)
	return guards.Exceeded(f, max(hour, b.in.UsedLastHour), max(held, b.in.ContainedSiblings))
}

// Spend takes one containment out of the budget, or says why there is none left.
func (b budget) Spend(f guards.Facts) string {
	if reason := b.Left(f); reason != "" && f.Grant == nil {
		return reason
	}
	return b.Window.Spend(f)
}

// recorded says of targets what the API server said of them, as far as the recording holds it, else what its detections
// say.
type recorded struct {
	sim *sim
	in  *recording.GuardInputs
}

var _ activities.TargetResolver = recorded{}

// ResolveTarget gives the facts that the target had in the recording.
func (r recorded) ResolveTarget(_ context.Context, t playbooks.Target) activities.TargetFacts {
	if r.in != nil && r.in.TargetFacts != nil {
		f := r.in.TargetFacts
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
	for _, a := range r.sim.rec.ActionResults {
		if a.Target == t.ID() && a.GuardDecision != nil && a.GuardDecision.BudgetReplicas != 0 {
			facts.Replicas, facts.IgnoreReplicas = max(a.GuardDecision.BudgetReplicas, 0), false
		}
	}
	if t.Kind == playbooks.TargetWorkload {
		facts.Owners = []playbooks.WorkloadIdentity{{Namespace: t.Namespace, Kind: t.WorkloadKind, Name: t.Name, UID: t.UID}}
		return facts
	}
	for _, d := range r.sim.rec.Detections {
		if incident.HasContainer(d.Detection) && incident.TargetOfDetection(d.Detection).ID() == t.ID() {
			w := incident.WorkloadOfDetection(d.Detection)
			facts.Owners = []playbooks.WorkloadIdentity{{Namespace: w.Namespace, Kind: w.Kind, Name: w.Name}}
			break
		}
	}
	return facts
}

// marks gives what people said about the incident, when they said it: so long after it was opened, or after the last
// question before it, which in a simulation comes earlier.
func (s *sim) marks() {
	s.marked = make([]bool, len(s.rec.TriageDecisions))
	for i, m := range s.rec.TriageDecisions {
		s.env.RegisterDelayedCallback(func() { s.mark(i) }, max(time.Duration(m.OffsetMS)*time.Millisecond, time.Millisecond))
	}
}

// marksAfter schedules the marks that were made after a question of the recording and before the next one.
func (s *sim) marksAfter(askedMS int64) {
	next := int64(-1)
	for _, q := range s.rec.ApprovalRequests {
		if q.OffsetMS > askedMS && (next < 0 || q.OffsetMS < next) {
			next = q.OffsetMS
		}
	}
	for i, m := range s.rec.TriageDecisions {
		if m.OffsetMS >= askedMS && (next < 0 || m.OffsetMS < next) {
			s.env.RegisterDelayedCallback(func() { s.mark(i) }, max(time.Duration(m.OffsetMS-askedMS)*time.Millisecond, time.Millisecond))
		}
	}
}

func (s *sim) mark(i int) {
	if s.marked[i] {
		return
	}
	s.marked[i] = true
	m := s.rec.TriageDecisions[i]
	what := m.Person + " takes it over"
	if m.Kind == string(incident.TriageFalsePositive) {
		what = m.Person + " says that it is a false positive"
	}
	s.event("mark", "%s", what)
	s.env.SignalWorkflow(workflows.SignalTriage, incident.TriageDecision{Kind: incident.TriageKind(m.Kind), Person: m.Person, Reason: m.Reason})
}
