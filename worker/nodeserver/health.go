package nodeserver

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/worker/ratelimit"
)

// maxHealthBytes is the maximum size of a health report.
const maxHealthBytes = 256 << 10

// handleHealthReport handles a node's health report, and answers with the time. It ignores reports above the node's
// rate, because every report is evaluated in a queue that all nodes share.
func (h *Server) handleHealthReport(n *nodeConnection, health *gatewaypb.Health) error {
	now := time.Now()
	if !n.rateLimit.healthReports.AllowN(now, 1) {
		return nil
	}
	clock := measureClockSkew(health, n.timeSentAt, now)
	raw := append(json.RawMessage(nil), health.GetStatus()...)
	if len(raw) > maxHealthBytes || !json.Valid(raw) {
		h.Log.Warn("parse the health report of a node", "node", n.name, "bytes", len(raw))
		raw = nil
	}
	n.mu.Lock()
	n.lastHealth = raw
	if clock != nil {
		n.clockSkew = clock
	}
	n.mu.Unlock()
	h.notifyMonitor(Event{Node: n.name, Kind: Reported, Status: raw, ClockSkew: clock})
	if health.GetTimeNs() == 0 {
		return nil // an older sensor, which does not know the response
	}
	n.timeSentAt = time.Now()
	return n.sendMessage(
		&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Heard{Heard: &gatewaypb.Heard{TimeNs: n.timeSentAt.UnixNano()}}},
	)
}

func (h *Server) rateLimitFor(name string) *nodeRateLimit {
	h.rateLimits.mu.Lock()
	h.rateLimits.config = h.NodeLimits
	h.rateLimits.mu.Unlock()
	return h.rateLimits.forNode(name)
}

// throttle tells a node above its rate how long to wait, and returns that time. A node that ignores it is not read for
// so long.
func (h *Server) throttle(ctx context.Context, n *nodeConnection, batch *gatewaypb.Detections) (time.Duration,
	error,
) {
	if early := n.rateLimit.remainingWait(time.Now()); early > earlyTolerance {
		if err := sleep(ctx, early); err != nil {
			return 0, err
		}
	}
	size := 0
	for _, raw := range batch.GetDetection() {
		size += len(raw)
	}
	wait := n.rateLimit.reserveBatch(len(batch.GetDetection()), size, time.Now())
	if wait <= 0 {
		return 0, nil
	}
	h.notifyMonitor(Event{Node: n.name, Kind: RateLimited})
	if n.supportsThrottle {
		return wait, n.sendMessage(
			&gatewaypb.ToNode{
				Body: &gatewaypb.ToNode_Ack{
					Ack: &gatewaypb.Ack{Sequence: batch.GetSequence(), RetryAfterMs: wait.Milliseconds() + 1},
				},
			},
		)
	}
	// An older sensor would treat the message as an acknowledgment and drop the batch, so the real acknowledgment is
	// delayed instead.
	for wait > 0 {
		if err := sleep(ctx, wait); err != nil {
			return 0, err
		}
		wait = n.rateLimit.reserveBatch(len(batch.GetDetection()), size, time.Now())
	}
	return 0, nil
}

// NodeStreamState is the gateway's own data about a node's stream.
type NodeStreamState struct {
	ConnectedSince       time.Time  `json:"connected_since"`
	CertificateExpiresAt time.Time  `json:"certificate_expires_at"`
	ClockSkew            *ClockSkew `json:"clock_skew,omitempty"`
	// LimitedBatches counts the batches above the rate.
	LimitedBatches uint64 `json:"limited_batches,omitempty"`
}

// ConnectedNodes returns the connected nodes with their last health report. The key "gateway" contains the gateway's
// own data.
func (h *Server) ConnectedNodes() map[string]json.RawMessage {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]json.RawMessage{}
	for name, n := range h.nodes {
		n.mu.Lock()
		state := NodeStreamState{
			ConnectedSince: n.connectedAt, CertificateExpiresAt: n.certificateExpiry,
			ClockSkew: n.clockSkew,
		}
		health := n.lastHealth
		n.mu.Unlock()
		n.rateLimit.mu.Lock()
		state.LimitedBatches = n.rateLimit.limitedBatches
		n.rateLimit.mu.Unlock()
		all := map[string]json.RawMessage{}
		if json.Unmarshal(health, &all) != nil || all == nil {
			all = map[string]json.RawMessage{}
		}
		if raw, err := json.Marshal(state); err == nil {
			all["gateway"] = raw // overwrites whatever the node itself sent there
		}
		if raw, err := json.Marshal(all); err == nil {
			out[name] = raw
		}
	}
	return out
}

// DisconnectedNodes returns the nodes that were connected to this replica within a duration, and are not now.
func (h *Server) DisconnectedNodes(within time.Duration) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for name, left := range h.disconnectedAt {
		if h.nodes[name] == nil && time.Since(left) < within {
			out = append(out, name)
		}
	}
	return out
}

// renewalInterval and renewalBurst are far more than a node needs, which renews every few weeks.
const (
	renewalInterval = 10 * time.Minute
	renewalBurst    = 3
)

// renewalLimit limits how often each node may request a certificate.
func renewalLimit() ratelimit.Limit {
	return ratelimit.Limit{Rate: rate.Every(renewalInterval), Burst: renewalBurst}
}

// renewCertificate issues a certificate for the node's own name and role, whatever its request says.
func (h *Server) renewCertificate(ctx context.Context, n *nodeConnection, r *gatewaypb.Renew) error {
	answer := &gatewaypb.Renewed{}
	certificate, err := h.signCertificate(ctx, n.name, r.GetCsr())
	if err != nil {
		answer.Error = err.Error()
		h.Log.Warn("refused to renew a node's certificate", "node", n.name, "error", err)
		h.notifyMonitor(Event{Node: n.name, Kind: RenewalFailed, Reason: err.Error()})
	} else {
		answer.Certificate = certificate
		ends := certificateExpiry(certificate)
		n.mu.Lock()
		n.certificateExpiry = ends
		n.mu.Unlock()
		h.Log.Info("a node's certificate was renewed", "node", n.name, "expires", ends)
		h.notifyMonitor(Event{Node: n.name, Kind: CertificateRenewed, CertificateExpiresAt: ends})
	}
	return n.sendMessage(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Renewed{Renewed: answer}})
}

func (h *Server) signCertificate(ctx context.Context, name string, csr []byte) ([]byte, error) {
	if h.SignCSR == nil {
		return nil, fmt.Errorf("this gateway issues no certificates")
	}
	if !h.renewalLimiter.Allow(name, renewalLimit()) {
		return nil, fmt.Errorf("too many requests; wait %s", duration.Format(renewalInterval))
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return h.SignCSR(ctx, name, csr)
}
