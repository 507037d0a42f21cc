package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"stanch/sensors/identity"
	"stanch/sensors/link"
	"stanch/sensors/proof"
	"stanch/sensors/snapshot"
)

// maxFreeze bounds a freeze: probes of a frozen pod fail and the kubelet kills it.
const maxFreeze = 5 * time.Minute

func (a *Agent) freeze(ctx context.Context, c link.HoldCommand, token proof.Token) (link.HoldState, error) {
	if a.Freezer == nil {
		return link.HoldState{}, refused(errors.New("this node cannot freeze cgroups"))
	}
	if time.Until(c.Until) > maxFreeze {
		return link.HoldState{}, refused(fmt.Errorf("a freeze is at most %s", maxFreeze))
	}
	at, err := a.find(ctx, c.Target)
	if errors.Is(err, identity.ErrNotFound) {
		return link.HoldState{Gone: true, Note: "it no longer runs on this node"}, nil
	}
	if err != nil {
		return link.HoldState{}, err
	}
	if err := token.CheckDrill(at.groups[0].CgroupID); err != nil {
		return link.HoldState{}, refused(err)
	}
	if lease, _ := a.Freezer.Held(at.dirs[0]); lease != c.Lease {
		if err := a.anew(c.Target.ID(), token); err != nil {
			return link.HoldState{}, err
		}
	}
	if err := a.Freezer.Freeze(ctx, c.Lease, at.dirs[0], c.Until); err != nil {
		return link.HoldState{}, fmt.Errorf("freeze: %w", err)
	}
	state, err := a.freezeState(ctx, c.Target)
	state.AppliedAt = time.Now()
	return state, err
}

func (a *Agent) freezeState(ctx context.Context, t link.NodeTarget) (link.HoldState, error) {
	if a.Freezer == nil {
		return link.HoldState{}, refused(errors.New("this node cannot freeze cgroups"))
	}
	at, err := a.find(ctx, t)
	if errors.Is(err, identity.ErrNotFound) {
		return link.HoldState{Gone: true}, nil
	}
	if err != nil {
		return link.HoldState{}, err
	}
	state, err := snapshot.Frozen(at.dirs[0])
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the freeze: %w", err)
	}
	lease, until := a.Freezer.Held(at.dirs[0])
	return link.HoldState{Held: state.Frozen && lease != "", Lease: lease, Until: until}, nil
}
