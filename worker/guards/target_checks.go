package guards

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"stanch/activities"
	"stanch/playbooks"
)

// resolveTarget resolves the target. It returns nil for a target that is not an object of a cluster, and for an action
// without effects.
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
		return &activities.TargetFacts{UnresolvedReason: "no cluster is connected to look it up"}
	}
	known := c.TargetResolver.ResolveTarget(ctx, q.Request.Target)
	return &known
}

// checkResolvedTarget refuses a target that is not what the request claims, and one that the action cannot contain
// safely.
func checkResolvedTarget(f Input) *activities.GuardDecision {
	t, known := f.Request.Target, f.ResolvedTarget
	switch {
	case known == nil || known.UnresolvedReason != "":
		return nil // an unknown target requires an approval, as the phase guard decides
	case t.Kind == playbooks.TargetContainer && !known.OutsideCluster:
		return newRefusal("%s belongs to the pod %s/%s; contain the pod", t, known.Namespace, known.Pod)
	case known.Namespace != t.Namespace:
		return newRefusal("%s is in the namespace %q, not %q", t, known.Namespace, t.Namespace)
	case t.Kind == playbooks.TargetPod && known.Node != t.Node:
		return newRefusal("%s runs on node %q, not %q", t, known.Node, t.Node)
	case known.HostNetwork && f.Spec.Facet == playbooks.FacetNetwork:
		return newRefusal("%s shares the node's network; isolating it would isolate the node", t)
	}
	return nil
}

// unknownReason returns which inputs are unknown, so that only people can permit the containment; "" if none is.
func (f Input) unknownReason() string {
	known := f.ResolvedTarget
	switch {
	case known == nil || f.DrillTarget != nil && known.UnresolvedReason != "" &&
		f.Request.Target.Kind == playbooks.TargetContainer:
		return "" // the drill created this container
	case known.UnresolvedReason != "":
		return fmt.Sprintf("%s could not be looked up, so it is unknown whether it is protected: %s", f.Request.Target,
			known.UnresolvedReason)
	case known.IncompleteReason == "":
		return ""
	}
	// An unknown owner matters only if a protected workload could be it.
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

// targetOwners returns the workloads that own the target. If the API server's data is unavailable, it uses the attested
// detections and the incident, which can only cause more refusals.
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

// budgetWorkload returns the workload whose budget a containment uses: the topmost known owner.
func (f Input) budgetWorkload() string {
	if f.ResolvedTarget != nil && len(f.ResolvedTarget.Owners) > 0 {
		return f.ResolvedTarget.Workload().String()
	}
	return f.Request.IncidentRef.Workload.String()
}

// workloadReplicas returns the desired number of pods of the workload; 0 if unknown.
func (f Input) workloadReplicas() int {
	if f.ResolvedTarget != nil && f.ResolvedTarget.UnresolvedReason == "" && f.ResolvedTarget.Replicas > 0 {
		return f.ResolvedTarget.Replicas
	}
	return f.Request.IncidentRef.Replicas
}
