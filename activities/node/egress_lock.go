package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
)

// queryLockState queries the node. away is the reason if the node's lock cannot be used.
func (a *IsolateAction) queryLockState(ctx context.Context, r activities.Request) (state gatewayrpc.ContainmentState,
	away string, err error,
) {
	_, err = a.NodeClient.Call(ctx, r.Target.Node, gatewayrpc.CommandLockState,
		gatewayrpc.StateQuery{Target: activities.ToNodeTarget(r.Target)}, &state)
	switch {
	case errors.Is(err, activities.ErrNodeNotConnected):
		return state, err.Error(), nil
	case errors.Is(err, gatewayrpc.ErrRefused):
		return state, err.Error(), nil
	case err != nil:
		return state, "", fmt.Errorf("ask the node: %w", err)
	}
	return state, "", nil
}

func (a *IsolateAction) applyNodeLock(ctx context.Context, r activities.Request,
	token attestation.Envelope,
) (gatewayrpc.ContainmentState, error) {
	cmd := gatewayrpc.ContainmentCommand{
		Target: activities.ToNodeTarget(r.Target), Action: r.Action, LeaseID: r.LeaseID,
		ExpiresAt: r.ExpiresAt, Params: r.Params, Token: token, Grant: r.ReleaseGrant,
	}
	var state gatewayrpc.ContainmentState
	if _, err := a.NodeClient.Call(ctx, r.Target.Node, gatewayrpc.CommandLock, cmd, &state); err != nil {
		return state, fmt.Errorf("lock on node %s: %w", r.Target.Node, err)
	}
	return state, nil
}

// releaseNodeLock releases the lock of a lease.
func (a *IsolateAction) releaseNodeLock(ctx context.Context, r activities.Request, grant *attestation.Envelope) error {
	var state gatewayrpc.ContainmentState
	_, err := a.NodeClient.Call(ctx, r.Target.Node, gatewayrpc.CommandUnlock,
		gatewayrpc.ReleaseCommand{Target: activities.ToNodeTarget(r.Target), LeaseID: r.LeaseID, Grant: grant}, &state)
	if errors.Is(err, activities.ErrNodeNotConnected) && !time.Now().Before(r.ExpiresAt) {
		return nil // its end has passed: the kernel has already released it
	}
	if err != nil {
		return fmt.Errorf("unlock on node %s: %w", r.Target.Node, err)
	}
	return nil
}
