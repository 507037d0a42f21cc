package nodeserver

import (
	"encoding/json"
	"time"

	"stanch/sensors/gatewayrpc/gatewaypb"
)

// Event is an event of a node's connection.
type Event struct {
	Node string
	Kind EventKind
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

// EventKind is the kind of a NodeEvent.
type EventKind string

// The kinds of events.
const (
	Connected          EventKind = "connected"      // it opened a stream
	Reported           EventKind = "reported"       // it sent a health report
	Disconnected       EventKind = "disconnected"   // its stream ended without a shutdown message
	ShutDown           EventKind = "shut-down"      // its stream ended after a shutdown message
	RateLimited        EventKind = "rate-limited"   // it exceeded its rate and must wait
	CertificateRenewed EventKind = "renewed"        // it received a new certificate
	RenewalFailed      EventKind = "renewal-failed" // its request for a certificate failed
)

// Monitor receives the events of nodes. It must not block.
type Monitor interface {
	OnNodeEvent(n Event)
}

func (h *Server) notifyMonitor(n Event) {
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
