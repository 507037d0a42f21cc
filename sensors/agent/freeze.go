package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"stanch/sensors/attestation"
	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/snapshot"
)

// maxFreezeDuration limits a freeze: the probes of a frozen pod fail, and the kubelet then kills it.
const maxFreezeDuration = 5 * time.Minute

func (a *Agent) freeze(ctx context.Context, c gatewayrpc.ContainmentCommand,
	token attestation.LeaseToken,
) (gatewayrpc.ContainmentState, error) {
	if a.Freezer == nil {
		return gatewayrpc.ContainmentState{}, wrapRefused(errors.New("this node cannot freeze cgroups"))
	}
	if time.Until(c.ExpiresAt) > maxFreezeDuration {
		return gatewayrpc.ContainmentState{},
			wrapRefused(fmt.Errorf("the freeze is too long; the maximum is %s", maxFreezeDuration))
	}
	at, err := a.locateTarget(ctx, c.Target)
	if errors.Is(err, containermeta.ErrNotFound) {
		return gatewayrpc.ContainmentState{TargetGone: true, Note: "the target no longer runs on this node"}, nil
	}
	if err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	if err := token.CheckDrillTarget(at.refs[0].CgroupID); err != nil {
		return gatewayrpc.ContainmentState{}, wrapRefused(err)
	}
	h := snapshot.CgroupFreeze{
		LeaseID: c.LeaseID, TargetID: c.Target.ID(), CgroupDir: at.dirs[0],
		CgroupID: at.refs[0].CgroupID, ExpiresAt: c.ExpiresAt,
	}
	held, ok, err := a.Freezer.FindFreeze(at.dirs...)
	if err != nil {
		return gatewayrpc.ContainmentState{}, fmt.Errorf("read the freeze state: %w", err)
	}
	if !ok || held.LeaseID != c.LeaseID {
		if err := a.checkNotReleased(c.Target.ID(), token); err != nil {
			return gatewayrpc.ContainmentState{}, err
		}
	} else if i := slices.Index(at.dirs, held.CgroupDir); i >= 0 {
		// The target's cgroups may be in another order by now.
		h.CgroupDir, h.CgroupID = at.dirs[i], at.refs[i].CgroupID
	}
	err = a.Freezer.Freeze(ctx, h)
	if snapshot.IsRefused(err) {
		return gatewayrpc.ContainmentState{}, wrapRefused(err)
	}
	if err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	a.failpoint("agent/frozen")
	state, err := a.freezeState(ctx, c.Target)
	state.AppliedAt = time.Now()
	return state, err
}

func (a *Agent) freezeState(ctx context.Context, t gatewayrpc.NodeTarget) (gatewayrpc.ContainmentState, error) {
	if a.Freezer == nil {
		return gatewayrpc.ContainmentState{}, wrapRefused(errors.New("this node cannot freeze cgroups"))
	}
	at, err := a.locateTarget(ctx, t)
	if errors.Is(err, containermeta.ErrNotFound) {
		return gatewayrpc.ContainmentState{TargetGone: true}, nil
	}
	if err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	held, ok, err := a.Freezer.FindFreeze(at.dirs...)
	if err != nil {
		return gatewayrpc.ContainmentState{}, fmt.Errorf("read the freeze state: %w", err)
	}
	if !ok {
		held.CgroupDir = at.dirs[0]
	}
	state, err := snapshot.ReadFreezeState(held.CgroupDir)
	if err != nil {
		return gatewayrpc.ContainmentState{}, fmt.Errorf("read the freeze state: %w", err)
	}
	s := gatewayrpc.ContainmentState{
		Active: ok && state.Requested && state.Frozen, LeaseID: held.LeaseID,
		ExpiresAt: held.ExpiresAt,
	}
	if !ok && (state.Requested || state.Frozen) {
		s.Note = "the cgroup is already frozen, but not by Stanch"
	}
	return s, nil
}

// thaw ends the freeze of a lease, even if its target is gone. It does not change a cgroup that another process has
// frozen or thawed since then.
func (a *Agent) thaw(ctx context.Context, c gatewayrpc.ReleaseCommand,
	keys attestation.Keyring,
) (gatewayrpc.ContainmentState, error) {
	if a.Freezer == nil {
		return gatewayrpc.ContainmentState{}, wrapRefused(errors.New("this node cannot freeze cgroups"))
	}
	held, ok, err := a.Freezer.FreezeOfLease(c.LeaseID)
	if err != nil {
		return gatewayrpc.ContainmentState{}, fmt.Errorf("read the freeze state: %w", err)
	}
	if !ok {
		return gatewayrpc.ContainmentState{}, nil
	}
	state := gatewayrpc.ContainmentState{Active: true, LeaseID: held.LeaseID, ExpiresAt: held.ExpiresAt}
	if time.Now().Before(held.ExpiresAt) {
		grant, err := verifyReleaseGrant(c.Grant, c.LeaseID, keys)
		if err != nil {
			return state, wrapRefused(err)
		}
		if err := a.revocations.record(c.LeaseID, held.TargetID, held.ExpiresAt, grant); err != nil {
			a.logThrottled("record a release", err)
		}
	}
	if err := a.Freezer.Thaw(ctx, c.LeaseID); err != nil {
		return state, err
	}
	return gatewayrpc.ContainmentState{}, nil
}
