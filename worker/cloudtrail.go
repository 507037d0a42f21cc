package worker

import (
	"context"
	"errors"
	"time"

	"stanch/activities/aws"
	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/worker/gateway"
)

// How CloudTrail is read.
const (
	recordsEvery = time.Minute
	// recordsBack is how far each look goes back: CloudTrail is late by up to a quarter of an hour.
	recordsBack  = 20 * time.Minute
	recordsKnown = 20_000
	longestPause = time.Minute
)

// trail reads the record of an account and hands it on. What could not be handed on is read again.
type trail struct {
	account *aws.Account
	take    func(context.Context, []sensors.Event) error
	health  gateway.HealthSink // nil is told nothing
	w       *Worker
}

// spoke tells that the record of the account came, and how much of it could not be read.
func (t *trail) spoke(ctx context.Context, unread error) {
	if t.health == nil {
		return
	}
	some := (*integrations.BatchDecodeError)(nil)
	switch {
	case unread == nil:
		t.health.ForeignSpoke(gateway.CloudSource)
	case errors.As(unread, &some):
		t.health.ForeignHealth(ctx, integrations.SensorHealth{Source: gateway.CloudSource, Time: time.Now().UTC(), UndecodableEvents: uint64(max(some.FailedCount, 1)), Message: some.Error()}) //nolint:gosec // a count
	default:
		t.health.ForeignHealth(ctx, integrations.SensorHealth{Source: gateway.CloudSource, Time: time.Now().UTC(), UndecodableEvents: 1, Message: unread.Error()})
	}
}

// followCloudTrail reads the record of the account, where the configuration says from.
func (w *Worker) followCloudTrail(ctx context.Context) error {
	if w.account == nil || w.Config.AWS.CloudTrail == nil {
		return nil
	}
	f, err := gateway.NewForeign(w.Intake, nil, w.Log)
	if err != nil {
		return err
	}
	cloud := &gateway.Cloud{Judge: w.judge, Foreign: f, Cluster: w.Config.AWS.Cluster, Log: w.Log}
	t := &trail{account: w.account, take: cloud.Take, w: w}
	if w.Monitor != nil {
		t.health = w.Monitor
	}
	ctx, stop := context.WithCancel(ctx)
	var running []chan struct{}
	run := func(do func(context.Context)) {
		done := make(chan struct{})
		running = append(running, done)
		go func() { defer close(done); do(ctx) }()
	}
	if queue := w.Config.AWS.CloudTrail.Queue; queue != "" {
		run(func(ctx context.Context) { t.queue(ctx, queue) })
	}
	if w.Config.AWS.CloudTrail.Lookup {
		run(t.lookups)
	}
	w.closers = append(w.closers, func() {
		stop()
		for _, done := range running {
			<-done
		}
	})
	return nil
}

// queue takes messages, and deletes each when Temporal has what came of it. One that cannot be read is told and deleted:
// it would come again for ever.
func (t *trail) queue(ctx context.Context, url string) {
	failures := 0
	for ctx.Err() == nil {
		messages, err := t.account.ReceiveMessages(ctx, url)
		if err == nil {
			for _, m := range messages {
				if err = t.message(ctx, url, m); err != nil {
					break // it comes again, and so do those behind it
				}
			}
		}
		if failures = t.pause(ctx, err, failures, "the queue of CloudTrail cannot be read"); failures == 0 && err != nil {
			return
		}
	}
}

func (t *trail) message(ctx context.Context, url string, m aws.QueueMessage) error {
	events, err := integrations.DecodeCloudTrail([]byte(m.Body))
	if err != nil {
		t.w.Log.Error("a message in the queue of CloudTrail cannot be read; send events by EventBridge or SNS, and no notifications of S3", "events", len(events), "received", m.ReceiveCount, "error", err)
	}
	t.spoke(ctx, err)
	if err := t.take(ctx, events); err != nil {
		return err
	}
	return t.account.DeleteMessage(ctx, url, m)
}

// lookups asks CloudTrail itself. Each look goes back over the one before, because events come late; what is known is not
// handed on again.
func (t *trail) lookups(ctx context.Context) {
	known := map[string]bool{}
	failures := 0
	for ctx.Err() == nil {
		now := time.Now()
		if len(known) > recordsKnown {
			known = map[string]bool{} // their detections have the same ids, and are known to their incidents
		}
		complete, err := t.account.LookupEvents(ctx, now.Add(-recordsBack), now, func(raw string) error {
			events, err := integrations.DecodeCloudTrail([]byte(raw))
			if err != nil || len(events) != 1 || known[events[0].ID] {
				return nil //nolint:nilerr // CloudTrail's own; what it cannot be read as will not change
			}
			if err := t.take(ctx, events); err != nil {
				return err
			}
			known[events[0].ID] = true
			return nil
		})
		if err == nil {
			t.spoke(ctx, nil) // it answers; that the account was quiet is no silence of CloudTrail's
		}
		if err == nil && !complete {
			t.w.Log.Warn("CloudTrail has more events than can be looked up: use a queue", "since", now.Add(-recordsBack))
		}
		if failures = t.pause(ctx, err, failures, "CloudTrail cannot be asked"); failures > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(recordsEvery):
		}
	}
}

// pause waits after a failure, longer each time, and counts them.
func (t *trail) pause(ctx context.Context, err error, failures int, what string) int {
	if err == nil || ctx.Err() != nil {
		return 0
	}
	wait := min(time.Second<<min(failures, 6), longestPause)
	t.w.Log.Error(what, "error", err, "again_in", wait)
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
	return failures + 1
}
