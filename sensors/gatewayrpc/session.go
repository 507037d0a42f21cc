package gatewayrpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc/gatewaypb"
)

// session is one connected stream.
type session struct {
	*Client
	stream         gatewaypb.Gateway_NodeClient
	sendMu         sync.Mutex
	keyring        attestation.Keyring
	acks           chan *gatewaypb.Ack
	renewals       chan *gatewaypb.Renewed
	lastServerTime atomic.Pointer[serverTime]
	// parts are the goroutines of the stream. commands run longer than the stream, if they are stuck.
	parts, commands sync.WaitGroup
}

// serverTime is the newest time that the gateway sent, and when it was received by the clock of this process.
type serverTime struct {
	gatewayTime int64
	receivedAt  time.Time
}

// greet sends the first message and reads the gateway's, with the keys that the node trusts from now on.
func (s *session) greet() error {
	if err := s.send(&gatewaypb.FromNode{Body: &gatewaypb.FromNode_Hello{Hello: &gatewaypb.Hello{
		Node: s.Node, Version: s.Version, BootId: s.BootID, TimeNs: s.Now().UnixNano(), Waits: true,
	}}}); err != nil {
		return err
	}
	first, err := s.stream.Recv()
	if err != nil {
		return fmt.Errorf("wait for welcome: %w", err)
	}
	welcome := first.GetWelcome()
	if welcome == nil {
		return errors.New("the gateway's first message was not a welcome message")
	}
	s.lastServerTime.Store(&serverTime{welcome.GetTimeNs(), time.Now()})
	if err := s.PinnedKeys.ApplyRotations(welcome.GetKeySets()); err != nil && !errors.Is(err, ErrNoPinnedKeys) {
		s.Log.Error("the gateway sent authority key rotations that the pinned key did not sign; they are ignored", "error",
			err)
	}
	if s.PinnedKeys != nil && !s.PinnedKeys.HasAny(welcome.GetAuthorityKeys()) {
		s.Log.Error("the gateway's authority is not the one that this node was enrolled with; its commands are refused",
			"gateway", s.Address)
	}
	s.keyring = s.PinnedKeys.Keyring()
	s.Log.Info("connected to the gateway", "gateway", s.Address)
	return nil
}

// waitForCommands waits for the running commands. The wait is bounded, so that the node reconnects even if one is
// stuck.
func (s *session) waitForCommands() {
	ended := make(chan struct{})
	go func() { s.commands.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(commandDrainTimeout):
		s.Log.Warn("commands of a closed stream are still running", "running", s.runningCommands.Load())
	}
}

// handleMessage handles one message of the gateway.
func (s *session) handleMessage(ctx context.Context, msg *gatewaypb.ToNode) {
	switch body := msg.GetBody().(type) {
	case *gatewaypb.ToNode_Ack:
		for _, r := range body.Ack.GetRefused() {
			s.Log.Error("the gateway refused a detection", "detection", r.GetId(), "reason", r.GetReason())
		}
		select {
		case s.acks <- body.Ack:
		case <-ctx.Done():
		}
	case *gatewaypb.ToNode_Command:
		if s.runningCommands.Add(1) > maxRunningCommands {
			s.runningCommands.Add(-1)
			s.parts.Go(func() { s.sendResult(body.Command, nil, nil, errBusy) })
			return
		}
		s.commands.Go(func() {
			defer s.runningCommands.Add(-1)
			s.execute(ctx, body.Command)
		})
	case *gatewaypb.ToNode_Heard:
		s.lastServerTime.Store(&serverTime{body.Heard.GetTimeNs(), time.Now()})
	case *gatewaypb.ToNode_Renewed:
		select {
		case s.renewals <- body.Renewed:
		default: // not requested
		}
	}
}

func (s *session) send(msg *gatewaypb.FromNode) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if err := s.stream.Send(msg); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}
