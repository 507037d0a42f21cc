package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/attestation"
)

// Freeze is `contain: pod.freeze`.
type Freeze struct{ Nodes activities.Nodes }

var _ activities.Containment = (*Freeze)(nil)

// Spec declares pod.freeze.
func (*Freeze) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "pod.freeze", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Facet: playbooks.FacetExecution,
		Targets: []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer}, Reversible: true, EndMechanism: playbooks.EndByStanch, MaxDuration: 2 * time.Minute, D3FENDTechnique: "D3-PS",
		Doc: "Stop every process of the pod where it stands, for seconds: longer, and its probes fail and the kubelet kills it.",
	}
}

func (a *Freeze) state(ctx context.Context, r activities.Request) (gatewayrpc.ContainmentState, error) {
	var state gatewayrpc.ContainmentState
	if _, err := a.Nodes.Call(ctx, r.Target.Node, gatewayrpc.CommandFreezeState, gatewayrpc.StateQuery{Target: activities.NodeTarget(r.Target)}, &state); err != nil {
		return state, fmt.Errorf("ask node %s: %w", r.Target.Node, err)
	}
	return state, nil
}

// Plan says what would change.
func (a *Freeze) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	state, err := a.state(ctx, r)
	if errors.Is(err, activities.ErrNodeAway) {
		return activities.Plan{}, activities.Refuse("%v", err)
	}
	if err != nil {
		return activities.Plan{}, err
	}
	if state.TargetGone {
		return activities.Plan{}, activities.Refuse("%s no longer runs on node %s", r.Target, r.Target.Node)
	}
	if !state.Active && state.Note != "" {
		return activities.Plan{}, activities.Refuse("%s: %s", r.Target, state.Note)
	}
	return activities.Plan{Changes: []string{fmt.Sprintf("freeze every process of %s on node %s", r.Target, r.Target.Node)}, Nothing: state.Active, Held: state.Active, HeldBy: state.LeaseID, HeldUntil: state.ExpiresAt}, nil
}

// Apply freezes; a process of the node thaws at the end, also when the sensor is gone.
func (a *Freeze) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, token attestation.Envelope) (activities.Effect, error) {
	cmd := gatewayrpc.ContainmentCommand{Target: activities.NodeTarget(r.Target), Action: r.Action, LeaseID: r.Lease, ExpiresAt: r.Until, Params: r.Params, Token: token, Grant: r.Shorten}
	var state gatewayrpc.ContainmentState
	if _, err := a.Nodes.Call(ctx, r.Target.Node, gatewayrpc.CommandFreeze, cmd, &state); err != nil {
		return activities.Effect{}, fmt.Errorf("freeze on node %s: %w", r.Target.Node, err)
	}
	if state.TargetGone {
		return activities.Effect{}, activities.Refuse("%s no longer runs on node %s", r.Target, r.Target.Node)
	}
	if !state.Active {
		return activities.Effect{}, fmt.Errorf("freeze on node %s: not all of its processes stand still", r.Target.Node)
	}
	return activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: state.AppliedAt}, nil
}

// Verify observes the freeze.
func (a *Freeze) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	state, err := a.state(ctx, r)
	if err != nil {
		return false, "", err
	}
	if state.TargetGone {
		return false, "", fmt.Errorf("%s no longer runs: %w", r.Target, activities.ErrGone)
	}
	return state.Active && state.LeaseID == r.Lease, "", nil
}

// Undo thaws.
func (a *Freeze) Undo(ctx context.Context, r activities.Request, _ json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	var state gatewayrpc.ContainmentState
	_, err := a.Nodes.Call(ctx, r.Target.Node, gatewayrpc.CommandThaw, gatewayrpc.ReleaseCommand{Target: activities.NodeTarget(r.Target), LeaseID: r.Lease, Grant: grant}, &state)
	if err != nil && errors.Is(err, activities.ErrNodeAway) && !time.Now().Before(r.Until) {
		return nil, nil // its end has passed: the node's agent thaws by itself
	}
	if err != nil {
		return nil, fmt.Errorf("thaw on node %s: %w", r.Target.Node, err)
	}
	return nil, nil
}
