package gatewayrpc

import (
	"context"
	"time"

	"stanch/sensors/gatewayrpc/gatewaypb"
)

const (
	// renewCheckInterval is how often it is asked whether the certificate is due, and renewRetryDelay how long after a refusal it is
	// asked for once more.
	renewCheckInterval = time.Minute
	renewRetryDelay    = 15 * time.Minute
)

// renewCertificate keeps the node's certificate from ending. What goes wrong is told and tried again: the old one still holds.
func (s *session) renewCertificate(ctx context.Context) error {
	for {
		wait := renewCheckInterval
		if s.NodeCertificate.NeedsRenewal(s.Now()) {
			done, err := s.requestRenewal(ctx)
			if err != nil {
				return err
			}
			if !done {
				wait = renewRetryDelay
			}
		}
		if err := s.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// requestRenewal asks once. An error is the stream's; that no certificate came is none.
func (s *session) requestRenewal(ctx context.Context) (bool, error) {
	csr, err := s.NodeCertificate.BeginRenewal()
	if err != nil {
		s.Log.Error("the node's certificate cannot be renewed", "ends", s.NodeCertificate.Certificate().NotAfter, "error", err)
		return false, nil
	}
	if err := s.send(&gatewaypb.FromNode{Body: &gatewaypb.FromNode_Renew{Renew: &gatewaypb.Renew{Csr: csr}}}); err != nil {
		return false, err
	}
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-timer.C:
		s.Log.Warn("the gateway does not answer the request for a new certificate; an older gateway cannot", "ends", s.NodeCertificate.Certificate().NotAfter)
		return false, nil
	case answer := <-s.renewals:
		if answer.GetError() != "" {
			s.Log.Error("the gateway refused a new certificate", "ends", s.NodeCertificate.Certificate().NotAfter, "reason", answer.GetError())
			return false, nil
		}
		if err := s.NodeCertificate.AcceptCertificate(answer.GetCertificate()); err != nil {
			s.Log.Error("the node's new certificate is not taken", "ends", s.NodeCertificate.Certificate().NotAfter, "error", err)
			return false, nil
		}
		s.Log.Info("the node's certificate was renewed", "ends", s.NodeCertificate.Certificate().NotAfter)
		return true, nil
	}
}
