package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
)

// FreezeAction is `contain: pod.freeze`.
type FreezeAction struct{ NodeClient activities.NodeClient }

var _ activities.Containment = (*FreezeAction)(nil)

// Spec returns the spec of pod.freeze.
func (*FreezeAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name:            "pod.freeze",
		Verb:            playbooks.VerbContain,
		Class:           playbooks.ClassContain,
		Facet:           playbooks.FacetExecution,
		Targets:         []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer},
		Reversible:      true,
		EndMechanism:    playbooks.EndByStanch,
		MaxDuration:     2 * time.Minute,
		D3FENDTechnique: "D3-PS",
		Doc:             "Freeze every process in the pod for a few seconds. If a freeze lasts longer, probes fail and the kubelet kills the pod.",
	}
}

func (a *FreezeAction) queryFreezeState(ctx context.Context, r activities.Request) (gatewayrpc.ContainmentState,
	error,
) {
	var state gatewayrpc.ContainmentState
	if _, err := a.NodeClient.Call(ctx, r.Target.Node, gatewayrpc.CommandFreezeState,
		gatewayrpc.StateQuery{Target: activities.ToNodeTarget(r.Target)}, &state); err != nil {
		return state, fmt.Errorf("ask node %s: %w", r.Target.Node, err)
	}
	return state, nil
}

// Plan returns what would change.
func (a *FreezeAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	state, err := a.queryFreezeState(ctx, r)
	if errors.Is(err, activities.ErrNodeNotConnected) {
		return activities.Plan{}, activities.Refusef("%v", err)
	}
	if err != nil {
		return activities.Plan{}, err
	}
	if state.TargetGone {
		return activities.Plan{}, activities.Refusef("%s no longer runs on node %s", r.Target, r.Target.Node)
	}
	if !state.Active && state.Note != "" {
		return activities.Plan{}, activities.Refusef("%s: %s", r.Target, state.Note)
	}
	return activities.Plan{
		Changes: []string{fmt.Sprintf("freeze every process of %s on node %s", r.Target,
			r.Target.Node)}, NothingToDo: state.Active, AlreadyHeld: state.Active, HeldByLease: state.LeaseID,
		HeldUntil: state.ExpiresAt,
	}, nil
}

// Apply freezes the target. A process on the node thaws it at the end, even if the sensor is gone.
func (a *FreezeAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	token attestation.Envelope,
) (activities.Effect, error) {
	cmd := gatewayrpc.ContainmentCommand{
		Target: activities.ToNodeTarget(r.Target), Action: r.Action, LeaseID: r.LeaseID,
		ExpiresAt: r.ExpiresAt, Params: r.Params, Token: token, Grant: r.ReleaseGrant,
	}
	var state gatewayrpc.ContainmentState
	if _, err := a.NodeClient.Call(ctx, r.Target.Node, gatewayrpc.CommandFreeze, cmd, &state); err != nil {
		return activities.Effect{}, fmt.Errorf("freeze on node %s: %w", r.Target.Node, err)
	}
	if state.TargetGone {
		return activities.Effect{}, activities.Refusef("%s no longer runs on node %s", r.Target, r.Target.Node)
	}
	if !state.Active {
		return activities.Effect{}, fmt.Errorf("freeze on node %s: not all of its processes are frozen", r.Target.Node)
	}
	return activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: state.AppliedAt}, nil
}

// Verify reports whether the target is frozen.
func (a *FreezeAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	state, err := a.queryFreezeState(ctx, r)
	if err != nil {
		return false, "", err
	}
	if state.TargetGone {
		return false, "", fmt.Errorf("%s no longer runs: %w", r.Target, activities.ErrTargetGone)
	}
	return state.Active && state.LeaseID == r.LeaseID, "", nil
}

// Undo thaws the target.
func (a *FreezeAction) Undo(ctx context.Context, r activities.Request, _ json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	var state gatewayrpc.ContainmentState
	_, err := a.NodeClient.Call(ctx, r.Target.Node, gatewayrpc.CommandThaw,
		gatewayrpc.ReleaseCommand{Target: activities.ToNodeTarget(r.Target), LeaseID: r.LeaseID, Grant: grant}, &state)
	if err != nil && errors.Is(err, activities.ErrNodeNotConnected) && !time.Now().Before(r.ExpiresAt) {
		return nil, nil // its end has passed: the node's agent thaws it
	}
	if err != nil {
		return nil, fmt.Errorf("thaw on node %s: %w", r.Target.Node, err)
	}
	return nil, nil
}
