package forward

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"stanch/sensors/duration"
)

// sender sends batches until the gateway has responded to each line.
type sender struct {
	Options
	endpointURL string
	client      *http.Client
	summary     Summary
	// unsent is the part of the current batch that was not delivered yet.
	unsent []line
	// everAnswered reports whether the gateway has ever accepted a request, which proves that the address and the
	// token are valid.
	everAnswered bool
	// loggedRefusals counts the rejected lines that were logged individually.
	loggedRefusals int
}

// gatewayResponse is a response of the gateway.
type gatewayResponse struct {
	Status    string `json:"status"`
	Accepted  int    `json:"accepted"`
	Telemetry int    `json:"telemetry"`
	Health    int    `json:"health"`
	Refused   []struct {
		Line   int    `json:"line"`
		Reason string `json:"reason"`
	} `json:"refused"`
}

const (
	requestTimeout   = 60 * time.Second
	maxResponseBytes = 2 << 20
	maxRetryAfter    = 5 * time.Minute
	// maxLoggedRefusals is how many rejected lines are logged individually; the others are only counted.
	maxLoggedRefusals = 100
)

func newSender(o Options, target string) (*sender, error) {
	transport := &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout: 30 * time.Second,
	}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("read the certificate authority: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s contains no certificate", o.CA)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	s := &sender{Options: o, endpointURL: target, client: &http.Client{
		Transport: transport, Timeout: requestTimeout,
		// A redirect would send the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	_, err := s.token()
	return s, err
}

func (s *sender) token() (string, error) {
	raw, err := os.ReadFile(s.TokenFile)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" || strings.ContainsAny(token, " \r\n\t") {
		return "", fmt.Errorf("%s contains no valid token", s.TokenFile)
	}
	return token, nil
}

// send delivers a batch, however long it takes. It returns an error only if ctx ends, or if the gateway has never
// accepted a request and rejects this one for good.
func (s *sender) send(ctx context.Context, batch []line) error {
	s.unsent = batch
	// The random delay, from half of BackoffMin to BackoffMax, keeps many forwarders from retrying at the same moment.
	delays := &backoff.ExponentialBackOff{
		InitialInterval: s.BackoffMin * 3 / 4, MaxInterval: s.BackoffMax * 3 / 4, Multiplier: 2,
		RandomizationFactor: 1. / 3,
	}
	since, complained, why := time.Now(), false, ""
	sendUntilFailure := func() (struct{}, error) {
		for len(s.unsent) > 0 {
			part := s.nextBatch()
			if len(part) == 0 {
				continue
			}
			var wait time.Duration
			var err error
			wait, why, err = s.postWithGrace(ctx, part)
			switch {
			case err != nil:
				return struct{}{}, backoff.Permanent(err)
			case ctx.Err() != nil && len(s.unsent) > 0:
				return struct{}{}, backoff.Permanent(ctx.Err())
			case wait > 0:
				return struct{}{}, &backoff.RetryAfterError{Duration: min(wait, maxRetryAfter)}
			case why != "":
				return struct{}{}, errors.New(why)
			}
			if complained {
				s.Logf("the gateway is accepting lines again after %s", duration.FormatApprox(time.Since(since)))
			}
			since, complained = time.Now(), false
			delays.Reset()
		}
		return struct{}{}, nil
	}
	_, err := backoff.Retry(ctx, sendUntilFailure, backoff.WithBackOff(delays), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(error, time.Duration) {
			s.summary.Retries++
			if !complained {
				s.Logf("%s; retrying until it succeeds; reading is paused", why)
				complained = true
			}
		}))
	return err //nolint:wrapcheck // it names what failed
}

// postWithGrace posts lines. If ctx ends in the meantime, the request may still complete within a grace period: an
// aborted request would be sent again, although the gateway has usually accepted it.
func (s *sender) postWithGrace(ctx context.Context, part []line) (wait time.Duration, why string, err error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(shutdownGrace, cancel) })
	defer stop()
	if ctx.Err() != nil {
		return 0, "interrupted", nil
	}
	return s.post(own, part)
}

// nextBatch returns the lines to post next: all unsent lines up to one that is too long, which it rejects itself.
func (s *sender) nextBatch() []line {
	for i, l := range s.unsent {
		if !l.tooLong {
			continue
		}
		if i > 0 {
			return s.unsent[:i]
		}
		s.countRefused("the line exceeds the maximum record size")
		s.countAnswered(1)
		return nil
	}
	return s.unsent
}

// countAnswered counts lines that the gateway responded to.
func (s *sender) countAnswered(n int) {
	s.unsent = s.unsent[n:]
	s.summary.Lines += n
}

func (s *sender) countRefused(reason string) {
	s.summary.Refused++
	if s.loggedRefusals++; s.loggedRefusals <= maxLoggedRefusals {
		s.Logf("refused: %s", strconv.Quote(reason))
	} else if s.loggedRefusals%1000 == 0 {
		s.Logf("%d lines were refused in total", s.summary.Refused)
	}
}

// post sends lines once. why is the reason to retry, or "" if the gateway responded to the lines. wait is the delay
// that the gateway requests.
func (s *sender) post(ctx context.Context, part []line) (wait time.Duration, why string, err error) {
	token, err := s.token()
	if err != nil {
		return 0, err.Error(), nil
	}
	var body bytes.Buffer
	for _, l := range part {
		body.Write(l.text)
		body.WriteByte('\n')
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpointURL, &body)
	if err != nil {
		return 0, "", fmt.Errorf("create the request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := s.client.Do(r)
	if err != nil {
		return 0, fmt.Sprintf("connect to the gateway: %v", err), nil
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxResponseBytes))
	if err != nil {
		return 0, fmt.Sprintf("read the gateway's response: %v", err), nil
	}
	var a gatewayResponse
	readable := json.Unmarshal(raw, &a) == nil && a.Status != ""
	return s.handleResponse(resp, part, a, readable)
}

// handleResponse applies a response of the gateway to the lines that were sent.
func (s *sender) handleResponse(resp *http.Response, part []line, a gatewayResponse, readable bool) (wait time.Duration,
	why string, err error,
) {
	why = fmt.Sprintf("the gateway responded %s: %s", resp.Status, strconv.Quote(a.Status))
	switch code := resp.StatusCode; {
	case readable && (code == http.StatusAccepted || code == http.StatusMultiStatus || (code == http.StatusBadRequest ||
		code == http.StatusUnprocessableEntity) && coversAllLines(part, a)):
		s.everAnswered = true
		s.summary.Batches++
		s.summary.Accepted, s.summary.Telemetry, s.summary.Health = s.summary.Accepted+a.Accepted, s.summary.Telemetry+
			a.Telemetry, s.summary.Health+a.Health
		for _, r := range a.Refused {
			s.countRefused(r.Reason)
		}
		s.countAnswered(len(part))
		return 0, "", nil
	case code == http.StatusTooManyRequests || code >= 500:
		s.everAnswered = s.everAnswered || code == http.StatusTooManyRequests
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
			wait = min(time.Duration(min(n, 3600))*time.Second, maxRetryAfter)
		}
		return wait, why, nil
	case readable && (code == http.StatusBadRequest || code == http.StatusUnprocessableEntity ||
		code == http.StatusRequestEntityTooLarge):
		if len(part) > 1 {
			return s.splitBatch(resp.Request.Context(), part)
		}
		s.countRefused(a.Status)
		s.countAnswered(1)
		return 0, "", nil
	case !s.everAnswered:
		// No request was ever accepted: the address, the token or the kind is wrong, and a retry does not fix that.
		return 0, "", errors.New(why)
	}
	return 0, why, nil
}

// coversAllLines reports whether a response contains a result for each line.
func coversAllLines(part []line, a gatewayResponse) bool {
	return a.Accepted+a.Telemetry+a.Health+len(a.Refused) == len(part)
}

// splitBatch sends the first half of a batch that was rejected as a whole, so that one line does not block the others.
func (s *sender) splitBatch(ctx context.Context, part []line) (time.Duration, string, error) {
	return s.post(ctx, part[:len(part)/2])
}
