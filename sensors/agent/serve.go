package agent

import (
	"context"
	"errors"

	"stanch/sensors"
	"stanch/sensors/gatewayrpc"
)

// Serve detects, spools and executes commands until ctx ends, which is not an error. It sets the Handler, Spool,
// BootID and StatusFunc of client.
func (a *Agent) Serve(ctx context.Context, client *gatewayrpc.Client, spool *gatewayrpc.Spool) error {
	client.Handler, client.Spool, client.BootID = a, spool, BootID()
	client.StatusFunc = func() any { return a.Report(spool.Len(), spool.Dropped()) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	go func() { failed <- client.Run(ctx) }()
	go func() {
		failed <- a.Watch(ctx, nil, func(d sensors.Detection) {
			a.failpoint("agent/detected/" + d.Rule)
			if err := spool.Add(d); err != nil {
				a.logThrottled("spool a detection", err)
			}
		})
	}()
	err := <-failed
	cancel()
	<-failed
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
