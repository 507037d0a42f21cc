package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/link"
)

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("parse %q: %w", s, err)
	}
	return p, nil
}

// Snapshot is `evidence: process.snapshot`.
type Snapshot struct{ Nodes activities.Nodes }

var _ activities.Observer = (*Snapshot)(nil)

// Spec declares process.snapshot.
func (*Snapshot) Spec() playbooks.Spec {
	return playbooks.Spec{
		Name: "process.snapshot", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer}, D3FEND: "D3-PA",
		Doc: "Keep the processes, their sockets and files, and a copy of executables that are not in the image.",
	}
}

// Observe asks the node for the snapshot.
func (a *Snapshot) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	proofs := activities.Proofs(ctx)
	if len(proofs) == 0 {
		return activities.Observation{}, activities.Refuse("no attested detection is about %s: a node shows its processes only for one", r.Target)
	}
	var taken json.RawMessage
	blobs, err := a.Nodes.Call(ctx, r.Target.Node, link.CommandSnapshot,
		link.SnapshotCommand{Target: activities.NodeTarget(r.Target), Proof: proofs[len(proofs)-1]}, &taken)
	if err != nil {
		return activities.Observation{}, fmt.Errorf("snapshot on node %s: %w", r.Target.Node, err)
	}
	out := activities.Observation{Pieces: []activities.Piece{{Name: "processes.json", Data: taken}}}
	for _, b := range blobs {
		out.Pieces = append(out.Pieces, activities.Piece{Name: b.Name, Data: b.Data})
	}
	var missing struct {
		Missing []string `json:"missing"`
	}
	if json.Unmarshal(taken, &missing) == nil && len(missing.Missing) > 0 {
		out.Note = fmt.Sprintf("incomplete: %s", missing.Missing[0])
	}
	return out, nil
}
