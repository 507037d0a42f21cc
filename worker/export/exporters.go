// Package export sends detections to other systems in their own formats: OCSF Detection Findings, Falco's JSON, or
// Stanch's own.
//
// It never blocks detections: what cannot be sent waits in a limited queue, is retried, and is counted when it must be
// dropped. It never sends in clear text beyond this machine, and never follows redirects with a token. Temporal has
// accepted every exported detection before; delivery is not guaranteed, and the history is the record.
package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"stanch/sensors"
	"stanch/sensors/rules"
	"stanch/worker/config"
)

const (
	maxQueuedDetections = 10_000
	maxSendAttempts     = 6
	initialRetryDelay   = 200 * time.Millisecond
	sendTimeout         = 10 * time.Second
)

// DeliveryCounts are the counts of one target's detections since the start.
type DeliveryCounts struct{ Sent, Dropped, Failed uint64 }

// Exporters are all export targets of a configuration. The zero value exports nothing. It is safe for concurrent use.
type Exporters struct {
	targets []*exportTarget
	stop    context.CancelFunc
	done    sync.WaitGroup
}

type exportTarget struct {
	config.Export
	readToken         func() (string, error)
	falcoRuleNames    map[string]string // Falco's rule name, by rule
	client            *http.Client
	file              *os.File
	queue             chan sensors.Detection
	log               *slog.Logger
	initialRetryDelay time.Duration

	pendingCount          atomic.Int64 // queued or being sent
	sent, dropped, failed atomic.Uint64
	productVersion        string
}

// Open opens every target and starts sending.
func Open(targets []config.Export, version string, log *slog.Logger) (*Exporters, error) {
	e := &Exporters{}
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	names := map[string]string{}
	if len(targets) == 0 {
		return e, nil
	}
	if set, err := rules.LoadShipped(); err == nil {
		for _, r := range set.Rules() {
			if len(r.Aliases) > 0 {
				names[r.Name] = r.Aliases[0]
			}
		}
	}
	for _, c := range targets {
		t := &exportTarget{
			Export: c, falcoRuleNames: names, queue: make(chan sensors.Detection, maxQueuedDetections),
			log: log, initialRetryDelay: initialRetryDelay, productVersion: version,
		}
		switch {
		case c.File != "":
			f, err := os.OpenFile(c.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				e.Close()
				return nil, fmt.Errorf("export %s: %w", c.Name, err)
			}
			t.file = f
		default:
			t.client = &http.Client{Timeout: sendTimeout, CheckRedirect: func(*http.Request,
				[]*http.Request,
			) error {
				return http.ErrUseLastResponse
			}}
			t.readToken = func() (string, error) {
				if c.TokenFile == "" {
					return "", nil
				}
				raw, err := os.ReadFile(c.TokenFile) // for each request: tokens are replaced
				return strings.TrimSpace(string(raw)), err
			}
			if _, err := t.readToken(); err != nil {
				e.Close()
				return nil, fmt.Errorf("export %s: %w", c.Name, err)
			}
		}
		e.targets = append(e.targets, t)
		e.done.Go(func() { t.sendQueued(ctx) })
	}
	return e, nil
}

// Enqueue queues a detection for every target. It never blocks.
func (e *Exporters) Enqueue(d sensors.Detection) {
	if e == nil {
		return
	}
	for _, t := range e.targets {
		t.pendingCount.Add(1)
		select {
		case t.queue <- d:
		default:
			t.pendingCount.Add(-1)
			t.dropped.Add(1)
		}
	}
}

// CountsByTarget returns the counts of every target, by name.
func (e *Exporters) CountsByTarget() map[string]DeliveryCounts {
	out := map[string]DeliveryCounts{}
	if e != nil {
		for _, t := range e.targets {
			out[t.Name] = DeliveryCounts{t.sent.Load(), t.dropped.Load(), t.failed.Load()}
		}
	}
	return out
}

// Close sends queued detections for at most a second, and stops.
func (e *Exporters) Close() {
	if e == nil || e.stop == nil {
		return
	}
	for until := time.Now().Add(time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		waiting := int64(0)
		for _, t := range e.targets {
			waiting += t.pendingCount.Load()
		}
		if waiting == 0 {
			break
		}
	}
	e.stop()
	e.done.Wait()
	for _, t := range e.targets {
		if t.file != nil {
			_ = t.file.Close()
		}
	}
}

func (t *exportTarget) sendQueued(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-t.queue:
			t.sendWithRetry(ctx, d)
			t.pendingCount.Add(-1)
		}
	}
}

// sendWithRetry sends a detection. After several failures it drops it, because the next one may succeed.
func (t *exportTarget) sendWithRetry(ctx context.Context, d sensors.Detection) {
	var shape any = d
	switch t.Format {
	case config.ExportFormatOCSF:
		shape = OCSFDetectionFinding(d, t.productVersion)
	case config.ExportFormatFalco:
		shape = FalcoEvent(d, t.falcoRuleNames[d.Rule])
	}
	raw, err := json.Marshal(shape)
	if err != nil {
		t.failed.Add(1)
		t.log.Error("encode a detection for an export", "export", t.Name, "detection", d.ID, "error", err)
		return
	}
	tries := 0
	var failure error // of the last try; that of the context would hide it
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		tries++
		failure = t.sendOnce(ctx, raw)
		return struct{}{}, failure
	}, backoff.WithMaxTries(maxSendAttempts), backoff.WithMaxElapsedTime(0),
		backoff.WithBackOff(&backoff.ExponentialBackOff{
			InitialInterval: t.initialRetryDelay, Multiplier: 2, MaxInterval: t.initialRetryDelay << maxSendAttempts,
		}))
	if err != nil {
		t.failed.Add(1)
		t.log.Error("export a detection", "export", t.Name, "detection", d.ID, "tries", tries, "error", failure)
		return
	}
	t.sent.Add(1)
}

func (t *exportTarget) sendOnce(ctx context.Context, raw []byte) error {
	if t.file != nil {
		if _, err := t.file.Write(append(raw, '\n')); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		return nil
	}
	token, err := t.readToken()
	if err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := t.client.Do(request)
	if err != nil {
		return errors.New("post: " + errorWithoutURL(err)) // some addresses are secrets
	}
	defer func() { _ = answer.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
	switch {
	case answer.StatusCode < 300:
		return nil
	case answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode >= 500:
		return errors.New("the receiver responded " + answer.Status)
	}
	return backoff.Permanent(errors.New("the receiver responded " + answer.Status)) // retrying does not help
}

// errorWithoutURL returns the text of a client error without its address.
func errorWithoutURL(err error) string {
	var inner interface{ Unwrap() error }
	if errors.As(err, &inner) && inner.Unwrap() != nil {
		return inner.Unwrap().Error()
	}
	return "failed"
}
