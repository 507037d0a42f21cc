package health

import (
	"context"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"stanch/workflows"
)

// Pollers tells from Temporal which nodes are served: the replica that holds a node's stream, and no other, polls the
// node's task queue.
type Pollers struct {
	Temporal client.Client
	// Self is how this replica's own polls are called.
	Self string
}

var _ Elsewhere = Pollers{}

// polled is how old the beginning of a poll may be that may still wait: Temporal answers one after a minute at the latest.
const polled = 90 * time.Second

// Serves tells whether another replica polls a node's queue.
func (p Pollers) Serves(ctx context.Context, node string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	queue, err := p.Temporal.DescribeTaskQueue(ctx, workflows.NodeTaskQueue(node), enumspb.TASK_QUEUE_TYPE_ACTIVITY)
	if err != nil {
		return false, fmt.Errorf("ask who serves node %s: %w", node, err)
	}
	for _, poller := range queue.GetPollers() {
		if poller.GetIdentity() != p.Self && time.Since(poller.GetLastAccessTime().AsTime()) < polled {
			return true, nil
		}
	}
	return false, nil
}
