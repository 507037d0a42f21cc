package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/gatewayrpc"
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
func (*Snapshot) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "process.snapshot", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer}, D3FENDTechnique: "D3-PA",
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
	blobs, err := a.Nodes.Call(ctx, r.Target.Node, gatewayrpc.CommandSnapshot,
		gatewayrpc.SnapshotCommand{Target: activities.NodeTarget(r.Target), Attestation: proofs[len(proofs)-1]}, &taken)
	if err != nil {
		return activities.Observation{}, fmt.Errorf("snapshot on node %s: %w", r.Target.Node, err)
	}
	var said struct {
		Missing []string `json:"missing"`
		Blobs   []struct {
			Name   string `json:"name"`
			SHA256 string `json:"sha256"`
		} `json:"blobs"`
	}
	_ = json.Unmarshal(taken, &said) // a node that says nothing readable is kept as it is
	source := "node " + r.Target.Node
	out := activities.Observation{Pieces: []activities.Piece{{Name: "processes.json", Data: taken, Source: source}}}
	for _, b := range blobs {
		piece := activities.Piece{Name: b.Name, Data: b.Data, Source: source}
		for _, hashed := range said.Blobs {
			if hashed.Name == b.Name {
				piece.SHA256 = hashed.SHA256
			}
		}
		out.Pieces = append(out.Pieces, piece)
	}
	if len(said.Missing) > 0 {
		out.Note = fmt.Sprintf("incomplete: %s", said.Missing[0])
	}
	return out, nil
}
