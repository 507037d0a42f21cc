// Package nodeserver serves the nodes' streams: it authenticates each node by its certificate, passes its detections to
// ingest, and sends commands to it. It also issues the certificates.
//
// It decides nothing and contains nothing itself: the node verifies each command. It acknowledges a detection only when
// Temporal has it, and serves a node only under the name in its certificate.
package nodeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"stanch/activities"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/worker/config"
	"stanch/worker/ingest"
	"stanch/worker/ratelimit"
)

// Server manages the streams of the nodes that are connected to this replica. It is safe for concurrent use.
type Server struct {
	gatewaypb.UnimplementedGatewayServer
	Keyring attestation.Keyring
	// KeySets are the rotations of the authority's keys, each signed by the previous key.
	KeySets  []attestation.Envelope
	Ingester *ingest.Ingester
	Log      *slog.Logger
	// ServeNode starts to serve a node's task queue, and returns the function that stops it.
	ServeNode func(node string) (stop func(), err error)

	// StartedAt is when this process started to accept nodes.
	StartedAt time.Time
	// NodeLimits are the rate limits of each node.
	NodeLimits config.NodeLimits
	// Monitor receives events of nodes; nil receives none.
	Monitor Monitor
	// SignCSR signs a node's certificate request; nil disables renewal.
	SignCSR func(ctx context.Context, node string, csr []byte) ([]byte, error)

	mu             sync.Mutex
	nodes          map[string]*nodeConnection
	disconnectedAt map[string]time.Time // when a node's last stream ended
	rateLimits     nodeRateLimits
	renewalLimiter ratelimit.PerCaller
}

var _ activities.NodeClient = (*Server)(nil)

// Node serves one node's stream.
func (h *Server) Node(stream gatewaypb.Gateway_NodeServer) error {
	messages := receiveMessages(stream)
	n, version, err := h.acceptNode(stream, messages)
	if err != nil {
		return err
	}
	if err := h.welcome(n); err != nil {
		return err
	}
	h.addNode(n)
	stop, err := h.ServeNode(n.name)
	if err != nil {
		h.removeNode(n)
		return status.Errorf(codes.Unavailable, "serve the node's queue: %v", err)
	}
	h.Log.Info("node connected", "node", n.name, "version", version, "certificate_ends", n.certificateExpiry)
	h.notifyMonitor(Event{Node: n.name, Kind: Connected, CertificateExpiresAt: n.certificateExpiry})
	defer func() {
		last := h.removeNode(n)
		stop()
		h.Log.Info("node disconnected", "node", n.name, "goodbye", n.saidGoodbye)
		switch {
		case !last: // it has a newer stream
		case n.saidGoodbye:
			h.notifyMonitor(Event{Node: n.name, Kind: ShutDown})
		default:
			h.notifyMonitor(Event{Node: n.name, Kind: Disconnected})
		}
	}()
	return h.serveStream(stream.Context(), n, messages)
}

// acceptNode authenticates a node and reads its first message. It returns the connection and the sensor's version.
func (h *Server) acceptNode(stream gatewaypb.Gateway_NodeServer, messages <-chan streamMessage) (*nodeConnection,
	string, error,
) {
	ctx := stream.Context()
	certificate, err := nodeCertificate(ctx)
	if err != nil {
		return nil, "", status.Error(codes.Unauthenticated, err.Error())
	}
	name := certificate.Subject.CommonName
	var first *gatewaypb.FromNode
	select {
	case m := <-messages:
		if m.err != nil {
			return nil, "", m.err
		}
		first = m.msg
	case <-ctx.Done():
		return nil, "", status.FromContextError(ctx.Err()).Err()
	case <-time.After(helloTimeout):
		return nil, "", status.Errorf(codes.DeadlineExceeded, "no hello message within %s", duration.Format(helloTimeout))
	}
	hello := first.GetHello()
	if hello == nil || hello.GetNode() != name {
		return nil, "", status.Errorf(codes.PermissionDenied,
			"invalid node name: the certificate is for %q, the hello message names %q", name, hello.GetNode())
	}
	if h.NodeLimits.IsRefused(name) {
		h.Log.Warn("refused a node: it is in `nodes: refused`", "node", name)
		return nil, "", status.Errorf(codes.PermissionDenied, "node %q is not allowed: it is in `nodes: refused`", name)
	}
	var send sync.Mutex
	return &nodeConnection{
		name: name, done: ctx.Done(), replaced: make(chan struct{}),
		pendingCalls: map[string]*pendingCall{}, connectedAt: time.Now(), supportsThrottle: hello.GetWaits(),
		certificateExpiry: certificate.NotAfter, rateLimit: h.rateLimitFor(name),
		sendMessage: func(m *gatewaypb.ToNode) error {
			send.Lock()
			defer send.Unlock()
			return stream.Send(m) //nolint:wrapcheck // the caller adds context
		},
	}, hello.GetVersion(), nil
}

// welcome sends the authority's keys and the gateway's time.
func (h *Server) welcome(n *nodeConnection) error {
	keySets, err := encodeKeySets(h.KeySets)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	n.timeSentAt = time.Now()
	return n.sendMessage(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Welcome{Welcome: &gatewaypb.Welcome{
		AuthorityKeys: h.Keyring.EncodeLines(), TimeNs: n.timeSentAt.UnixNano(), KeySets: keySets,
	}}})
}

// serveStream handles a node's messages until its stream ends.
func (h *Server) serveStream(ctx context.Context, n *nodeConnection, messages <-chan streamMessage) error {
	for {
		var m streamMessage
		select {
		case m = <-messages:
		case <-n.replaced:
			return status.Errorf(codes.Aborted, "node %q opened a newer stream", n.name)
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		if errors.Is(m.err, io.EOF) {
			return nil
		}
		if m.err != nil {
			return m.err
		}
		if err := h.handleMessage(ctx, n, m.msg); err != nil {
			return err
		}
	}
}

func (h *Server) handleMessage(ctx context.Context, n *nodeConnection, m *gatewaypb.FromNode) error {
	switch body := m.GetBody().(type) {
	case *gatewaypb.FromNode_Detections:
		if err := h.handleDetections(ctx, n, body.Detections); err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
	case *gatewaypb.FromNode_Result:
		n.deliverResult(body.Result)
	case *gatewaypb.FromNode_Health:
		return h.handleHealthReport(n, body.Health)
	case *gatewaypb.FromNode_Renew:
		return h.renewCertificate(ctx, n, body.Renew)
	case *gatewaypb.FromNode_Goodbye:
		n.saidGoodbye = true
	}
	return nil
}

func encodeKeySets(chain []attestation.Envelope) ([][]byte, error) {
	out := make([][]byte, 0, len(chain))
	for _, s := range chain {
		raw, err := json.Marshal(s)
		if err != nil {
			return nil, fmt.Errorf("encode the key sets: %w", err)
		}
		out = append(out, raw)
	}
	return out, nil
}

func (h *Server) handleDetections(ctx context.Context, n *nodeConnection, batch *gatewaypb.Detections) error {
	if wait, err := h.throttle(ctx, n, batch); err != nil || wait > 0 {
		return err
	}
	ack := &gatewaypb.Ack{Sequence: batch.GetSequence()}
	var good []sensors.Detection
	for _, raw := range batch.GetDetection() {
		d, err := ingest.DecodeDetection(raw)
		if err != nil {
			h.Ingester.CountDetection(sensors.Detection{Source: ingest.SourceStanch}, ingest.DetectionRefused)
		} else {
			d.Node = n.name
			err = h.Ingester.Check(ctx, &d, n.name)
		}
		if temporary := new(ingest.TemporaryError); errors.As(err, &temporary) {
			return err
		}
		if err != nil {
			ack.Refused = append(ack.Refused, &gatewaypb.Refused{Id: d.ID, Reason: err.Error()})
			continue
		}
		good = append(good, d)
	}
	if err := h.Ingester.Accept(ctx, good); err != nil {
		return err
	}
	return n.sendMessage(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Ack{Ack: ack}})
}
