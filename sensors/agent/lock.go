package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"stanch/sensors/attestation"
	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
)

func (a *Agent) applyLock(ctx context.Context, c gatewayrpc.ContainmentCommand, token attestation.LeaseToken,
	keys attestation.Keyring,
) (gatewayrpc.ContainmentState, error) {
	if a.EgressLock == nil {
		return gatewayrpc.ContainmentState{},
			wrapRefused(fmt.Errorf("the egress lock is disabled on this node: %s", a.EgressLockError))
	}
	at, err := a.locateTarget(ctx, c.Target)
	if errors.Is(err, containermeta.ErrNotFound) {
		return gatewayrpc.ContainmentState{TargetGone: true, Note: "the target no longer runs on this node"}, nil
	}
	if err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	for _, id := range at.cgroupIDs() {
		if err := token.CheckDrillTarget(id); err != nil {
			return gatewayrpc.ContainmentState{}, wrapRefused(err)
		}
	}
	before, err := a.EgressLock.StateOfLease(c.LeaseID)
	if err != nil {
		return gatewayrpc.ContainmentState{}, fmt.Errorf("read the egress lock: %w", err)
	}
	a.addLockedCgroups(&at, before)
	request := probe.EgressLockRequest{
		LeaseID: c.LeaseID, TargetID: c.Target.ID(), Cgroups: at.cgroupIDs(),
		ExpiresAt: c.ExpiresAt,
	}
	if request.AllowList, err = parseAllowList(c.Params); err != nil {
		return gatewayrpc.ContainmentState{}, wrapRefused(err)
	}
	network, notes := a.addNetwork(&request, at, c.Target)
	if err := a.checkReplacement(c, before, request, token, keys); err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	state, err := a.EgressLock.Apply(request)
	a.failpoint("agent/locked")
	if errors.Is(err, probe.ErrLockedByOtherLease) {
		return gatewayrpc.ContainmentState{}, wrapRefused(err)
	}
	if err != nil {
		return gatewayrpc.ContainmentState{}, fmt.Errorf("apply the egress lock: %w", err)
	}
	out := toContainmentState(state)
	out.AppliedAt, out.Note = time.Now(), strings.Join(notes, "; ")
	if state.VethError != "" {
		network.coverageGaps = append(network.coverageGaps, state.VethError)
	}
	out.UnverifiedReason = network.unverifiedReason(state)
	return out, nil
}

// addNetwork adds what is known about the target's network to a request, and returns notes for the result.
func (a *Agent) addNetwork(request *probe.EgressLockRequest, at targetCgroups,
	target gatewayrpc.NodeTarget,
) (network networkAccess, notes []string) {
	network = a.inspectNetwork(at)
	request.Veths, request.HostNetwork = network.veths, network.hostNetwork
	notes = network.notes
	if err := a.refreshKubelets(); err != nil {
		notes = append(notes, err.Error())
	}
	if a.kubeletCount.Load() == 0 && target.PodUID != "" {
		request.AnswerRootSockets = true
		notes = append(
			notes,
			"the kubelet was not found on this node; to keep its probes working, replies to all root processes on the node are allowed; set --kubelet to the path of its binary",
		)
	}
	return network, notes
}

// addLockedCgroups adds the cgroups that the lease already locks and that still exist, so that a target that moves to
// another cgroup stays locked in both.
func (a *Agent) addLockedCgroups(at *targetCgroups, before probe.EgressLockState) {
	for _, id := range before.Cgroups {
		path, err := a.Resolver.CgroupPathByID(id)
		if err != nil {
			continue // gone
		}
		if err := at.add(a.Resolver.CgroupRoot(), containermeta.NamedCgroup{CgroupID: id, Path: path}); err != nil {
			continue // gone
		}
	}
}

// parseAllowList returns the allowed destinations from the parameters of pod.isolate. The token's hash covers these
// parameters, so an allow list from anywhere else is never used.
func parseAllowList(params json.RawMessage) ([]probe.AllowedDestination, error) {
	var p struct {
		Allow []string `json:"allow"`
	}
	if len(params) > 0 {
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("read the parameters: %w", err)
		}
	}
	var out []probe.AllowedDestination
	for _, cidr := range p.Allow {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("allow %q: %w", cidr, err)
		}
		out = append(out, probe.AllowedDestination{Prefix: prefix})
	}
	return out, nil
}

// networkAccess describes how a target reaches the network.
type networkAccess struct {
	veths        []probe.Veth
	hostNetwork  bool
	notes        []string
	coverageGaps []string // why a lock may not cover all of its traffic
}

// inspectNetwork inspects every process of a target. It collects errors as coverage gaps and keeps what it found.
func (a *Agent) inspectNetwork(at targetCgroups) networkAccess {
	var n networkAccess
	if len(at.pids) == 0 {
		n.coverageGaps = append(n.coverageGaps, "the target has no process whose network could be inspected")
		return n
	}
	veths, err := probe.FindVeths(at.pids...)
	n.veths = veths
	if errors.Is(err, probe.ErrHostNetwork) {
		n.hostNetwork = true
		n.coverageGaps = append(n.coverageGaps, "the target shares the node's network: raw packet sockets are not blocked")
	}
	if others := removeCause(err, probe.ErrHostNetwork); others != nil {
		n.coverageGaps = append(n.coverageGaps, others.Error())
	}
	if len(veths) == 0 && !n.hostNetwork {
		n.coverageGaps = append(n.coverageGaps,
			"no host-side veth of the target was found: raw packet sockets are not blocked")
	}
	return n
}

// removeCause removes one cause from joined errors.
func removeCause(err, cause error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var rest []error
		for _, e := range joined.Unwrap() {
			rest = append(rest, removeCause(e, cause))
		}
		return errors.Join(rest...)
	}
	if errors.Is(err, cause) {
		return nil
	}
	return err
}

// unverifiedReason says why it is not certain that a lock blocks all traffic. It returns "" if the effect is verified.
func (n networkAccess) unverifiedReason(state probe.EgressLockState) string {
	if !state.Active {
		return ""
	}
	gaps := n.coverageGaps
	for _, w := range n.veths {
		if !slices.Contains(state.VethIndexes, w.Index) {
			gaps = append(gaps, fmt.Sprintf("the interface %s is not locked", w.Name))
		}
	}
	return strings.Join(gaps, "; ")
}

// checkReplacement checks whether a request weakens the lock of its lease that is in force. Another target is refused.
// An earlier end or a wider allow list requires a grant.
func (a *Agent) checkReplacement(c gatewayrpc.ContainmentCommand, before probe.EgressLockState,
	r probe.EgressLockRequest, token attestation.LeaseToken, keys attestation.Keyring,
) error {
	if !before.Active {
		return a.checkNotReleased(c.Target.ID(), token)
	}
	if before.TargetID != r.TargetID {
		return wrapRefused(fmt.Errorf("lease %s already locks another target, %s; use a new lease", c.LeaseID,
			before.TargetID))
	}
	less := ""
	if c.ExpiresAt.Before(before.ExpiresAt.Add(-expiryTolerance)) {
		less = fmt.Sprintf("end a lock at %s instead of %s", c.ExpiresAt.Format(time.RFC3339),
			before.ExpiresAt.Format(time.RFC3339))
	}
	open := a.EgressLock.AllowList(c.LeaseID)
	for _, wanted := range r.AllowList {
		if !slices.ContainsFunc(open, func(o probe.AllowedDestination) bool { return o.Covers(wanted) }) {
			less = fmt.Sprintf("allow %s in a lock", wanted.Prefix)
			break
		}
	}
	if less == "" {
		return nil
	}
	if _, err := verifyReleaseGrant(c.Grant, c.LeaseID, keys); err != nil {
		return wrapRefused(fmt.Errorf("%s: %w", less, err))
	}
	return nil
}

func toContainmentState(s probe.EgressLockState) gatewayrpc.ContainmentState {
	return gatewayrpc.ContainmentState{
		Active: s.Active, LeaseID: s.LeaseID, ExpiresAt: s.ExpiresAt,
		VethLocked: s.VethLocked, DeniedPackets: s.DeniedPackets,
	}
}

func (a *Agent) lockState(ctx context.Context, t gatewayrpc.NodeTarget) (gatewayrpc.ContainmentState, error) {
	if a.EgressLock == nil {
		return gatewayrpc.ContainmentState{},
			wrapRefused(fmt.Errorf("the egress lock is disabled on this node: %s", a.EgressLockError))
	}
	at, err := a.locateTarget(ctx, t)
	if errors.Is(err, containermeta.ErrNotFound) {
		return gatewayrpc.ContainmentState{TargetGone: true}, nil
	}
	if err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	state, err := a.findCoveringLock(at)
	if err != nil {
		return gatewayrpc.ContainmentState{}, err
	}
	out := toContainmentState(state)
	if t.PodUID == "" {
		out.NetworkSharers = a.netnsSharers(at)
	}
	if !out.Active {
		return out, nil
	}
	// A pod whose sandbox was recreated has another veth than the locked one.
	network := a.inspectNetwork(at)
	for _, w := range network.veths {
		out.VethLocked = out.VethLocked && slices.Contains(state.VethIndexes, w.Index)
	}
	out.UnverifiedReason = network.unverifiedReason(state)
	return out, nil
}

// findCoveringLock returns the lock that covers all cgroups of a target, or an inactive state if one of them is not
// locked by the same lease.
func (a *Agent) findCoveringLock(at targetCgroups) (probe.EgressLockState, error) {
	var all probe.EgressLockState
	for i, id := range at.cgroupIDs() {
		state, err := a.EgressLock.StateOfCgroup(id)
		if err != nil {
			return probe.EgressLockState{}, fmt.Errorf("read the egress lock: %w", err)
		}
		if !state.Active || i > 0 && state.LeaseID != all.LeaseID {
			return probe.EgressLockState{}, nil
		}
		all = state
	}
	return all, nil
}

// releaseLock removes the lock of a lease, even if its target is gone: the target's veth may be used by other
// containers.
func (a *Agent) releaseLock(ctx context.Context, c gatewayrpc.ReleaseCommand,
	keys attestation.Keyring,
) (gatewayrpc.ContainmentState, error) {
	if a.EgressLock == nil {
		return gatewayrpc.ContainmentState{},
			wrapRefused(fmt.Errorf("the egress lock is disabled on this node: %s", a.EgressLockError))
	}
	state, err := a.EgressLock.StateOfLease(c.LeaseID)
	if err != nil {
		return gatewayrpc.ContainmentState{}, fmt.Errorf("read the egress lock: %w", err)
	}
	if state.Active {
		grant, err := verifyReleaseGrant(c.Grant, c.LeaseID, keys)
		if err != nil {
			return toContainmentState(state), wrapRefused(err)
		}
		// The target comes from the lock: a command that names another target must not count as a release of that
		// target.
		if err := a.revocations.record(c.LeaseID, state.TargetID, state.ExpiresAt, grant); err != nil {
			a.logThrottled("record a release", err)
		}
	}
	if err := a.EgressLock.Release(c.LeaseID); err != nil {
		return toContainmentState(state), fmt.Errorf("release the egress lock: %w", err)
	}
	a.failpoint("agent/unlocked")
	after, err := a.lockState(ctx, c.Target)
	if err != nil {
		return gatewayrpc.ContainmentState{}, nil //nolint:nilerr // the lock is released in any case
	}
	return after, nil
}

// kubeletRefreshInterval is how often the kubelet is searched while a lock is in force. A restarted kubelet has
// another cgroup, and after three failed probes it restarts the container.
const kubeletRefreshInterval = 5 * time.Second

// refreshKubelets updates which sockets the lock treats as the kubelet's. If no kubelet is found, the previous ones
// stay, because it may be restarting.
func (a *Agent) refreshKubelets() error {
	found, err := probe.FindKubelets(a.KubeletPath)
	if err != nil {
		return fmt.Errorf("find the kubelet: %w", err)
	}
	if len(found) == 0 {
		return nil
	}
	a.kubeletCount.Store(int64(len(found)))
	if err := a.EgressLock.SetProbers(found); err != nil {
		return fmt.Errorf("set the kubelet in the egress lock: %w", err)
	}
	return nil
}

// refreshNodeAddresses updates what the locks know about the node, its kubelet and its MAC addresses, until ctx ends.
func (a *Agent) refreshNodeAddresses(ctx context.Context) {
	if a.EgressLock == nil {
		return
	}
	tick := time.NewTicker(kubeletRefreshInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		held, err := a.EgressLock.List()
		if err == nil && len(held) > 0 {
			err = errors.Join(a.refreshKubelets(), a.EgressLock.RefreshNodeMACs())
		}
		for _, state := range held {
			err = errors.Join(err, a.extendLock(ctx, state))
		}
		if err != nil {
			a.logThrottled("update the egress locks", err)
		}
	}
}

// extendLock extends a lock to the current cgroups and veths of its target, because a restarted container has another
// cgroup and perhaps another veth. It only adds.
func (a *Agent) extendLock(ctx context.Context, state probe.EgressLockState) error {
	var t gatewayrpc.NodeTarget
	var ok bool
	if t.PodUID, ok = strings.CutPrefix(state.TargetID, "pod:"); !ok {
		if t.PodUID = ""; state.TargetID == "" {
			return nil
		}
		t.ContainerID = strings.TrimPrefix(state.TargetID, "container:")
	}
	at, err := a.locateTarget(ctx, t)
	if errors.Is(err, containermeta.ErrNotFound) || errors.Is(err, gatewayrpc.ErrRefused) {
		return nil // the target is gone, or Health reports the spoofed cgroups
	}
	if err != nil {
		return fmt.Errorf("locate %s: %w", state.TargetID, err)
	}
	var fresh []probe.Veth
	for _, w := range a.inspectNetwork(at).veths {
		if !slices.Contains(state.VethIndexes, w.Index) {
			fresh = append(fresh, w)
		}
	}
	var groups []uint64
	for _, id := range at.cgroupIDs() {
		if !slices.Contains(state.Cgroups, id) {
			groups = append(groups, id)
		}
	}
	if len(groups) == 0 && len(fresh) == 0 {
		return nil
	}
	a.Log.Warn("a locked target has moved; extending its lock", "lease", state.LeaseID, "target", state.TargetID,
		"cgroups", groups, "veths", len(fresh))
	if err := a.EgressLock.AddTargets(state.LeaseID, groups, fresh); err != nil {
		return fmt.Errorf("extend the lock of %s: %w", state.TargetID, err)
	}
	return nil
}
