package worker

import (
	"context"

	"stanch/worker/auditevents"
	"stanch/worker/cloudtrail"
)

// followCloudTrail reads the account's CloudTrail events from the configured place.
func (w *Worker) followCloudTrail(ctx context.Context) error {
	if w.awsAccount == nil || w.Config.AWS.CloudTrail == nil {
		return nil
	}
	cloud := &auditevents.CloudEvents{
		RuleEvaluator: w.ruleEvaluator, Ingester: w.Ingester, EKSCluster: w.Config.AWS.Cluster,
		Log: w.Log,
	}
	t := &cloudtrail.Consumer{Account: w.awsAccount, HandleEvents: cloud.HandleEvents, Log: w.Log}
	if w.HealthMonitor != nil {
		t.HealthSink = w.HealthMonitor
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.Run(ctx, w.Config.AWS.CloudTrail.QueueURL, w.Config.AWS.CloudTrail.UseLookup)
	}()
	w.closers = append(w.closers, func() { stop(); <-done })
	return nil
}
