package link

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"stanch/sensors/link/linkpb"
	"stanch/sensors/proof"
)

// MaxMessage bounds a message on the link, in bytes.
const MaxMessage = 1 << 20

// ErrRefused is wrapped by a Handler's error when the node will not obey, as against could not.
var ErrRefused = errors.New("refused by the node")

// Blob is a named piece of evidence that goes with a command's result.
type Blob struct {
	Name string
	Data []byte
}

// Handler obeys commands. It must verify the proof of each by keys.
type Handler interface {
	Handle(ctx context.Context, kind CommandKind, body []byte, keys proof.Keyring) (result any, blobs []Blob, err error)
}

// Client is a node's end of the link. All fields but Log are required.
type Client struct {
	Address string
	TLS     *tls.Config
	Node    string
	Version string
	BootID  string
	Spool   *Spool
	Handler Handler
	// Identity renews the node's certificate; nil keeps that of TLS until it ends. TLS is not needed with it.
	Identity *Identity
	// Pins verify commands. Nil refuses every command: it is for who only reports.
	Pins *Pins
	// Status is sent every HealthEvery (default 10 s).
	Status      func() any
	HealthEvery time.Duration
	Log         *slog.Logger
	// Now is the wall clock; nil is the machine's.
	Now func() time.Time

	running atomic.Int32 // commands, those included whose stream has ended
}

const (
	// maxRunning bounds how many commands run at a time. One may never end: what it waits for can be a container's.
	maxRunning = 64
	// lastAnswers is how long a stream that has ended waits for its commands.
	lastAnswers = 2 * time.Second
)

// errBusy is a node's answer to more commands than it runs at a time.
var errBusy = fmt.Errorf("the node runs %d commands already", maxRunning)

// Run keeps the stream up until ctx ends. It dials again after 0.1 s at first and 5 s at most.
func (c *Client) Run(ctx context.Context) error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Identity != nil {
		c.TLS = c.Identity.TLS()
	}
	conn, err := grpc.NewClient(c.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(c.TLS)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage+4096), grpc.MaxCallSendMsgSize(MaxMessage+4096)))
	if err != nil {
		return fmt.Errorf("dial gateway %s: %w", c.Address, err)
	}
	defer func() { _ = conn.Close() }()
	wait := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := c.stream(ctx, linkpb.NewGatewayClient(conn))
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			wait = 100 * time.Millisecond
		}
		c.Log.Warn("the gateway is away; detections are spooled", "gateway", c.Address, "error", err, "spooled", c.Spool.Len(), "again_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
		wait = min(wait*2, 5*time.Second)
		conn.ResetConnectBackoff()
	}
	return ctx.Err()
}

// session is one connected stream.
type session struct {
	*Client
	stream  linkpb.Gateway_NodeClient
	send    sync.Mutex
	keys    proof.Keyring
	acks    chan *linkpb.Ack
	renewed chan *linkpb.Renewed
	heard   atomic.Pointer[heard]
}

// heard is the newest time of the gateway's, and when it came by this process's own clock.
type heard struct {
	gateway int64
	at      time.Time
}

// farewell is how long a stream that was told goodbye may take to end.
const farewell = 500 * time.Millisecond

func (c *Client) stream(parent context.Context, gateway linkpb.GatewayClient) error {
	// The stream outlives its parent by a word: who is told to stop says goodbye.
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	opened := context.AfterFunc(parent, cancel)
	stream, err := gateway.Node(ctx)
	opened()
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	s := &session{Client: c, stream: stream, acks: make(chan *linkpb.Ack, 1), renewed: make(chan *linkpb.Renewed, 1)}
	defer context.AfterFunc(parent, func() {
		timer := time.AfterFunc(farewell, cancel)
		defer timer.Stop()
		if s.say(&linkpb.FromNode{Body: &linkpb.FromNode_Goodbye{Goodbye: &linkpb.Goodbye{Reason: "the sensor was told to stop"}}}) == nil {
			_ = stream.CloseSend()
		}
		<-ctx.Done()
	})()
	if err := s.say(&linkpb.FromNode{Body: &linkpb.FromNode_Hello{Hello: &linkpb.Hello{Node: c.Node, Version: c.Version, BootId: c.BootID, TimeNs: c.Now().UnixNano(), Waits: true}}}); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("wait for welcome: %w", err)
	}
	if first.GetWelcome() == nil {
		return errors.New("the gateway's first word was no welcome")
	}
	s.heard.Store(&heard{first.GetWelcome().GetTimeNs(), time.Now()})
	if err := c.Pins.Follow(first.GetWelcome().GetKeySets()); err != nil && !errors.Is(err, ErrNoPins) {
		c.Log.Error("the gateway shows rotations of the authority's keys that the pinned key did not sign; they are ignored", "error", err)
	}
	if c.Pins != nil && !c.Pins.Known(first.GetWelcome().GetAuthorityKeys()) {
		c.Log.Error("the gateway's authority is not the one that this node was enrolled with; its commands are refused", "gateway", c.Address)
	}
	s.keys = c.Pins.Keys()
	c.Log.Info("connected to the gateway", "gateway", c.Address)

	var parts, commands sync.WaitGroup
	defer parts.Wait()
	defer func() {
		cancel()
		// Then the node dials again, whatever a command waits for.
		ended := make(chan struct{})
		go func() { commands.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(lastAnswers):
			c.Log.Warn("commands of an ended stream still run", "running", c.running.Load())
		}
	}()
	failed := make(chan error, 3)
	parts.Go(func() { failed <- s.sendDetections(ctx); cancel() })
	parts.Go(func() { failed <- s.sendHealth(ctx); cancel() })
	if c.Identity != nil {
		parts.Go(func() { failed <- s.renew(ctx); cancel() })
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
		switch body := msg.GetBody().(type) {
		case *linkpb.ToNode_Ack:
			for _, r := range body.Ack.GetRefused() {
				c.Log.Error("the gateway refused a detection", "detection", r.GetId(), "reason", r.GetReason())
			}
			select {
			case s.acks <- body.Ack:
			case <-ctx.Done():
			}
		case *linkpb.ToNode_Command:
			if c.running.Add(1) > maxRunning {
				c.running.Add(-1)
				parts.Go(func() { s.answer(body.Command, nil, nil, errBusy) })
				continue
			}
			commands.Go(func() {
				defer c.running.Add(-1)
				s.obey(ctx, body.Command)
			})
		case *linkpb.ToNode_Heard:
			s.heard.Store(&heard{body.Heard.GetTimeNs(), time.Now()})
		case *linkpb.ToNode_Renewed:
			select {
			case s.renewed <- body.Renewed:
			default: // nobody asked
			}
		}
	}
}

func (s *session) say(msg *linkpb.FromNode) error {
	s.send.Lock()
	defer s.send.Unlock()
	if err := s.stream.Send(msg); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// sendDetections sends what is spooled, a batch at a time, and forgets a batch when it is acknowledged.
func (s *session) sendDetections(ctx context.Context) error {
	const batch = 200
	for sequence := uint64(1); ; {
		head := s.Spool.Head(batch)
		if len(head) == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.Spool.More():
			}
			continue
		}
		// The spool holds none that is larger than MaxDetection, so that the first always fits.
		size := 0
		for i, line := range head {
			if size += len(line); size > MaxMessage {
				head = head[:i]
				break
			}
		}
		if err := s.say(&linkpb.FromNode{Body: &linkpb.FromNode_Detections{Detections: &linkpb.Detections{Sequence: sequence, Detection: head}}}); err != nil {
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
				if err := s.pause(ctx, time.Duration(wait)*time.Millisecond); err != nil {
					return err
				}
				sequence++
				continue
			}
		}
		if err := s.Spool.Done(len(head)); err != nil {
			s.Log.Warn("spool", "error", err)
		}
		sequence++
	}
}

// longestPause bounds how long a gateway can make a node wait.
const longestPause = time.Minute

// pause waits as the gateway asked: this node sends more than its rate. Meanwhile the spool grows.
func (s *session) pause(ctx context.Context, wait time.Duration) error {
	return s.idle(ctx, min(wait, longestPause))
}

func (s *session) idle(ctx context.Context, wait time.Duration) error {
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
	every := s.HealthEvery
	if every == 0 {
		every = 10 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if s.Status != nil {
			raw, err := json.Marshal(s.Status())
			if err != nil {
				return fmt.Errorf("encode status: %w", err)
			}
			last := s.heard.Load()
			health := &linkpb.Health{Status: raw, TimeNs: s.Now().UnixNano(), EchoNs: last.gateway, HeldNs: time.Since(last.at).Nanoseconds()}
			if err := s.say(&linkpb.FromNode{Body: &linkpb.FromNode_Health{Health: health}}); err != nil {
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

// obey runs one command and answers it. A panic in a handler must not take the sensor down with it.
func (s *session) obey(ctx context.Context, cmd *linkpb.Command) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(cmd.GetDeadlineMs())*time.Millisecond)
	defer cancel()
	result, blobs, err := func() (result any, blobs []Blob, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the node failed on %s: %v", cmd.GetKind(), p)
			}
		}()
		return s.Handler.Handle(ctx, CommandKind(cmd.GetKind()), cmd.GetBody(), s.keys)
	}()
	s.answer(cmd, result, blobs, err)
}

// answer sends a command's result.
func (s *session) answer(cmd *linkpb.Command, result any, blobs []Blob, err error) {
	answer := &linkpb.Result{Id: cmd.GetId(), Done: true}
	if err != nil {
		answer.Error, answer.Refused = err.Error(), errors.Is(err, ErrRefused)
	} else if answer.Body, err = json.Marshal(result); err != nil {
		answer.Error = fmt.Sprintf("encode result: %v", err)
	}
	for _, blob := range blobs {
		for data, first := blob.Data, true; first || len(data) > 0; first = false {
			n := min(len(data), MaxMessage/2)
			if err := s.say(&linkpb.FromNode{Body: &linkpb.FromNode_Result{Result: &linkpb.Result{Id: cmd.GetId(), BlobName: blob.Name, Blob: data[:n]}}}); err != nil {
				return
			}
			data = data[n:]
		}
	}
	if err := s.say(&linkpb.FromNode{Body: &linkpb.FromNode_Result{Result: answer}}); err != nil {
		s.Log.Warn("answer a command", "kind", cmd.GetKind(), "error", err)
	}
}
