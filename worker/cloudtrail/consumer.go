// Package cloudtrail reads the CloudTrail events of an account, from a queue or by looking them up. It evaluates nothing
// and forgets nothing: a message is deleted only after its events were handled.
package cloudtrail

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

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
	failures := 0
	for ctx.Err() == nil {
		messages, err := t.Account.ReceiveMessages(ctx, url)
		if err == nil {
			for _, m := range messages {
				if err = t.handleMessage(ctx, url, m); err != nil {
					break // it is delivered again, and so are those after it
				}
			}
		}
		if failures = t.pauseAfterFailure(ctx, err, failures, "read the CloudTrail queue"); failures == 0 && err != nil {
			return
		}
	}
}

func (t *Consumer) handleMessage(ctx context.Context, url string, m aws.QueueMessage) error {
	events, err := integrations.DecodeCloudTrail([]byte(m.Body))
	if err != nil {
		t.Log.Error("parse a message from the CloudTrail queue; send events through EventBridge or SNS, not as S3 notifications",
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
	known := map[string]bool{}
	failures := 0
	for ctx.Err() == nil {
		now := time.Now()
		if len(known) > maxKnownEvents {
			known = map[string]bool{} // their detections have the same ids, which their incidents know
		}
		complete, err := t.Account.LookupEvents(ctx, now.Add(-lookupWindow), now, func(raw string) error {
			events, err := integrations.DecodeCloudTrail([]byte(raw))
			if err != nil || len(events) != 1 || known[events[0].ID] {
				return nil //nolint:nilerr // an unreadable event stays unreadable
			}
			if err := t.HandleEvents(ctx, events); err != nil {
				return err
			}
			known[events[0].ID] = true
			return nil
		})
		if err == nil {
			// CloudTrail answers; an account without events does not mean that CloudTrail is silent
			t.reportHealth(ctx, nil)
		}
		if err == nil && !complete {
			t.Log.Warn("CloudTrail has more events than can be looked up; use a queue", "since", now.Add(-lookupWindow))
		}
		if failures = t.pauseAfterFailure(ctx, err, failures, "look up CloudTrail events"); failures > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookupInterval):
		}
	}
}

// pauseAfterFailure waits after a failure, longer each time, and returns the number of failures.
func (t *Consumer) pauseAfterFailure(ctx context.Context, err error, failures int, what string) int {
	if err == nil || ctx.Err() != nil {
		return 0
	}
	wait := min(time.Second<<min(failures, 6), maxRetryPause)
	t.Log.Error(what, "error", err, "again_in", wait)
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
	return failures + 1
}
