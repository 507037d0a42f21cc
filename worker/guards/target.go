package guards

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"stanch/activities"
	"stanch/playbooks"
)

// resolve asks what a target is. Nil is a target that is no object of a cluster, or an action that changes nothing.
func (c *Chain) resolve(ctx context.Context, q activities.GuardInput) *activities.TargetFacts {
	if q.Spec.Class == playbooks.ClassObserve {
		return nil
	}
	switch q.Request.Target.Kind {
	case playbooks.TargetPod, playbooks.TargetContainer, playbooks.TargetWorkload:
	default:
		return nil
	}
	if c.Targets == nil {
		return &activities.TargetFacts{UnresolvedReason: "nothing here can look it up"}
	}
	known := c.Targets.ResolveTarget(ctx, q.Request.Target)
	return &known
}

// asResolved refuses a target that is not what the request says, and one that must not be contained in that way.
func asResolved(f Facts) *activities.GuardDecision {
	t, known := f.Request.Target, f.Known
	switch {
	case known == nil || known.UnresolvedReason != "":
		return nil // what is not known needs a person; the phase guard asks
	case t.Kind == playbooks.TargetContainer && !known.OutsideCluster:
		return refuse("%s belongs to the pod %s/%s; contain the pod", t, known.Namespace, known.Pod)
	case known.Namespace != t.Namespace:
		return refuse("%s is in the namespace %q, not %q", t, known.Namespace, t.Namespace)
	case t.Kind == playbooks.TargetPod && known.Node != t.Node:
		return refuse("%s runs on node %q, not %q", t, known.Node, t.Node)
	case known.HostNetwork && f.Spec.Facet == playbooks.FacetNetwork:
		return refuse("%s shares the node's network: isolating it would isolate the node", t)
	}
	return nil
}

// unknown says why what the guards judge by is not known, so that only a person can let a containment run; "" if it is.
func (f Facts) unknown() string {
	known := f.Known
	switch {
	case known == nil || f.Drill != nil && known.UnresolvedReason != "" && f.Request.Target.Kind == playbooks.TargetContainer:
		return "" // a drill's container was made for it
	case known.UnresolvedReason != "":
		return fmt.Sprintf("what %s is could not be looked up, so nothing tells whether it is protected: %s", f.Request.Target, known.UnresolvedReason)
	case known.IncompleteReason == "":
		return ""
	}
	// Only a protected workload that may stand above what is known makes a difference.
	for _, w := range f.Config.Protected.Workloads {
		if strings.HasPrefix(w, known.Namespace+"/") && !slices.Contains(f.owners(), w) {
			return fmt.Sprintf("%s may belong to the protected workload %s: %s", f.Request.Target, w, known.IncompleteReason)
		}
	}
	return ""
}

// confirmed reports whether the API server said what the target is.
func (f Facts) confirmed() bool {
	return f.Known != nil && f.Known.UnresolvedReason == "" && !f.Known.OutsideCluster
}

// owners are the workloads that the target belongs to. Where the API server did not say, they are what the attested
// detections and the incident say: that can only refuse more.
func (f Facts) owners() []string {
	var out []string
	if f.confirmed() {
		for _, w := range f.Known.Owners {
			out = append(out, w.String())
		}
		return out
	}
	t := f.Request.Target
	if w := f.Request.IncidentRef.Workload; t.Kind != playbooks.TargetWorkload && w.Namespace == t.Namespace {
		out = append(out, w.String())
	}
	if t.Kind == playbooks.TargetWorkload {
		out = append(out, playbooks.WorkloadIdentity{Namespace: t.Namespace, Kind: t.WorkloadKind, Name: t.Name}.String())
	}
	return append(out, f.Workloads...)
}

// workload is the one whose share of the budget a containment takes: the topmost owner, as far as it is known.
func (f Facts) workload() string {
	if f.Known != nil && len(f.Known.Owners) > 0 {
		return f.Known.Workload().String()
	}
	return f.Request.IncidentRef.Workload.String()
}

// replicas is how many pods the workload wants; 0 where nobody knows.
func (f Facts) replicas() int {
	if f.Known != nil && f.Known.UnresolvedReason == "" && f.Known.Replicas > 0 {
		return f.Known.Replicas
	}
	return f.Request.IncidentRef.Replicas
}
