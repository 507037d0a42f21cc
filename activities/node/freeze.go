package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/link"
	"stanch/sensors/proof"
)

// Freeze is `contain: pod.freeze`.
type Freeze struct{ Nodes activities.Nodes }

var _ activities.Containment = (*Freeze)(nil)

// Spec declares pod.freeze.
func (*Freeze) Spec() playbooks.Spec {
	return playbooks.Spec{
		Name: "pod.freeze", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Facet: playbooks.FacetExecution,
		Targets: []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer}, Reversible: true, Ends: playbooks.EndStanch, MaxFor: 2 * time.Minute, D3FEND: "D3-PS",
		Doc: "Stop every process of the pod where it stands, for seconds: longer, and its probes fail and the kubelet kills it.",
	}
}

func (a *Freeze) state(ctx context.Context, r activities.Request) (link.HoldState, error) {
	var state link.HoldState
	if _, err := a.Nodes.Call(ctx, r.Target.Node, link.CommandFreezeState, link.StateCommand{Target: activities.NodeTarget(r.Target)}, &state); err != nil {
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
	if state.Gone {
		return activities.Plan{}, activities.Refuse("%s no longer runs on node %s", r.Target, r.Target.Node)
	}
	if !state.Held && state.Note != "" {
		return activities.Plan{}, activities.Refuse("%s: %s", r.Target, state.Note)
	}
	return activities.Plan{Changes: []string{fmt.Sprintf("freeze every process of %s on node %s", r.Target, r.Target.Node)}, Nothing: state.Held, Held: state.Held, HeldBy: state.Lease, HeldUntil: state.Until}, nil
}

// Apply freezes; a process of the node thaws at the end, also when the sensor is gone.
func (a *Freeze) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, token proof.Signed) (activities.Effect, error) {
	cmd := link.HoldCommand{Target: activities.NodeTarget(r.Target), Action: r.Action, Lease: r.Lease, Until: r.Until, Params: r.Params, Token: token, Grant: r.Shorten}
	var state link.HoldState
	if _, err := a.Nodes.Call(ctx, r.Target.Node, link.CommandFreeze, cmd, &state); err != nil {
		return activities.Effect{}, fmt.Errorf("freeze on node %s: %w", r.Target.Node, err)
	}
	if state.Gone {
		return activities.Effect{}, activities.Refuse("%s no longer runs on node %s", r.Target, r.Target.Node)
	}
	if !state.Held {
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
	if state.Gone {
		return false, "", fmt.Errorf("%s no longer runs: %w", r.Target, activities.ErrGone)
	}
	return state.Held && state.Lease == r.Lease, "", nil
}

// Undo thaws.
func (a *Freeze) Undo(ctx context.Context, r activities.Request, _ json.RawMessage, grant *proof.Signed) (*activities.Drift, error) {
	var state link.HoldState
	_, err := a.Nodes.Call(ctx, r.Target.Node, link.CommandThaw, link.EndCommand{Target: activities.NodeTarget(r.Target), Lease: r.Lease, Grant: grant}, &state)
	if err != nil && errors.Is(err, activities.ErrNodeAway) && !time.Now().Before(r.Until) {
		return nil, nil // its end has passed: the node's agent thaws by itself
	}
	if err != nil {
		return nil, fmt.Errorf("thaw on node %s: %w", r.Target.Node, err)
	}
	return nil, nil
}
