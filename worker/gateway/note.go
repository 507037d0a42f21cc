package gateway

import (
	"encoding/json"
	"time"

	"stanch/sensors/gatewayrpc/gatewaypb"
)

// NodeNote is what the hub noticed of a node.
type NodeNote struct {
	Node string
	What NodeWhat
	At   time.Time
	// Status is what the node says of itself: NodeSpoke.
	Status json.RawMessage
	// Clock is how far apart the clocks are, if it could be measured: NodeSpoke.
	Clock *Clock
	// Ends is when the node's newest certificate ends: NodeCame, NodeRenewed.
	Ends time.Time
	// Because is why no certificate was renewed: NodeUnrenewed.
	Because string
}

// NodeWhat is the kind of a note.
type NodeWhat string

// What the hub notices.
const (
	NodeCame      NodeWhat = "came"      // it dialled in
	NodeSpoke     NodeWhat = "spoke"     // it told how it is
	NodeLeft      NodeWhat = "left"      // its stream ended, and it had not said that it would
	NodeStopped   NodeWhat = "stopped"   // its stream ended after it said goodbye
	NodeLimited   NodeWhat = "limited"   // it sent more than its rate and was told to wait
	NodeRenewed   NodeWhat = "renewed"   // it got a new certificate
	NodeUnrenewed NodeWhat = "unrenewed" // it asked for one in vain
)

// Monitor is told what the hub notices of nodes. It must not block.
type Monitor interface {
	NodeNote(n NodeNote)
}

func (h *Hub) note(n NodeNote) {
	if h.Monitor == nil {
		return
	}
	n.At = time.Now()
	h.Monitor.NodeNote(n)
}

// Clock is how far a node's wall clock is ahead of the gateway's (negative: behind), and how far off that may be.
type Clock struct {
	Skew  time.Duration `json:"skew_ns"`
	Error time.Duration `json:"error_ns"`
	At    time.Time     `json:"at"`
}

// maxTrip bounds the round trip that a measurement is made of: with a longer one it says too little.
const maxTrip = 10 * time.Second

// measure tells from one Health how far apart the clocks are. The trip there and back, without the time that the node
// held the gateway's word, is halved: a node can lie about its clock, but no more about it than about its own time.
func measure(health *gatewaypb.Health, sent, now time.Time) *Clock {
	if health.GetTimeNs() == 0 || health.GetEchoNs() == 0 || health.GetEchoNs() != sent.UnixNano() || health.GetHeldNs() < 0 {
		return nil
	}
	trip := now.Sub(sent) - time.Duration(health.GetHeldNs())
	if trip < 0 || trip > maxTrip {
		return nil
	}
	return &Clock{Skew: time.Unix(0, health.GetTimeNs()).Add(trip / 2).Sub(now), Error: trip / 2, At: now}
}
