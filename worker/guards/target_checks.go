package guards

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"stanch/activities"
	"stanch/playbooks"
)

// resolveTarget asks what a target is. Nil is a target that is no object of a cluster, or an action that changes nothing.
func (c *GuardChain) resolveTarget(ctx context.Context, q activities.GuardInput) *activities.TargetFacts {
	if q.Spec.Class == playbooks.ClassObserve {
		return nil
	}
	switch q.Request.Target.Kind {
	case playbooks.TargetPod, playbooks.TargetContainer, playbooks.TargetWorkload:
	default:
		return nil
	}
	if c.TargetResolver == nil {
		return &activities.TargetFacts{UnresolvedReason: "nothing here can look it up"}
	}
	known := c.TargetResolver.ResolveTarget(ctx, q.Request.Target)
	return &known
}

// checkResolvedTarget refuses a target that is not what the request says, and one that must not be contained in that way.
func checkResolvedTarget(f Input) *activities.GuardDecision {
	t, known := f.Request.Target, f.ResolvedTarget
	switch {
	case known == nil || known.UnresolvedReason != "":
		return nil // what is not known needs a person; the phase guard asks
	case t.Kind == playbooks.TargetContainer && !known.OutsideCluster:
		return newRefusal("%s belongs to the pod %s/%s; contain the pod", t, known.Namespace, known.Pod)
	case known.Namespace != t.Namespace:
		return newRefusal("%s is in the namespace %q, not %q", t, known.Namespace, t.Namespace)
	case t.Kind == playbooks.TargetPod && known.Node != t.Node:
		return newRefusal("%s runs on node %q, not %q", t, known.Node, t.Node)
	case known.HostNetwork && f.Spec.Facet == playbooks.FacetNetwork:
		return newRefusal("%s shares the node's network: isolating it would isolate the node", t)
	}
	return nil
}

// unknownReason says why what the guards judge by is not known, so that only a person can let a containment run; "" if it is.
func (f Input) unknownReason() string {
	known := f.ResolvedTarget
	switch {
	case known == nil || f.DrillTarget != nil && known.UnresolvedReason != "" && f.Request.Target.Kind == playbooks.TargetContainer:
		return "" // a drill's container was made for it
	case known.UnresolvedReason != "":
		return fmt.Sprintf("what %s is could not be looked up, so nothing tells whether it is protected: %s", f.Request.Target, known.UnresolvedReason)
	case known.IncompleteReason == "":
		return ""
	}
	// Only a protected workload that may stand above what is known makes a difference.
	for _, w := range f.Config.ProtectedTargets.Workloads {
		if strings.HasPrefix(w, known.Namespace+"/") && !slices.Contains(f.targetOwners(), w) {
			return fmt.Sprintf("%s may belong to the protected workload %s: %s", f.Request.Target, w, known.IncompleteReason)
		}
	}
	return ""
}

// isTargetVerified reports whether the API server said what the target is.
func (f Input) isTargetVerified() bool {
	return f.ResolvedTarget != nil && f.ResolvedTarget.UnresolvedReason == "" && !f.ResolvedTarget.OutsideCluster
}

// targetOwners are the workloads that the target belongs to. Where the API server did not say, they are what the attested
// detections and the incident say: that can only refuse more.
func (f Input) targetOwners() []string {
	var out []string
	if f.isTargetVerified() {
		for _, w := range f.ResolvedTarget.Owners {
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
	return append(out, f.AttestedWorkloads...)
}

// budgetWorkload is the one whose share of the budget a containment takes: the topmost owner, as far as it is known.
func (f Input) budgetWorkload() string {
	if f.ResolvedTarget != nil && len(f.ResolvedTarget.Owners) > 0 {
		return f.ResolvedTarget.Workload().String()
	}
	return f.Request.IncidentRef.Workload.String()
}

// workloadReplicas is how many pods the workload wants; 0 where nobody knows.
func (f Input) workloadReplicas() int {
	if f.ResolvedTarget != nil && f.ResolvedTarget.UnresolvedReason == "" && f.ResolvedTarget.Replicas > 0 {
		return f.ResolvedTarget.Replicas
	}
	return f.Request.IncidentRef.Replicas
}
