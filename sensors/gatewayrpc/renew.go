package gatewayrpc

import (
	"context"
	"time"

	"stanch/sensors/gatewayrpc/gatewaypb"
)

const (
	// renewCheckInterval is how often the certificate's age is checked. renewRetryDelay is the delay after a failed
	// renewal.
	renewCheckInterval = time.Minute
	renewRetryDelay    = 15 * time.Minute
)

// renewCertificate renews the node's certificate before it expires. It logs failures and retries, because the old
// certificate is still valid.
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

// requestRenewal requests a certificate once, and reports whether it was renewed. It returns an error only if the
// stream failed.
func (s *session) requestRenewal(ctx context.Context) (bool, error) {
	csr, err := s.NodeCertificate.BeginRenewal()
	if err != nil {
		s.Log.Error("the node's certificate cannot be renewed", "expires", s.NodeCertificate.Certificate().NotAfter, "error",
			err)
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
		s.Log.Warn(
			"the gateway did not respond to the request for a new certificate; upgrade the gateway if it is older than this node",
			"expires",
			s.NodeCertificate.Certificate().NotAfter,
		)
		return false, nil
	case answer := <-s.renewals:
		if answer.GetError() != "" {
			s.Log.Error("the gateway refused to issue a new certificate", "expires", s.NodeCertificate.Certificate().NotAfter,
				"reason", answer.GetError())
			return false, nil
		}
		if err := s.NodeCertificate.AcceptCertificate(answer.GetCertificate()); err != nil {
			s.Log.Error("the node's new certificate was rejected", "expires", s.NodeCertificate.Certificate().NotAfter, "error",
				err)
			return false, nil
		}
		s.Log.Info("the node's certificate was renewed", "expires", s.NodeCertificate.Certificate().NotAfter)
		return true, nil
	}
}
