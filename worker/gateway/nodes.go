package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc/gatewaypb"
)

// maxHealth bounds what a node may tell of itself, in bytes.
const maxHealth = 256 << 10

// spoke takes in what a node tells of itself, and answers with the time. What it tells too often is not looked at: all of
// it is judged, and reported, on the way that the words of all nodes go.
func (h *Hub) spoke(n *node, health *gatewaypb.Health) error {
	now := time.Now()
	if !n.pace.words.AllowN(now, 1) {
		return nil
	}
	clock := measure(health, n.told, now)
	raw := append(json.RawMessage(nil), health.GetStatus()...)
	if len(raw) > maxHealth || !json.Valid(raw) {
		h.Log.Warn("what a node tells of itself cannot be read", "node", n.name, "bytes", len(raw))
		raw = nil
	}
	n.mu.Lock()
	n.health = raw
	if clock != nil {
		n.clock = clock
	}
	n.mu.Unlock()
	h.note(NodeNote{Node: n.name, What: NodeSpoke, Status: raw, Clock: clock})
	if health.GetTimeNs() == 0 {
		return nil // an older sensor, which does not know the answer
	}
	n.told = time.Now()
	return n.send(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Heard{Heard: &gatewaypb.Heard{TimeNs: n.told.UnixNano()}}})
}

func (h *Hub) pace(name string) *pace {
	h.paces.mu.Lock()
	h.paces.config = h.Limits
	h.paces.mu.Unlock()
	return h.paces.of(name)
}

// paced tells a node that sends more than its rate to wait, and how long. Who does not obey is not read for that long.
func (h *Hub) paced(ctx context.Context, n *node, batch *gatewaypb.Detections) (time.Duration, error) {
	if early := n.pace.early(time.Now()); early > leeway {
		if err := hold(ctx, early); err != nil {
			return 0, err
		}
	}
	size := 0
	for _, raw := range batch.GetDetection() {
		size += len(raw)
	}
	wait := n.pace.take(len(batch.GetDetection()), size, time.Now())
	if wait <= 0 {
		return 0, nil
	}
	h.note(NodeNote{Node: n.name, What: NodeLimited})
	if n.waits {
		return wait, n.send(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Ack{Ack: &gatewaypb.Ack{Sequence: batch.GetSequence(), RetryAfterMs: wait.Milliseconds() + 1}}})
	}
	// An older sensor would take that for an acknowledgement and forget the batch: it is made to wait for the true one.
	for wait > 0 {
		if err := hold(ctx, wait); err != nil {
			return 0, err
		}
		wait = n.pace.take(len(batch.GetDetection()), size, time.Now())
	}
	return 0, nil
}

// NodeState is what the gateway itself knows of a node's stream.
type NodeState struct {
	Since           time.Time `json:"since"`
	CertificateEnds time.Time `json:"certificate_ends"`
	Clock           *Clock    `json:"clock,omitempty"`
	// Limited counts the batches that came too fast.
	Limited uint64 `json:"limited,omitempty"`
}

// Nodes lists the connected nodes with their last health, and under "gateway" with what the gateway itself knows.
func (h *Hub) Nodes() map[string]json.RawMessage {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]json.RawMessage{}
	for name, n := range h.nodes {
		n.mu.Lock()
		state := NodeState{Since: n.since, CertificateEnds: n.ends, Clock: n.clock}
		health := n.health
		n.mu.Unlock()
		n.pace.mu.Lock()
		state.Limited = n.pace.limited
		n.pace.mu.Unlock()
		all := map[string]json.RawMessage{}
		if json.Unmarshal(health, &all) != nil || all == nil {
			all = map[string]json.RawMessage{}
		}
		if raw, err := json.Marshal(state); err == nil {
			all["gateway"] = raw // whatever the node itself put there
		}
		if raw, err := json.Marshal(all); err == nil {
			out[name] = raw
		}
	}
	return out
}

// Away lists the nodes that were connected to this replica within the time given and are not now.
func (h *Hub) Away(within time.Duration) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for name, left := range h.left {
		if h.nodes[name] == nil && time.Since(left) < within {
			out = append(out, name)
		}
	}
	return out
}

// renewals bounds how often each node may ask for a certificate.
type renewals struct {
	mu sync.Mutex
	by map[string]*rate.Limiter
}

const (
	// renewalEvery and renewalBurst are far more than a node needs, which renews every few weeks.
	renewalEvery = 10 * time.Minute
	renewalBurst = 3
)

func (r *renewals) allow(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil || len(r.by) > maxPaces {
		r.by = map[string]*rate.Limiter{}
	}
	if r.by[node] == nil {
		r.by[node] = rate.NewLimiter(rate.Every(renewalEvery), renewalBurst)
	}
	return r.by[node].Allow()
}

// renew gives the node of a stream a certificate for its own name and role, whatever its request says.
func (h *Hub) renew(ctx context.Context, n *node, r *gatewaypb.Renew) error {
	answer := &gatewaypb.Renewed{}
	certificate, err := h.certificate(ctx, n.name, r.GetCsr())
	if err != nil {
		answer.Error = err.Error()
		h.Log.Warn("a node's certificate was not renewed", "node", n.name, "error", err)
		h.note(NodeNote{Node: n.name, What: NodeUnrenewed, Because: err.Error()})
	} else {
		answer.Certificate = certificate
		ends := endOf(certificate)
		n.mu.Lock()
		n.ends = ends
		n.mu.Unlock()
		h.Log.Info("a node's certificate was renewed", "node", n.name, "ends", ends)
		h.note(NodeNote{Node: n.name, What: NodeRenewed, Ends: ends})
	}
	return n.send(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Renewed{Renewed: answer}})
}

func (h *Hub) certificate(ctx context.Context, name string, csr []byte) ([]byte, error) {
	if h.Sign == nil {
		return nil, fmt.Errorf("this gateway issues no certificates")
	}
	if !h.renewals.allow(name) {
		return nil, fmt.Errorf("asked too often: wait %s", duration.Format(renewalEvery))
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return h.Sign(ctx, name, csr)
}
