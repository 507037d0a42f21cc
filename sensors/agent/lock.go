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
	if err := token.CheckDrill(at.cgroupID); err != nil {
		return link.HoldState{}, refused(err)
	}
	request := probe.LockRequest{Lease: c.Lease, Cgroups: []uint64{at.cgroupID}, Until: c.Until}
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
	if err := a.mayReplace(c, request, token, keys); err != nil {
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
func (a *Agent) mayReplace(c link.HoldCommand, r probe.LockRequest, token proof.Token, keys proof.Keyring) error {
	before, err := a.Lock.Lease(c.Lease)
	if err != nil {
		return fmt.Errorf("read the egress lock: %w", err)
	}
	if !before.Held {
		return a.anew(c.Target.ID(), token)
	}
	if !slices.Equal(before.Cgroups, r.Cgroups) {
		return refused(fmt.Errorf("lease %s holds another target; a lease is for one", c.Lease))
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
	state, err := a.Lock.State(at.cgroupID)
	if err != nil {
		return link.HoldState{}, fmt.Errorf("read the egress lock: %w", err)
	}
	out := holdState(state)
	if out.Held {
		// A pod whose sandbox was made anew has another wire than the one that is held.
		network := a.network(at)
		for _, w := range network.wires {
			out.Wire = out.Wire && slices.Contains(state.Wires, w.Index)
		}
		out.Unverified = network.unverified(state)
	}
	return out, nil
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
		if err != nil {
			a.complain("follow the node", err)
		}
	}
}
