package gateway

import (
	"encoding/json"
	"time"

	"stanch/sensors/gatewayrpc/gatewaypb"
)

// NodeEvent is an event of a node's connection.
type NodeEvent struct {
	Node string
	Kind NodeEventKind
	At   time.Time
	// Status is the node's health report: NodeReported.
	Status json.RawMessage
	// ClockSkew is the difference of the clocks, if it could be measured: NodeReported.
	ClockSkew *ClockSkew
	// CertificateExpiresAt is the end of the node's newest certificate: NodeConnected, NodeCertificateRenewed.
	CertificateExpiresAt time.Time
	// Reason is why no certificate was renewed: NodeRenewalFailed.
	Reason string
}

// NodeEventKind is the kind of a NodeEvent.
type NodeEventKind string

// The kinds of events.
const (
	NodeConnected          NodeEventKind = "connected"      // it opened a stream
	NodeReported           NodeEventKind = "reported"       // it sent a health report
	NodeDisconnected       NodeEventKind = "disconnected"   // its stream ended without a shutdown message
	NodeShutDown           NodeEventKind = "shut-down"      // its stream ended after a shutdown message
	NodeRateLimited        NodeEventKind = "rate-limited"   // it exceeded its rate and must wait
	NodeCertificateRenewed NodeEventKind = "renewed"        // it received a new certificate
	NodeRenewalFailed      NodeEventKind = "renewal-failed" // its request for a certificate failed
)

// NodeMonitor receives the events of nodes. It must not block.
type NodeMonitor interface {
	OnNodeEvent(n NodeEvent)
}

func (h *NodeServer) notifyMonitor(n NodeEvent) {
	if h.Monitor == nil {
		return
	}
	n.At = time.Now()
	h.Monitor.OnNodeEvent(n)
}

// ClockSkew is how far a node's clock is ahead of the gateway's (negative: behind), with the uncertainty of the
// measurement.
type ClockSkew struct {
	Offset     time.Duration `json:"offset_ns"`
	MaxError   time.Duration `json:"max_error_ns"`
	MeasuredAt time.Time     `json:"at"`
}

// maxRoundTrip is the maximum round trip of a measurement; a longer one is too uncertain.
const maxRoundTrip = 10 * time.Second

// measureClockSkew measures the difference of the clocks with one health report: half of the round trip, without the
// time that the node needed to answer. A node can lie about its own clock only.
func measureClockSkew(health *gatewaypb.Health, sent, now time.Time) *ClockSkew {
	if health.GetTimeNs() == 0 || health.GetEchoNs() == 0 || health.GetEchoNs() != sent.UnixNano() ||
		health.GetHeldNs() < 0 {
		return nil
	}
	trip := now.Sub(sent) - time.Duration(health.GetHeldNs())
	if trip < 0 || trip > maxRoundTrip {
		return nil
	}
	return &ClockSkew{Offset: time.Unix(0, health.GetTimeNs()).Add(trip / 2).Sub(now), MaxError: trip / 2, MeasuredAt: now}
}
