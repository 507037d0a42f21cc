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

func parseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("parse %q: %w", s, err)
	}
	return p, nil
}

// SnapshotAction is `evidence: process.snapshot`.
type SnapshotAction struct{ NodeClient activities.NodeClient }

var _ activities.Observer = (*SnapshotAction)(nil)

// Spec returns the spec of process.snapshot.
func (*SnapshotAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "process.snapshot", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetPod, playbooks.TargetContainer}, D3FENDTechnique: "D3-PA",
		Doc: "Capture the processes, their sockets and files, and a copy of executables that are not in the image.",
	}
}

// Observe requests a snapshot from the node.
func (a *SnapshotAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	proofs := activities.AttestationsFromContext(ctx)
	if len(proofs) == 0 {
		return activities.Observation{}, activities.Refusef(
			"%s has no attested detection; a node reveals a target's processes only if it has one",
			r.Target,
		)
	}
	var taken json.RawMessage
	blobs, err := a.NodeClient.Call(ctx, r.Target.Node, gatewayrpc.CommandSnapshot,
		gatewayrpc.SnapshotCommand{Target: activities.ToNodeTarget(r.Target), Attestation: proofs[len(proofs)-1]}, &taken)
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
	_ = json.Unmarshal(taken, &said) // an unreadable snapshot is stored as it is
	source := "node " + r.Target.Node
	out := activities.Observation{Artifacts: []activities.Artifact{{
		Name: "processes.json", Data: taken,
		CapturedFrom: source,
	}}}
	for _, b := range blobs {
		piece := activities.Artifact{Name: b.Name, Data: b.Data, CapturedFrom: source}
		for _, hashed := range said.Blobs {
			if hashed.Name == b.Name {
				piece.SHA256 = hashed.SHA256
			}
		}
		out.Artifacts = append(out.Artifacts, piece)
	}
	if len(said.Missing) > 0 {
		out.MissingNote = fmt.Sprintf("incomplete: %s", said.Missing[0])
	}
	return out, nil
}
