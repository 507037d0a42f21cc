package nodeserver

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/worker/authority"
)

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
