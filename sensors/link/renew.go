package link

import (
	"context"
	"time"

	"stanch/sensors/link/linkpb"
)

const (
	// renewLook is how often it is asked whether the certificate is due, and renewAgain how long after a refusal it is
	// asked for once more.
	renewLook  = time.Minute
	renewAgain = 15 * time.Minute
)

// renew keeps the node's certificate from ending. What goes wrong is told and tried again: the old one still holds.
func (s *session) renew(ctx context.Context) error {
	for {
		wait := renewLook
		if s.Identity.Due(s.Now()) {
			done, err := s.renewOnce(ctx)
			if err != nil {
				return err
			}
			if !done {
				wait = renewAgain
			}
		}
		if err := s.idle(ctx, wait); err != nil {
			return err
		}
	}
}

// renewOnce asks once. An error is the stream's; that no certificate came is none.
func (s *session) renewOnce(ctx context.Context) (bool, error) {
	csr, err := s.Identity.Request()
	if err != nil {
		s.Log.Error("the node's certificate cannot be renewed", "ends", s.Identity.Certificate().NotAfter, "error", err)
		return false, nil
	}
	if err := s.say(&linkpb.FromNode{Body: &linkpb.FromNode_Renew{Renew: &linkpb.Renew{Csr: csr}}}); err != nil {
		return false, err
	}
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-timer.C:
		s.Log.Warn("the gateway does not answer the request for a new certificate; an older gateway cannot", "ends", s.Identity.Certificate().NotAfter)
		return false, nil
	case answer := <-s.renewed:
		if answer.GetError() != "" {
			s.Log.Error("the gateway refused a new certificate", "ends", s.Identity.Certificate().NotAfter, "reason", answer.GetError())
			return false, nil
		}
		if err := s.Identity.Take(answer.GetCertificate()); err != nil {
			s.Log.Error("the node's new certificate is not taken", "ends", s.Identity.Certificate().NotAfter, "error", err)
			return false, nil
		}
		s.Log.Info("the node's certificate was renewed", "ends", s.Identity.Certificate().NotAfter)
		return true, nil
	}
}
