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

	"stanch/sensors/identity"
	"stanch/sensors/link"
	"stanch/sensors/probe"
	"stanch/sensors/proof"
)

func (a *Agent) lock(ctx context.Context, c link.HoldCommand, token proof.Token, keys proof.Keyring) (link.HoldState, error) {
	if a.Lock == nil {
		return link.HoldState{}, refused(fmt.Errorf("the egress lock is off on this node: %s", a.LockWhy))
	}
	at, err := a.find(ctx, c.Target)
	if errors.Is(err, identity.ErrNotFound) {
		return link.HoldState{Gone: true, Note: "it no longer runs on this node"}, nil
	}
	if err != nil {
		return link.HoldState{}, err
	}
	for _, id := range at.cgroups() {
		if err := token.CheckDrill(id); err != nil {
			return link.HoldState{}, refused(err)
		}
	}
	before, err := a.Lock.Lease(c.Lease)
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the egress lock: %w", err)
	}
	a.keep(&at, before)
	request := probe.LockRequest{Lease: c.Lease, Target: c.Target.ID(), Cgroups: at.cgroups(), Until: c.Until}
	if request.Allow, err = allowed(c.Params); err != nil {
		return link.HoldState{}, refused(err)
	}
	network := a.network(at)
	request.Wires, request.HostNetwork = network.wires, network.host
	notes := network.notes
	if err := a.followProbers(); err != nil {
		notes = append(notes, err.Error())
	}
	if a.kubelets.Load() == 0 && c.Target.PodUID != "" {
		request.RootProbes = true
		notes = append(notes, "this node's kubelet was not found: connections of every root process of the node are answered, so that probes go on; name its program with --kubelet")
	}
	if err := a.mayReplace(c, before, request, token, keys); err != nil {
		return link.HoldState{}, err
	}
	state, err := a.Lock.Apply(request)
	a.at("agent/locked")
	if errors.Is(err, probe.ErrHeld) {
		return link.HoldState{}, refused(err)
	}
	if err != nil {
		return link.HoldState{}, fmt.Errorf("apply the egress lock: %w", err)
	}
	out := holdState(state)
	out.AppliedAt, out.Note = time.Now(), strings.Join(notes, "; ")
	if state.WireProblem != "" {
		network.gaps = append(network.gaps, state.WireProblem)
	}
	out.Unverified = network.unverified(state)
	return out, nil
}

// keep adds to where a target is now what its lease holds already and what is still there: a target that moves to another
// cgroup is held there too, and not let go where it was.
func (a *Agent) keep(at *place, before probe.LockState) {
	for _, id := range before.Cgroups {
		path, err := a.Resolver.PathOf(id)
		if err != nil {
			continue // gone
		}
		if err := at.add(a.Resolver.CgroupRoot(), identity.Bearer{CgroupID: id, Path: path}); err != nil {
			continue // gone
		}
	}
}

// allowed reads the destinations that the parameters of pod.isolate leave open. They are read from what the token's hash
// covers, and from nothing else.
func allowed(params json.RawMessage) ([]probe.Allow, error) {
	var p struct {
		Allow []string `json:"allow"`
	}
	if len(params) > 0 {
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, fmt.Errorf("read the parameters: %w", err)
		}
	}
	var out []probe.Allow
	for _, cidr := range p.Allow {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("allow %q: %w", cidr, err)
		}
		out = append(out, probe.Allow{Prefix: prefix})
	}
	return out, nil
}

// network is how a target reaches the network.
type network struct {
	wires []probe.Wire
	host  bool
	notes []string
	gaps  []string // why something that it sends may not be held
}

// network looks at every process of a target. What cannot be looked at takes nothing away from what was found.
func (a *Agent) network(at place) network {
	var n network
	if len(at.pids) == 0 {
		n.gaps = append(n.gaps, "it has no process whose network could be looked at")
		return n
	}
	wires, err := probe.FindWires(at.pids...)
	n.wires = wires
	if errors.Is(err, probe.ErrHostNetwork) {
		n.host = true
		n.gaps = append(n.gaps, "it shares the node's network: raw packet sockets are not held")
	}
	if others := without(err, probe.ErrHostNetwork); others != nil {
		n.gaps = append(n.gaps, others.Error())
	}
	if len(wires) == 0 && !n.host {
		n.gaps = append(n.gaps, "no network interface of it with an end on this node was found: raw packet sockets are not held")
	}
	return n
}

// without takes one cause out of joined errors.
func without(err, cause error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // its parts are wanted, not a cause
		var rest []error
		for _, e := range joined.Unwrap() {
			rest = append(rest, without(e, cause))
		}
		return errors.Join(rest...)
	}
	if errors.Is(err, cause) {
		return nil
	}
	return err
}

// unverified says why nobody can say of a lock that nothing passes; "" where its effect is observed.
func (n network) unverified(state probe.LockState) string {
	if !state.Held {
		return ""
	}
	gaps := n.gaps
	for _, w := range n.wires {
		if !slices.Contains(state.Wires, w.Index) {
			gaps = append(gaps, fmt.Sprintf("its interface %s is not held", w.Name))
		}
	}
	return strings.Join(gaps, "; ")
}

// mayReplace checks what a request would take from the lock that its lease has in force already: another target, an
// earlier end and a wider allow list all let go of something, and that needs a grant or is refused.
func (a *Agent) mayReplace(c link.HoldCommand, before probe.LockState, r probe.LockRequest, token proof.Token, keys proof.Keyring) error {
	if !before.Held {
		return a.anew(c.Target.ID(), token)
	}
	if before.Target != r.Target {
		return refused(fmt.Errorf("lease %s holds another target, %s; a lease is for one", c.Lease, before.Target))
	}
	less := ""
	if c.Until.Before(before.Until.Add(-endTolerance)) {
		less = fmt.Sprintf("ending a lock at %s instead of %s", c.Until.Format(time.RFC3339), before.Until.Format(time.RFC3339))
	}
	open := a.Lock.Open(c.Lease)
	for _, wanted := range r.Allow {
		if !slices.ContainsFunc(open, func(o probe.Allow) bool { return o.Covers(wanted) }) {
			less = fmt.Sprintf("opening a lock to %s", wanted.Prefix)
			break
		}
	}
	if less == "" {
		return nil
	}
	if _, err := mayEnd(c.Grant, c.Lease, keys); err != nil {
		return refused(fmt.Errorf("%s: %w", less, err))
	}
	return nil
}

func holdState(s probe.LockState) link.HoldState {
	return link.HoldState{Held: s.Held, Lease: s.Lease, Until: s.Until, Wire: s.Wire, Denied: s.Denied}
}

func (a *Agent) lockState(ctx context.Context, t link.NodeTarget) (link.HoldState, error) {
	if a.Lock == nil {
		return link.HoldState{}, refused(fmt.Errorf("the egress lock is off on this node: %s", a.LockWhy))
	}
	at, err := a.find(ctx, t)
	if errors.Is(err, identity.ErrNotFound) {
		return link.HoldState{Gone: true}, nil
	}
	if err != nil {
		return link.HoldState{}, err
	}
	state, err := a.held(at)
	if err != nil {
		return link.HoldState{}, err
	}
	out := holdState(state)
	if t.PodUID == "" {
		out.Shared = a.sharers(at)
	}
	if !out.Held {
		return out, nil
	}
	// A pod whose sandbox was made anew has another wire than the one that is held.
	network := a.network(at)
	for _, w := range network.wires {
		out.Wire = out.Wire && slices.Contains(state.Wires, w.Index)
	}
	out.Unverified = network.unverified(state)
	return out, nil
}

// held gives the lock that holds all of a target's cgroups. Where one of them is not held, the target is not.
func (a *Agent) held(at place) (probe.LockState, error) {
	var all probe.LockState
	for i, id := range at.cgroups() {
		state, err := a.Lock.State(id)
		if err != nil {
			return probe.LockState{}, fmt.Errorf("read the egress lock: %w", err)
		}
		if !state.Held || i > 0 && state.Lease != all.Lease {
			return probe.LockState{}, nil
		}
		all = state
	}
	return all, nil
}

// unlock lifts the lock of a lease, wherever its target is now: also one that is gone has others behind its wire.
func (a *Agent) unlock(ctx context.Context, c link.EndCommand, keys proof.Keyring) (link.HoldState, error) {
	if a.Lock == nil {
		return link.HoldState{}, refused(fmt.Errorf("the egress lock is off on this node: %s", a.LockWhy))
	}
	state, err := a.Lock.Lease(c.Lease)
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the egress lock: %w", err)
	}
	if state.Held {
		grant, err := mayEnd(c.Grant, c.Lease, keys)
		if err != nil {
			return holdState(state), refused(err)
		}
		// By the lock's own word: a command that names another target must not count as a release of that one.
		if err := a.released.spend(c.Lease, state.Target, state.Until, grant); err != nil {
			a.complain("remember a release", err)
		}
	}
	if err := a.Lock.Release(c.Lease); err != nil {
		return holdState(state), fmt.Errorf("lift the egress lock: %w", err)
	}
	a.at("agent/unlocked")
	after, err := a.lockState(ctx, c.Target)
	if err != nil {
		return link.HoldState{}, nil //nolint:nilerr // it is lifted, whatever can be said of its target
	}
	return after, nil
}

// probersEvery is how often the kubelet is looked for while a lock is in force: one that is started again has another
// cgroup, and after three failed probes it restarts the container.
const probersEvery = 5 * time.Second

// followProbers tells the lock which sockets are the kubelet's. A kubelet that is not there keeps its place: it may be
// about to start again.
func (a *Agent) followProbers() error {
	found, err := probe.FindKubelets(a.Kubelet)
	if err != nil {
		return fmt.Errorf("find the kubelet: %w", err)
	}
	if len(found) == 0 {
		return nil
	}
	a.kubelets.Store(int64(len(found)))
	if err := a.Lock.SetProbers(found); err != nil {
		return fmt.Errorf("tell the egress lock about the kubelet: %w", err)
	}
	return nil
}

// followNode keeps what the locks in force know of the node true until ctx ends: its kubelet, its MAC addresses.
func (a *Agent) followNode(ctx context.Context) {
	if a.Lock == nil {
		return
	}
	tick := time.NewTicker(probersEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		held, err := a.Lock.List()
		if err == nil && len(held) > 0 {
			err = errors.Join(a.followProbers(), a.Lock.Refresh())
		}
		for _, state := range held {
			err = errors.Join(err, a.follow(ctx, state))
		}
		if err != nil {
			a.complain("follow the node", err)
		}
	}
}

// follow holds a lock's target where it is now: a container that was started again has another cgroup, and perhaps another
// wire. It only adds.
func (a *Agent) follow(ctx context.Context, state probe.LockState) error {
	var t link.NodeTarget
	var ok bool
	if t.PodUID, ok = strings.CutPrefix(state.Target, "pod:"); !ok {
		if t.PodUID = ""; state.Target == "" {
			return nil
		}
		t.ContainerID = strings.TrimPrefix(state.Target, "container:")
	}
	at, err := a.find(ctx, t)
	if errors.Is(err, identity.ErrNotFound) || errors.Is(err, link.ErrRefused) {
		return nil // gone, or it is said in the health
	}
	if err != nil {
		return fmt.Errorf("follow %s: %w", state.Target, err)
	}
	var fresh []probe.Wire
	for _, w := range a.network(at).wires {
		if !slices.Contains(state.Wires, w.Index) {
			fresh = append(fresh, w)
		}
	}
	var groups []uint64
	for _, id := range at.cgroups() {
		if !slices.Contains(state.Cgroups, id) {
			groups = append(groups, id)
		}
	}
	if len(groups) == 0 && len(fresh) == 0 {
		return nil
	}
	a.Log.Warn("a locked target has moved; the lock follows it", "lease", state.Lease, "target", state.Target, "cgroups", groups, "wires", len(fresh))
	if err := a.Lock.Add(state.Lease, groups, fresh); err != nil {
		return fmt.Errorf("hold %s where it is now: %w", state.Target, err)
	}
	return nil
}
