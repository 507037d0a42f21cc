// Package nodeserver serves the nodes' streams: it authenticates each node by its certificate, passes its detections to
// ingest, and sends commands to it. It also issues the certificates.
//
// It decides nothing and contains nothing itself: the node verifies each command. It acknowledges a detection only when
// Temporal has it, and serves a node only under the name in its certificate.
package nodeserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"stanch/activities"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/ingest"
	"stanch/worker/ratelimit"
)

// maxAttachmentBytes is the maximum size of the attachments of one command's result.
const maxAttachmentBytes = 128 << 20

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

// reconnectGrace is how long calls wait for a node that was connected a moment ago, or that may not have reconnected
// since this process started: a restart must not turn a containment into a refusal.
const reconnectGrace = 8 * time.Second

var _ activities.NodeClient = (*Server)(nil)

// nodeConnection is one connected node.
type nodeConnection struct {
	name              string
	sendMessage       func(*gatewaypb.ToNode) error
	done              <-chan struct{}
	mu                sync.Mutex
	pendingCalls      map[string]*pendingCall
	lastHealth        json.RawMessage
	connectedAt       time.Time
	supportsThrottle  bool // it waits when it is throttled
	certificateExpiry time.Time
	clockSkew         *ClockSkew
	rateLimit         *nodeRateLimit
	// timeSentAt is when the gateway last sent its time, which the node echoes. Only the stream's reader uses it.
	timeSentAt  time.Time
	saidGoodbye bool
	// replaced is closed when a newer stream of the same node arrives.
	replaced chan struct{}
}

type pendingCall struct {
	attachments     []gatewayrpc.Attachment
	attachmentBytes int
	results         chan *gatewaypb.Result
}

// nodeCertificate returns the peer's certificate, or an error if it is not a node's.
func nodeCertificate(ctx context.Context) (*x509.Certificate, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the connection has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, errors.New("the connection has no verified certificate")
	}
	certificate := info.State.VerifiedChains[0][0]
	if subject := certificate.Subject; !slices.Contains(subject.OrganizationalUnit, authority.RoleNode) {
		return nil, fmt.Errorf("invalid certificate: %q is not a node", subject.CommonName)
	}
	return certificate, nil
}

// Node serves one node's stream.
func (h *Server) Node(stream gatewaypb.Gateway_NodeServer) error {
	ctx := stream.Context()
	certificate, err := nodeCertificate(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	name := certificate.Subject.CommonName
	messages := receiveMessages(stream)
	var first *gatewaypb.FromNode
	select {
	case m := <-messages:
		if m.err != nil {
			return m.err
		}
		first = m.msg
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-time.After(helloTimeout):
		return status.Errorf(codes.DeadlineExceeded, "no hello message within %s", duration.Format(helloTimeout))
	}
	hello := first.GetHello()
	if hello == nil || hello.GetNode() != name {
		return status.Errorf(codes.PermissionDenied,
			"invalid node name: the certificate is for %q, the hello message names %q", name, hello.GetNode())
	}
	if h.NodeLimits.IsRefused(name) {
		h.Log.Warn("refused a node: it is in `nodes: refused`", "node", name)
		return status.Errorf(codes.PermissionDenied, "node %q is not allowed: it is in `nodes: refused`", name)
	}
	var send sync.Mutex
	n := &nodeConnection{
		name: name, done: ctx.Done(), replaced: make(chan struct{}),
		pendingCalls: map[string]*pendingCall{}, connectedAt: time.Now(), supportsThrottle: hello.GetWaits(),
		certificateExpiry: certificate.NotAfter, rateLimit: h.rateLimitFor(name),
		sendMessage: func(m *gatewaypb.ToNode) error {
			send.Lock()
			defer send.Unlock()
			return stream.Send(m) //nolint:wrapcheck // the caller adds context
		},
	}
	n.timeSentAt = time.Now()
	keySets, err := encodeKeySets(h.KeySets)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if err := n.sendMessage(
		&gatewaypb.ToNode{
			Body: &gatewaypb.ToNode_Welcome{
				Welcome: &gatewaypb.Welcome{
					AuthorityKeys: h.Keyring.EncodeLines(),
					TimeNs:        n.timeSentAt.UnixNano(),
					KeySets:       keySets,
				},
			},
		},
	); err != nil {
		return err
	}
	h.addNode(n)
	stop, err := h.ServeNode(name)
	if err != nil {
		h.removeNode(n)
		return status.Errorf(codes.Unavailable, "serve the node's queue: %v", err)
	}
	h.Log.Info("node connected", "node", name, "version", hello.GetVersion(), "certificate_ends", n.certificateExpiry)
	h.notifyMonitor(Event{Node: name, Kind: Connected, CertificateExpiresAt: n.certificateExpiry})
	defer func() {
		last := h.removeNode(n)
		stop()
		h.Log.Info("node disconnected", "node", name, "goodbye", n.saidGoodbye)
		switch {
		case !last: // it has a newer stream
		case n.saidGoodbye:
			h.notifyMonitor(Event{Node: name, Kind: ShutDown})
		default:
			h.notifyMonitor(Event{Node: name, Kind: Disconnected})
		}
	}()
	for {
		var m streamMessage
		select {
		case m = <-messages:
		case <-n.replaced:
			return status.Errorf(codes.Aborted, "node %q opened a newer stream", name)
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		if errors.Is(m.err, io.EOF) {
			return nil
		}
		if m.err != nil {
			return m.err
		}
		switch body := m.msg.GetBody().(type) {
		case *gatewaypb.FromNode_Detections:
			if err := h.handleDetections(ctx, n, body.Detections); err != nil {
				return status.Error(codes.Unavailable, err.Error())
			}
		case *gatewaypb.FromNode_Result:
			n.deliverResult(body.Result)
		case *gatewaypb.FromNode_Health:
			if err := h.handleHealthReport(n, body.Health); err != nil {
				return err
			}
		case *gatewaypb.FromNode_Renew:
			if err := h.renewCertificate(ctx, n, body.Renew); err != nil {
				return err
			}
		case *gatewaypb.FromNode_Goodbye:
			n.saidGoodbye = true
		}
	}
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

// helloTimeout is the maximum time until a stream's first message.
const helloTimeout = 10 * time.Second

// streamMessage is one message of a stream, or its end.
type streamMessage struct {
	msg *gatewaypb.FromNode
	err error
}

// receiveMessages reads a stream until it ends. It does not read ahead: a message is read after the previous one was
// handled.
func receiveMessages(stream gatewaypb.Gateway_NodeServer) <-chan streamMessage {
	out := make(chan streamMessage)
	go func() {
		for {
			msg, err := stream.Recv()
			select {
			case out <- streamMessage{msg, err}:
			case <-stream.Context().Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

func (h *Server) addNode(n *nodeConnection) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nodes == nil {
		h.nodes = map[string]*nodeConnection{}
	}
	// The newest stream is used. An older one of the same node is about to end, or one of many that the node opens.
	if before := h.nodes[n.name]; before != nil {
		close(before.replaced)
	}
	h.nodes[n.name] = n
}

// removeNode removes a stream, and reports whether it was its node's last.
func (h *Server) removeNode(n *nodeConnection) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nodes[n.name] != n {
		return false
	}
	delete(h.nodes, n.name)
	if h.disconnectedAt == nil {
		h.disconnectedAt = map[string]time.Time{}
	}
	h.disconnectedAt[n.name] = time.Now()
	return true
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

func (n *nodeConnection) deliverResult(r *gatewaypb.Result) {
	n.mu.Lock()
	c := n.pendingCalls[r.GetId()]
	if c == nil {
		n.mu.Unlock()
		return // too late, or unknown
	}
	if !r.GetDone() {
		if c.attachmentBytes += len(r.GetBlob()); c.attachmentBytes <= maxAttachmentBytes {
			if last := len(c.attachments) - 1; last >= 0 && c.attachments[last].Name == r.GetBlobName() {
				c.attachments[last].Data = append(c.attachments[last].Data, r.GetBlob()...)
			} else {
				c.attachments = append(c.attachments, gatewayrpc.Attachment{
					Name: r.GetBlobName(),
					Data: append([]byte(nil), r.GetBlob()...),
				})
			}
		}
		n.mu.Unlock()
		return
	}
	delete(n.pendingCalls, r.GetId())
	n.mu.Unlock()
	c.results <- r
}

// waitForNode returns a node's stream, and waits for it if the node is expected to reconnect.
func (h *Server) waitForNode(ctx context.Context, name string) *nodeConnection {
	for {
		h.mu.Lock()
		n, left := h.nodes[name], h.disconnectedAt[name]
		h.mu.Unlock()
		if n != nil || time.Since(left) > reconnectGrace && time.Since(h.StartedAt) > reconnectGrace {
			return n
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Call sends a command to a node that is connected here, and waits for the result. It implements activities.NodeClient.
func (h *Server) Call(ctx context.Context, name string, kind gatewayrpc.CommandKind, body,
	out any,
) ([]gatewayrpc.Attachment, error) {
	n := h.waitForNode(ctx, name)
	if n == nil {
		return nil, fmt.Errorf("%s: %w", name, activities.ErrNodeNotConnected)
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	// otherwise the stream's error would look as if the node were disconnected
	if len(raw) > gatewayrpc.MaxMessageBytes {
		return nil, fmt.Errorf("%w: %s is %d bytes, but a command can hold at most %d; use smaller parameters",
			gatewayrpc.ErrRefused, kind, len(raw), gatewayrpc.MaxMessageBytes)
	}
	limit := 30 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)-50*time.Millisecond)
	}
	id := uuid.NewString()
	c := &pendingCall{results: make(chan *gatewaypb.Result, 1)}
	n.mu.Lock()
	n.pendingCalls[id] = c
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.pendingCalls, id)
		n.mu.Unlock()
	}()
	if err := n.sendMessage(&gatewaypb.ToNode{Body: &gatewaypb.ToNode_Command{Command: &gatewaypb.Command{
		Id:   id,
		Kind: string(kind), Body: raw, DeadlineMs: limit.Milliseconds(),
	}}}); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, activities.ErrNodeNotConnected, err)
	}
	timer := time.NewTimer(limit + 50*time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%s on node %s: %w", kind, name, ctx.Err())
	case <-timer.C:
		return nil, fmt.Errorf("%s on node %s: no answer within %s", kind, name, duration.FormatApprox(limit))
	case <-n.done:
		return nil, fmt.Errorf("%s on node %s: %w: its stream ended", kind, name, activities.ErrNodeNotConnected)
	case r := <-c.results:
		if r.GetError() != "" {
			if r.GetRefused() {
				return nil, fmt.Errorf("%w: %s", gatewayrpc.ErrRefused, r.GetError())
			}
			return nil, fmt.Errorf("%s on node %s: %s", kind, name, r.GetError())
		}
		if err := json.Unmarshal(r.GetBody(), out); err != nil {
			return nil, fmt.Errorf("%s on node %s: parse the response: %w", kind, name, err)
		}
		return c.attachments, nil
	}
}
