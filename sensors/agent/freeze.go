package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	h := snapshot.Hold{Lease: c.Lease, Target: c.Target.ID(), Path: at.dirs[0], ID: at.groups[0].CgroupID, Until: c.Until}
	held, ok, err := a.Freezer.Held(at.dirs...)
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the freeze: %w", err)
	}
	if !ok || held.Lease != c.Lease {
		if err := a.anew(c.Target.ID(), token); err != nil {
			return link.HoldState{}, err
		}
	} else if i := slices.Index(at.dirs, held.Path); i >= 0 { // another of its cgroups may be the first by now
		h.Path, h.ID = at.dirs[i], at.groups[i].CgroupID
	}
	err = a.Freezer.Freeze(ctx, h)
	if snapshot.Refused(err) {
		return link.HoldState{}, refused(err)
	}
	if err != nil {
		return link.HoldState{}, err
	}
	a.at("agent/frozen")
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
	held, ok, err := a.Freezer.Held(at.dirs...)
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the freeze: %w", err)
	}
	if !ok {
		held.Path = at.dirs[0]
	}
	state, err := snapshot.Frozen(held.Path)
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the freeze: %w", err)
	}
	s := link.HoldState{Held: ok && state.Asked && state.Frozen, Lease: held.Lease, Until: held.Until}
	if !ok && (state.Asked || state.Frozen) {
		s.Note = "it is frozen already, and not by Stanch"
	}
	return s, nil
}

// thaw ends a lease's freeze, whatever became of its target. What another process froze or thawed since is not touched.
func (a *Agent) thaw(ctx context.Context, c link.EndCommand, keys proof.Keyring) (link.HoldState, error) {
	if a.Freezer == nil {
		return link.HoldState{}, refused(errors.New("this node cannot freeze cgroups"))
	}
	held, ok, err := a.Freezer.Of(c.Lease)
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the freeze: %w", err)
	}
	if !ok {
		return link.HoldState{}, nil
	}
	state := link.HoldState{Held: true, Lease: held.Lease, Until: held.Until}
	if time.Now().Before(held.Until) {
		grant, err := mayEnd(c.Grant, c.Lease, keys)
		if err != nil {
			return state, refused(err)
		}
		if err := a.released.spend(c.Lease, held.Target, held.Until, grant); err != nil {
			a.complain("remember a release", err)
		}
	}
	if err := a.Freezer.Thaw(ctx, c.Lease); err != nil {
		return state, err
	}
	return link.HoldState{}, nil
}
