// Package budgetclient is a worker's view of the shared budget of containments: its own usages at once, those of other
// workers with a delay. It decides nothing; package guards compares the budget with its limits.
package budgetclient

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	sdkworker "go.temporal.io/sdk/worker"

	"stanch/worker/guards"
	"stanch/workflows"
	"stanch/workflows/budget"
)

// How often usages are sent to the budget workflow, and other workers' usages are read from it.
const (
	// The budget has its own queue, so that it can be read before anything that uses it starts.
	budgetTaskQueue       = workflows.TaskQueue + "-budget"
	budgetFlushInterval   = 200 * time.Millisecond
	budgetRefreshInterval = 5 * time.Second
	// budgetCloseTimeout limits how long stopping waits for Temporal to accept the last usages.
	budgetCloseTimeout = 2 * time.Second
)

// Client is this worker's view of the budget: its own usages at once, those of others with a delay.
type Client struct {
	temporal      client.Client
	cluster       string
	BudgetWindow  *guards.BudgetWindow
	pendingUsages chan budget.Usage
	log           *slog.Logger
}

// Open starts the budget workflow if it is not running, and reads the earlier usages. stop sends the usages that are
// still pending; call it after everything that uses the budget has stopped.
func Open(ctx context.Context, temporal client.Client, cluster string, log *slog.Logger) (c *Client,
	stop func(), err error,
) {
	c = &Client{temporal: temporal, cluster: cluster, pendingUsages: make(chan budget.Usage, 10_000), log: log}
	c.BudgetWindow = guards.NewBudgetWindow(func(s budget.Usage) {
		select {
		case c.pendingUsages <- s:
		default:
			log.Error("dropped a durable budget entry: too many are pending", "lease", s.LeaseID)
		}
	})
	w := sdkworker.New(temporal, budgetTaskQueue, sdkworker.Options{
		LocalActivityWorkerOnly:          true,
		MaxConcurrentWorkflowTaskPollers: 2, StickyScheduleToStartTimeout: time.Second,
	})
	w.RegisterWorkflow(budget.Budget)
	if err := w.Start(); err != nil {
		return nil, nil, fmt.Errorf("store the budget: %w", err)
	}
	if err := c.sendUsages(ctx, nil); err != nil {
		w.Stop()
		return nil, nil, err
	}
	if err := c.refreshUsages(ctx); err != nil {
		// After a crash, Temporal may still wait for the dead worker's answer. That must not delay Stanch's start: the
		// budget is read again within seconds.
		log.Warn("could not read the shared budget; continuing with the local state", "error", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.flush(context.WithoutCancel(ctx), c.syncUntilDone(ctx))
	}()
	return c, func() { cancel(); <-done; w.Stop() }, nil
}

func (c *Client) sendUsages(ctx context.Context, batch []budget.Usage) error {
	_, err := c.temporal.SignalWithStartWorkflow(ctx, budget.WorkflowID(c.cluster), budget.SignalUsage, batch,
		client.StartWorkflowOptions{
			// Queries have no answer while a dead worker may still have the workflow's task; a short timeout limits that.
			ID: budget.WorkflowID(c.cluster), TaskQueue: budgetTaskQueue, WorkflowTaskTimeout: 2 * time.Second,
			WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		}, budget.Budget, budget.Input{})
	if err != nil {
		return fmt.Errorf("store the budget: %w", err)
	}
	return nil
}

// refreshUsages reads the usages of this worker's earlier processes and of other workers.
func (c *Client) refreshUsages(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	value, err := c.temporal.QueryWorkflow(ctx, budget.WorkflowID(c.cluster), "", budget.QueryUsage)
	var all []budget.Usage
	if err == nil {
		err = value.Get(&all)
	}
	if err != nil {
		return fmt.Errorf("read the budget: %w", err)
	}
	c.BudgetWindow.Merge(all)
	return nil
}

// syncUntilDone synchronizes both until ctx ends, and returns the usages that are not sent yet. Usages that cannot be
// sent now are sent later.
func (c *Client) syncUntilDone(ctx context.Context) (batch []budget.Usage) {
	flush, refresh := time.NewTicker(budgetFlushInterval), time.NewTicker(budgetRefreshInterval)
	defer flush.Stop()
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return batch
		case s := <-c.pendingUsages:
			batch = append(batch, s)
		case <-refresh.C:
			if err := c.refreshUsages(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn("could not read the shared budget; continuing with the local state", "error", err)
			}
		case <-flush.C:
			if len(batch) == 0 {
				continue
			}
			if err := c.sendUsages(ctx, batch); err != nil {
				c.log.Warn("could not store the budget; retrying", "error", err)
				continue
			}
			batch = nil
		}
	}
}

// flush sends the usages of batch and those that are still pending: otherwise the next process could contain more in an
// hour than the budget allows.
func (c *Client) flush(ctx context.Context, batch []budget.Usage) {
	for {
		select {
		case s := <-c.pendingUsages:
			batch = append(batch, s)
			continue
		default:
		}
		break
	}
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, budgetCloseTimeout)
	defer cancel()
	if err := c.sendUsages(ctx, batch); err != nil {
		c.log.Error("could not store the last usages of the budget; the next start permits that many more containments",
			"usages", len(batch), "error", err)
	}
}
