package gateway

import (
	"encoding/json"
	"time"

	"stanch/sensors/gatewayrpc/gatewaypb"
)

// NodeEvent is what the hub noticed of a node.
type NodeEvent struct {
	Node string
	Kind NodeEventKind
	At   time.Time
	// Status is what the node says of itself: NodeReported.
	Status json.RawMessage
	// ClockSkew is how far apart the clocks are, if it could be measured: NodeReported.
	ClockSkew *ClockSkew
	// CertificateExpiresAt is when the node's newest certificate ends: NodeConnected, NodeCertificateRenewed.
	CertificateExpiresAt time.Time
	// Reason is why no certificate was renewed: NodeRenewalFailed.
	Reason string
}

// NodeEventKind is the kind of a note.
type NodeEventKind string

// What the hub notices.
const (
	NodeConnected          NodeEventKind = "came"      // it dialled in
	NodeReported           NodeEventKind = "spoke"     // it told how it is
	NodeDisconnected       NodeEventKind = "left"      // its stream ended, and it had not said that it would
	NodeShutDown           NodeEventKind = "stopped"   // its stream ended after it said goodbye
	NodeRateLimited        NodeEventKind = "limited"   // it sent more than its rate and was told to wait
	NodeCertificateRenewed NodeEventKind = "renewed"   // it got a new certificate
	NodeRenewalFailed      NodeEventKind = "unrenewed" // it asked for one in vain
)

// NodeMonitor is told what the hub notices of nodes. It must not block.
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

// ClockSkew is how far a node's wall clock is ahead of the gateway's (negative: behind), and how far off that may be.
type ClockSkew struct {
	Offset     time.Duration `json:"offset_ns"`
	MaxError   time.Duration `json:"max_error_ns"`
	MeasuredAt time.Time     `json:"at"`
}

// maxRoundTrip bounds the round trip that a measurement is made of: with a longer one it says too little.
const maxRoundTrip = 10 * time.Second

// measureClockSkew tells from one Health how far apart the clocks are. The trip there and back, without the time that the node
// held the gateway's word, is halved: a node can lie about its clock, but no more about it than about its own time.
func measureClockSkew(health *gatewaypb.Health, sent, now time.Time) *ClockSkew {
	if health.GetTimeNs() == 0 || health.GetEchoNs() == 0 || health.GetEchoNs() != sent.UnixNano() || health.GetHeldNs() < 0 {
		return nil
	}
	trip := now.Sub(sent) - time.Duration(health.GetHeldNs())
	if trip < 0 || trip > maxRoundTrip {
		return nil
	}
	return &ClockSkew{Offset: time.Unix(0, health.GetTimeNs()).Add(trip / 2).Sub(now), MaxError: trip / 2, MeasuredAt: now}
}
