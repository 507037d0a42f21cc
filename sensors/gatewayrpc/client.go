package gatewayrpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc/gatewaypb"
)

// MaxMessageBytes is the maximum size of one gRPC message between a node and the gateway, in bytes (1 MiB).
const MaxMessageBytes = 1 << 20

// ErrRefused is wrapped by an error of a CommandHandler if the node refuses the command, as opposed to failing at it.
var ErrRefused = errors.New("refused by the node")

// Attachment is a named evidence file that is sent with the result of a command.
type Attachment struct {
	Name string
	Data []byte
}

// CommandHandler executes commands. It must verify the proof of each command with the given keys before it changes
// anything. It is called concurrently. An error that wraps ErrRefused means that the node refuses the command.
type CommandHandler interface {
	Handle(ctx context.Context, kind CommandKind, body []byte, keys attestation.Keyring) (result any, blobs []Attachment,
		err error)
}

// Client is the node's side of the connection to the gateway. Address, Node, Spool, Handler and either TLS or
// NodeCertificate are required. Node, Version and BootID identify the sensor to the gateway. A nil Log means
// slog.Default.
type Client struct {
	Address string
	TLS     *tls.Config
	Node    string
	Version string
	BootID  string
	Spool   *Spool
	Handler CommandHandler
	// NodeCertificate renews the node's certificate and replaces TLS. If it is nil, the certificate in TLS is used
	// until it expires.
	NodeCertificate *NodeCertificate
	// PinnedKeys verify commands. If it is nil, the node refuses every command, which suits a node that only reports.
	PinnedKeys *PinnedKeys
	// StatusFunc returns the status that is sent at every HealthInterval (default 10 s). If it is nil, none is sent.
	StatusFunc     func() any
	HealthInterval time.Duration
	Log            *slog.Logger
	// Now returns the current time; nil means time.Now.
	Now func() time.Time

	runningCommands atomic.Int32 // includes commands whose stream has ended
}

const (
	// maxRunningCommands is the maximum number of concurrent commands. A command may never end, because a container
	// may control what it waits for.
	maxRunningCommands = 64
	// commandDrainTimeout is how long an ended stream waits for its commands.
	commandDrainTimeout = 2 * time.Second
)

// errBusy is the result of a command that exceeds maxRunningCommands.
var errBusy = fmt.Errorf("the node already runs %d commands", maxRunningCommands)

// Run keeps the stream connected until ctx ends, and then returns the error of ctx. It reconnects after 0.1 s,
// doubling the delay up to 5 s.
func (c *Client) Run(ctx context.Context) error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NodeCertificate != nil {
		c.TLS = c.NodeCertificate.TLS()
	}
	conn, err := grpc.NewClient(c.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(c.TLS)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 20 * time.Second, Timeout: 5 * time.Second,
			PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes+4096),
			grpc.MaxCallSendMsgSize(MaxMessageBytes+4096)))
	if err != nil {
		return fmt.Errorf("dial gateway %s: %w", c.Address, err)
	}
	defer func() { _ = conn.Close() }()
	delays := &backoff.ExponentialBackOff{
		InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 5 * time.Second,
	}
	_, _ = backoff.Retry(ctx, func() (struct{}, error) {
		began := time.Now()
		conn.ResetConnectBackoff()
		err := c.runStream(ctx, gatewaypb.NewGatewayClient(conn))
		if time.Since(began) > 10*time.Second {
			delays.Reset()
		}
		return struct{}{}, err // never nil
	}, backoff.WithBackOff(delays), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, wait time.Duration) {
		c.Log.Warn("the gateway is unavailable; detections are spooled", "gateway", c.Address, "error", err, "spooled",
			c.Spool.Len(), "again_in", wait)
	}))
	return ctx.Err()
}

// shutdownGrace is how long the stream may take to end after the goodbye message.
const shutdownGrace = 500 * time.Millisecond

func (c *Client) runStream(parent context.Context, gateway gatewaypb.GatewayClient) error {
	// The stream outlives its parent context briefly, so that a sensor that is stopped can still send a goodbye.
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	opened := context.AfterFunc(parent, cancel)
	stream, err := gateway.Node(ctx)
	opened()
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	s := &session{Client: c, stream: stream, acks: make(chan *gatewaypb.Ack, 1), renewals: make(chan *gatewaypb.Renewed,
		1)}
	defer context.AfterFunc(parent, func() {
		timer := time.AfterFunc(shutdownGrace, cancel)
		defer timer.Stop()
		goodbye := &gatewaypb.Goodbye{Reason: "the sensor was stopped"}
		if s.send(&gatewaypb.FromNode{Body: &gatewaypb.FromNode_Goodbye{Goodbye: goodbye}}) == nil {
			_ = stream.CloseSend()
		}
		<-ctx.Done()
	})()
	if err := s.greet(); err != nil {
		return err
	}
	defer s.parts.Wait()
	defer func() { cancel(); s.waitForCommands() }()
	failed := make(chan error, 3)
	s.parts.Go(func() { failed <- s.sendDetections(ctx); cancel() })
	s.parts.Go(func() { failed <- s.sendHealth(ctx); cancel() })
	if c.NodeCertificate != nil {
		s.parts.Go(func() { failed <- s.renewCertificate(ctx); cancel() })
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			select {
			case cause := <-failed:
				return cause
			default:
				return fmt.Errorf("receive: %w", err)
			}
		}
		s.handleMessage(ctx, msg)
	}
}

// sendDetections sends the spooled detections in batches, and removes a batch from the spool when the gateway
// acknowledges it.
func (s *session) sendDetections(ctx context.Context) error {
	const batch = 200
	for sequence := uint64(1); ; {
		head := s.Spool.Peek(batch)
		if len(head) == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.Spool.Ready():
			}
			continue
		}
		// The first detection always fits, because the spool accepts none larger than MaxDetectionBytes.
		size := 0
		for i, line := range head {
			if size += len(line); size > MaxMessageBytes {
				head = head[:i]
				break
			}
		}
		if err := s.send(
			&gatewaypb.FromNode{
				Body: &gatewaypb.FromNode_Detections{Detections: &gatewaypb.Detections{Sequence: sequence, Detection: head}},
			},
		); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ack := <-s.acks:
			if ack.GetSequence() != sequence {
				return fmt.Errorf("the gateway acknowledged batch %d, not %d", ack.GetSequence(), sequence)
			}
			if wait := ack.GetRetryAfterMs(); wait > 0 {
				if err := s.throttle(ctx, time.Duration(wait)*time.Millisecond); err != nil {
					return err
				}
				sequence++
				continue
			}
		}
		if err := s.Spool.Acknowledge(len(head)); err != nil {
			s.Log.Warn("could not update the spool", "error", err)
		}
		sequence++
	}
}

// maxPause is the longest delay that a gateway can impose on a node.
const maxPause = time.Minute

// throttle waits as long as the gateway requests, because this node exceeded its rate. The spool grows in the
// meantime.
func (s *session) throttle(ctx context.Context, wait time.Duration) error {
	return s.sleep(ctx, min(wait, maxPause))
}

func (s *session) sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (s *session) sendHealth(ctx context.Context) error {
	every := s.HealthInterval
	if every == 0 {
		every = 10 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if s.StatusFunc != nil {
			raw, err := json.Marshal(s.StatusFunc())
			if err != nil {
				return fmt.Errorf("encode status: %w", err)
			}
			last := s.lastServerTime.Load()
			health := &gatewaypb.Health{
				Status: raw, TimeNs: s.Now().UnixNano(), EchoNs: last.gatewayTime,
				HeldNs: time.Since(last.receivedAt).Nanoseconds(),
			}
			if err := s.send(&gatewaypb.FromNode{Body: &gatewaypb.FromNode_Health{Health: health}}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// execute runs one command and sends its result. It recovers a panic of the handler, which must not crash the sensor.
func (s *session) execute(ctx context.Context, cmd *gatewaypb.Command) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(cmd.GetDeadlineMs())*time.Millisecond)
	defer cancel()
	result, blobs, err := func() (result any, blobs []Attachment, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the node could not execute %s: %v", cmd.GetKind(), p)
			}
		}()
		return s.Handler.Handle(ctx, CommandKind(cmd.GetKind()), cmd.GetBody(), s.keyring)
	}()
	s.sendResult(cmd, result, blobs, err)
}

// sendResult sends the result of a command, with the attachments first and in chunks.
func (s *session) sendResult(cmd *gatewaypb.Command, result any, blobs []Attachment, err error) {
	answer := &gatewaypb.Result{Id: cmd.GetId(), Done: true}
	if err != nil {
		answer.Error, answer.Refused = err.Error(), errors.Is(err, ErrRefused)
	} else if answer.Body, err = json.Marshal(result); err != nil {
		answer.Error = fmt.Sprintf("encode result: %v", err)
	}
	for _, blob := range blobs {
		for data, first := blob.Data, true; first || len(data) > 0; first = false {
			n := min(len(data), MaxMessageBytes/2)
			if err := s.send(&gatewaypb.FromNode{Body: &gatewaypb.FromNode_Result{Result: &gatewaypb.Result{
				Id:       cmd.GetId(),
				BlobName: blob.Name, Blob: data[:n],
			}}}); err != nil {
				return
			}
			data = data[n:]
		}
	}
	if err := s.send(&gatewaypb.FromNode{Body: &gatewaypb.FromNode_Result{Result: answer}}); err != nil {
		s.Log.Warn("could not send the result of a command", "kind", cmd.GetKind(), "error", err)
	}
}
