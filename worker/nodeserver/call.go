package nodeserver

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"stanch/activities"
	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
)

// maxAttachmentBytes is the maximum size of the attachments of one command's result.
const maxAttachmentBytes = 128 << 20

// reconnectGrace is how long calls wait for a node that was connected a moment ago, or that may not have reconnected
// since this process started: a restart must not turn a containment into a refusal.
const reconnectGrace = 8 * time.Second

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
