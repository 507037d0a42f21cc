// Package cloudtrail reads the CloudTrail events of an account, from a queue or by looking them up. It evaluates
// nothing and forgets nothing: a message is deleted only after its events were handled.
package cloudtrail

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"stanch/activities/aws"
	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/worker/auditevents"
	"stanch/worker/sourceserver"
)

// How CloudTrail is read.
const (
	lookupInterval = time.Minute
	// lookupWindow is how far back each lookup goes: CloudTrail delivers events up to a quarter of an hour late.
	lookupWindow   = 20 * time.Minute
	maxKnownEvents = 20_000
	maxRetryPause  = time.Minute
)

// Consumer reads the CloudTrail events of an account and forwards them. Events that could not be forwarded
// are read again.
type Consumer struct {
	Account      *aws.Account
	HandleEvents func(context.Context, []sensors.Event) error
	HealthSink   sourceserver.HealthSink // nil receives nothing
	Log          *slog.Logger
}

// Run reads events from a queue, if it is not "", and by looking them up, until ctx ends.
func (t *Consumer) Run(ctx context.Context, queue string, lookUp bool) {
	var all sync.WaitGroup
	if queue != "" {
		all.Go(func() { t.consumeQueue(ctx, queue) })
	}
	if lookUp {
		all.Go(func() { t.runLookups(ctx) })
	}
	all.Wait()
}

// reportHealth reports that CloudTrail is alive, and how many events could not be decoded.
func (t *Consumer) reportHealth(ctx context.Context, unread error) {
	if t.HealthSink == nil {
		return
	}
	some := (*integrations.BatchDecodeError)(nil)
	switch {
	case unread == nil:
		t.HealthSink.OnSourceMessage(auditevents.CloudTrailSource)
	case errors.As(unread, &some):
		t.HealthSink.OnSourceHealth(
			ctx,
			integrations.SensorHealth{
				Source:            auditevents.CloudTrailSource,
				Time:              time.Now().UTC(),
				UndecodableEvents: uint64(max(some.FailedCount, 1)),
				Message:           some.Error(),
			},
		)
	default:
		t.HealthSink.OnSourceHealth(ctx, integrations.SensorHealth{
			Source: auditevents.CloudTrailSource, Time: time.Now().UTC(),
			UndecodableEvents: 1, Message: unread.Error(),
		})
	}
}

// consumeQueue receives messages, and deletes each when Temporal has its detections. It reports and deletes messages
// that it cannot decode, because they would return forever.
func (t *Consumer) consumeQueue(ctx context.Context, url string) {
	for ctx.Err() == nil {
		t.retry(ctx, "read the CloudTrail queue", func() error {
			messages, err := t.Account.ReceiveMessages(ctx, url)
			if err != nil {
				return err //nolint:wrapcheck // logged with context
			}
			for _, m := range messages {
				if err := t.handleMessage(ctx, url, m); err != nil {
					return err // it is delivered again, and so are those after it
				}
			}
			return nil
		})
	}
}

func (t *Consumer) handleMessage(ctx context.Context, url string, m aws.QueueMessage) error {
	events, err := integrations.DecodeCloudTrail([]byte(m.Body))
	if err != nil {
		t.Log.Error(
			"parse a message from the CloudTrail queue; send events through EventBridge or SNS, not as S3 notifications",
			"events", len(events), "received", m.ReceiveCount, "error", err)
	}
	t.reportHealth(ctx, err)
	if err := t.HandleEvents(ctx, events); err != nil {
		return err
	}
	return t.Account.DeleteMessage(ctx, url, m)
}

// runLookups polls CloudTrail's API. Each lookup overlaps the previous one, because events arrive late; known events
// are not forwarded again.
func (t *Consumer) runLookups(ctx context.Context) {
	// The detections of a forgotten event have the same ids again, which their incidents know.
	known, _ := simplelru.NewLRU[string, struct{}](maxKnownEvents, nil) // fails only without a size
	for ctx.Err() == nil {
		t.retry(ctx, "look up CloudTrail events", func() error {
			return t.lookUp(ctx, known)
		})
		select {
		case <-ctx.Done():
		case <-time.After(lookupInterval):
		}
	}
}

// lookUp looks up the latest events once, and adds the ids of those that were forwarded to known.
func (t *Consumer) lookUp(ctx context.Context, known *simplelru.LRU[string, struct{}]) error {
	now := time.Now()
	complete, err := t.Account.LookupEvents(ctx, now.Add(-lookupWindow), now, func(raw string) error {
		events, err := integrations.DecodeCloudTrail([]byte(raw))
		if err != nil || len(events) != 1 || known.Contains(events[0].ID) {
			return nil //nolint:nilerr // an unreadable event stays unreadable
		}
		if err := t.HandleEvents(ctx, events); err != nil {
			return err
		}
		known.Add(events[0].ID, struct{}{})
		return nil
	})
	if err != nil {
		return err //nolint:wrapcheck // logged with context
	}
	// CloudTrail answers; an account without events does not mean that CloudTrail is silent
	t.reportHealth(ctx, nil)
	if !complete {
		t.Log.Warn("CloudTrail has more events than can be looked up; use a queue", "since", now.Add(-lookupWindow))
	}
	return nil
}

// retry repeats an operation until it succeeds or ctx ends, and logs each failure.
func (t *Consumer) retry(ctx context.Context, what string, operation func() error) {
	_, _ = backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, operation() },
		backoff.WithMaxElapsedTime(0), backoff.WithBackOff(&backoff.ExponentialBackOff{
			InitialInterval: time.Second, Multiplier: 2, MaxInterval: maxRetryPause,
		}), backoff.WithNotify(func(err error, wait time.Duration) {
			t.Log.Error(what, "error", err, "again_in", wait)
		}))
}
