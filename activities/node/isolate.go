// Package node contains the actions that run on a target's node, through the stream that its sensor opened: snapshot,
// freeze, and isolation, which combines the node's egress lock with a NetworkPolicy.
//
// It refuses to change a node without a lease token that the node can verify. It calls an isolation verified only if
// the node measured it: a NetworkPolicy alone is "unverified".
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
)

// IsolateAction is `contain: pod.isolate`.
type IsolateAction struct {
	NodeClient activities.NodeClient
	KubeClient kubernetes.Interface // nil without a cluster
}

var (
	_ activities.Containment  = (*IsolateAction)(nil)
	_ activities.OrphanFinder = (*IsolateAction)(nil)
)

// IsolateParams are the parameters of pod.isolate.
type IsolateParams struct {
	AllowCIDRs  []string `json:"allow,omitempty" doc:"CIDRs that stay reachable, for example a forensic collector"`
	DenyIngress bool     `json:"ingress,omitempty" doc:"deny incoming connections too (by NetworkPolicy)"`
}

// Check reports the first invalid CIDR.
func (p *IsolateParams) Check() (param, problem string) {
	for _, cidr := range p.AllowCIDRs {
		if _, err := parseCIDR(cidr); err != nil {
			return "allow", fmt.Sprintf("invalid CIDR `%s`; use the form 192.0.2.0/24", cidr)
		}
	}
	return "", ""
}

// Spec returns the spec of pod.isolate.
func (*IsolateAction) Spec() playbooks.ActionSpec {
	permission := func(group, resource string, verbs ...string) playbooks.KubernetesPermission {
		return playbooks.KubernetesPermission{Groups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	const networking = "networking.k8s.io"
	return playbooks.ActionSpec{
		Name:            "pod.isolate",
		Verb:            playbooks.VerbContain,
		Class:           playbooks.ClassContain,
		Facet:           playbooks.FacetNetwork,
		Targets:         []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer},
		Reversible:      true,
		EndMechanism:    playbooks.EndByKernel,
		Params:          IsolateParams{},
		D3FENDTechnique: "D3-NI",
		Doc:             "Isolate one pod, but none of its siblings, from the network: immediately with the node's egress lock, and also with a NetworkPolicy.",
		PlanPermissions: []playbooks.KubernetesPermission{
			permission("", "pods", "get"), permission(networking, "networkpolicies", "list"),
		},
		ApplyPermissions: []playbooks.KubernetesPermission{
			permission("", "pods", "get", "list", "patch"),
			permission(networking, "networkpolicies", "get", "list", "create", "update", "delete"),
		},
		OrphanPermissions: []playbooks.KubernetesPermission{
			permission("", "pods", "list"), permission(networking, "networkpolicies", "list"),
		},
		CombineParams: intersectParams,
	}
}

// intersectParams returns parameters that permit only what both holders permit.
func intersectParams(a, b json.RawMessage) (json.RawMessage, error) {
	var x, y IsolateParams
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		return nil, fmt.Errorf("read the parameters of pod.isolate: %w", err)
	}
	both := IsolateParams{DenyIngress: x.DenyIngress || y.DenyIngress}
	for _, cidr := range x.AllowCIDRs {
		for _, other := range y.AllowCIDRs {
			if cidr == other {
				both.AllowCIDRs = append(both.AllowCIDRs, cidr)
			}
		}
	}
	raw, err := json.Marshal(both)
	if err != nil {
		return nil, fmt.Errorf("read the parameters of pod.isolate: %w", err)
	}
	return raw, nil
}

// isolatePrior is the state before the isolation.
type isolatePrior struct {
	UsesNetworkPolicy bool `json:"uses_network_policy"` // a NetworkPolicy is part of the isolation
	UsesNodeLock      bool `json:"uses_node_lock"`      // the node's egress lock is part of the isolation
}

// isClusterPod reports whether the target is a pod of the API server's cluster.
func (a *IsolateAction) isClusterPod(r activities.Request) bool {
	return a.KubeClient != nil && r.Target.Kind == playbooks.TargetPod && r.Target.Namespace != ""
}

func (a *IsolateAction) newKubeRequest(r activities.Request, p IsolateParams) kube.IsolateRequest {
	return kube.IsolateRequest{Pod: kube.PodRefForTarget(r.Target), Lease: r.LeaseStamp(), Ingress: p.DenyIngress}
}

// Plan returns what would change.
func (a *IsolateAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	params, err := activities.DecodeParams[IsolateParams](r)
	if err != nil {
		return activities.Plan{}, err
	}
	if r.Target.HostNetwork {
		return activities.Plan{}, activities.Refusef("%s uses the host network: isolating it would isolate the node",
			r.Target)
	}
	state, away, err := a.queryLockState(ctx, r)
	if err != nil {
		return activities.Plan{}, err
	}
	prior := isolatePrior{UsesNodeLock: away == "", UsesNetworkPolicy: a.isClusterPod(r)}
	var plan activities.Plan
	switch {
	case away != "" && !prior.UsesNetworkPolicy:
		return plan, activities.Refusef("%s cannot be isolated here: %s", r.Target, away)
	case away != "":
		plan.Warnings = append(plan.Warnings, "only a NetworkPolicy, whose effect cannot be verified: "+away)
	case state.TargetGone:
		return plan, activities.Refusef("%s no longer runs on node %s", r.Target, r.Target.Node)
	default:
		planNodeLock(&plan, r, params, state)
	}
	if prior.UsesNetworkPolicy {
		if err := a.planNetworkPolicy(ctx, &plan, r, params, prior.UsesNodeLock); err != nil {
			return plan, err
		}
	}
	if plan.PriorState, err = json.Marshal(prior); err != nil {
		return plan, fmt.Errorf("save the prior state: %w", err)
	}
	return plan, nil
}

// planNodeLock adds the node's lock to a plan.
func planNodeLock(plan *activities.Plan, r activities.Request, params IsolateParams, s gatewayrpc.ContainmentState) {
	plan.NothingToDo, plan.AlreadyHeld = s.Active, s.Active
	plan.HeldByLease, plan.HeldUntil = s.LeaseID, s.ExpiresAt
	change := fmt.Sprintf("block all egress from %s on node %s", r.Target, r.Target.Node)
	if len(params.AllowCIDRs) > 0 {
		change += ", except to " + strings.Join(params.AllowCIDRs, ", ")
	}
	plan.Changes = append(plan.Changes, change)
	for _, other := range s.NetworkSharers {
		// A container that joined later may have done so to obstruct the isolation: the plan warns, and requires no
		// approval for it.
		switch {
		case !other.StartedBeforeTarget:
			plan.Warnings = append(plan.Warnings,
				fmt.Sprintf("container %s joined its network namespace after it started and is isolated too", other.ContainerID))
		case s.Active:
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("container %s shares its network namespace and is isolated too",
				other.ContainerID))
		default:
			plan.Changes = append(plan.Changes, fmt.Sprintf(
				"also block all egress from container %s: it had the same network namespace when %s started", other.ContainerID,
				r.Target))
			plan.ApprovalReason = "other containers have used its network namespace since it started and would be isolated too"
		}
	}
}

// apiServerTimeout limits calls to the API server while the node's lock is in force.
const apiServerTimeout = 1500 * time.Millisecond

// planNetworkPolicy adds the NetworkPolicy to a plan; locked means that the plan contains the node's lock.
func (a *IsolateAction) planNetworkPolicy(ctx context.Context, plan *activities.Plan, r activities.Request,
	params IsolateParams, locked bool,
) error {
	if locked {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, apiServerTimeout)
		defer cancel()
	}
	found, err := kube.PlanIsolate(ctx, a.KubeClient, a.newKubeRequest(r, params))
	if refusal, refused := activities.AsRefusal(err); refused {
		return refusal
	}
	switch {
	case err != nil && locked:
		// Neither an API server outage nor a policy that cannot be planned delays the node's lock.
		why := "the NetworkPolicy cannot be planned, so only the node's lock applies: "
		if kube.IsUnavailable(err) {
			why = "the API server is unavailable; the NetworkPolicy will be applied when it is available again: "
		}
		plan.Warnings = append(plan.Warnings, why+"plan the policy: "+err.Error())
		plan.NothingToDo = false
	case err != nil:
		return fmt.Errorf("plan the policy: %w", err)
	}
	// The names of the policy and the label contain the lease's id, which is not known when a plan is shown.
	plan.Changes = append(plan.Changes, fmt.Sprintf("label %s and add a NetworkPolicy that selects only this pod",
		r.Target))
	plan.NothingToDo = plan.NothingToDo && len(found.Changes) == 0
	for _, d := range found.PolicyConflicts {
		plan.Warnings = append(plan.Warnings, d.String())
	}
	return nil
}

// applyNetworkPolicy adds the policy, and returns notes about its limits.
func (a *IsolateAction) applyNetworkPolicy(ctx context.Context, r activities.Request, params IsolateParams,
	locked bool,
) (notes []string, err error) {
	if locked {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 2*apiServerTimeout)
		defer cancel()
	}
	request := a.newKubeRequest(r, params)
	if err := kube.RefuseEarlyIsolationEnd(ctx, a.KubeClient, request, r); err != nil {
		return nil, fmt.Errorf("read the policy's expiry marker: %w", err)
	}
	found, err := kube.ApplyIsolate(ctx, a.KubeClient, request)
	if refusal, refused := activities.AsRefusal(err); refused && locked {
		return []string{"no NetworkPolicy: " + refusal.Reason}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("apply the policy: %w", err)
	}
	for _, d := range found.PolicyConflicts {
		if locked {
			notes = append(notes, "the node's lock is in force, but the NetworkPolicy alone would not isolate it: "+d.String())
		} else {
			notes = append(notes, "incomplete: "+d.String())
		}
	}
	return notes, nil
}

// Apply first locks egress on the node, which takes microseconds, and then adds the policy.
func (a *IsolateAction) Apply(ctx context.Context, r activities.Request, raw json.RawMessage,
	token attestation.Envelope,
) (activities.Effect, error) {
	params, err := activities.DecodeParams[IsolateParams](r)
	if err != nil {
		return activities.Effect{}, err
	}
	prior, err := activities.DecodePriorState[isolatePrior](raw)
	if err != nil {
		return activities.Effect{}, err
	}
	var effect activities.Effect
	var notes []string
	locked, unverified := false, ""
	if prior.UsesNodeLock {
		state, err := a.applyNodeLock(ctx, r, token)
		switch {
		case errors.Is(err, activities.ErrNodeNotConnected) && prior.UsesNetworkPolicy:
			notes = append(notes, "the node's lock is missing: "+err.Error())
		case err != nil:
			return effect, err
		case state.TargetGone:
			return effect, activities.Refusef("%s no longer runs on node %s", r.Target, r.Target.Node)
		default:
			locked = state.Active
			effect.AppliedAt, unverified = state.AppliedAt, state.UnverifiedReason
			if state.Note != "" {
				notes = append(notes, state.Note)
			}
		}
	}
	if prior.UsesNetworkPolicy {
		policy, err := a.applyNetworkPolicy(ctx, r, params, locked)
		_, refused := activities.AsRefusal(err)
		switch {
		case err != nil && locked && !refused:
			// An API server outage must not undo the lock. The next verification finds that the policy is missing, and
			// applies it.
			notes = append(notes,
				"the node's lock is in force; the NetworkPolicy will be applied when the API server is available: "+err.Error())
		case err != nil:
			return effect, err
		}
		notes = append(notes, policy...)
	}
	effect.Outcome = playbooks.OutcomeChanged
	if unverified != "" {
		effect.Outcome = playbooks.OutcomeUnverified
		notes = append(notes, "the node's lock is in force but unverified: "+unverified)
	}
	if !locked {
		effect.Outcome, effect.AppliedAt = playbooks.OutcomeUnverified, time.Now()
		notes = append(notes, "a NetworkPolicy is in place; whether the network enforces it is unverified")
	}
	effect.Reason = strings.Join(notes, "; ")
	return effect, nil
}

// Verify checks the lock on the node and the policy at the API server.
func (a *IsolateAction) Verify(ctx context.Context, r activities.Request, raw json.RawMessage) (bool, string, error) {
	params, err := activities.DecodeParams[IsolateParams](r)
	if err != nil {
		return false, "", err
	}
	prior, err := activities.DecodePriorState[isolatePrior](raw)
	if err != nil {
		return false, "", err
	}
	holds, details, unverified := true, []string{}, ""
	if prior.UsesNodeLock {
		state, away, err := a.queryLockState(ctx, r)
		switch {
		case err != nil:
			return false, "", err
		case away != "" && !time.Now().Before(r.ExpiresAt):
			holds = false
			details = append(details, "the lock has expired in the kernel")
		case away != "":
			return false, "", fmt.Errorf("the lock's state is unknown: %s", away)
		case state.TargetGone:
			return false, "", fmt.Errorf("%s no longer runs on node %s: %w", r.Target, r.Target.Node, activities.ErrTargetGone)
		case !state.Active || state.LeaseID != r.LeaseID:
			holds = false
			details = append(details, "the node's lock is not in force")
		default:
			unverified = state.UnverifiedReason
			details = append(details, fmt.Sprintf("locked until %s, %d packets denied", state.ExpiresAt.Format(time.RFC3339),
				state.DeniedPackets))
		}
	}
	if prior.UsesNetworkPolicy {
		differences, err := kube.VerifyIsolate(ctx, a.KubeClient, a.newKubeRequest(r, params))
		refusal, gone := activities.AsRefusal(err)
		switch {
		case gone:
			holds = false
			details = append(details, refusal.Reason)
		case err != nil:
			return false, "", fmt.Errorf("verify the policy: %w", err)
		case len(differences) > 0:
			holds = false
			details = append(details, kube.DescribeDifferences(differences))
		}
	}
	if holds && unverified != "" {
		return true, strings.Join(details, "; "), &activities.PartlyVerifiedError{Reason: unverified}
	}
	return holds, strings.Join(details, "; "), nil
}

// Undo removes the lock and the policy. Parts that are gone need no undo.
func (a *IsolateAction) Undo(ctx context.Context, r activities.Request, raw json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	params, err := activities.DecodeParams[IsolateParams](r)
	if err != nil {
		return nil, err
	}
	prior, err := activities.DecodePriorState[isolatePrior](raw)
	if err != nil {
		return nil, err
	}
	if prior.UsesNetworkPolicy {
		request := a.newKubeRequest(r, params)
		if err := kube.RefuseEarlyIsolationUndo(ctx, a.KubeClient, request, grant); err != nil {
			return nil, err
		}
		drift, err := kube.UndoIsolate(ctx, a.KubeClient, request)
		if err != nil {
			return nil, fmt.Errorf("remove the policy: %w", err)
		}
		if drift != nil {
			return drift, nil
		}
	}
	if !prior.UsesNodeLock {
		return nil, nil
	}
	return nil, a.releaseNodeLock(ctx, r, grant)
}

// FindOrphans returns the policies and labels whose stamped end has passed. The node's lock ends in the kernel.
func (a *IsolateAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	if a.KubeClient == nil {
		return nil, nil
	}
	return kube.FindOrphanedIsolations(ctx, a.KubeClient, before)
}
