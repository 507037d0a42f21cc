package health

import (
	"context"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"stanch/workflows"
)

// TaskQueuePollers tells from Temporal which nodes are served: the replica that holds a node's stream, and no other, polls the
// node's task queue.
type TaskQueuePollers struct {
	Temporal client.Client
	// OwnIdentity is how this replica's own polls are called.
	OwnIdentity string
}

var _ ReplicaChecker = TaskQueuePollers{}

// maxPollAge is how old the beginning of a poll may be that may still wait: Temporal answers one after a minute at the latest.
const maxPollAge = 90 * time.Second

// ServesNode tells whether another replica polls a node's queue.
func (p TaskQueuePollers) ServesNode(ctx context.Context, node string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	queue, err := p.Temporal.DescribeTaskQueue(ctx, workflows.NodeTaskQueue(node), enumspb.TASK_QUEUE_TYPE_ACTIVITY)
	if err != nil {
		return false, fmt.Errorf("ask who serves node %s: %w", node, err)
	}
	for _, poller := range queue.GetPollers() {
		if poller.GetIdentity() != p.OwnIdentity && time.Since(poller.GetLastAccessTime().AsTime()) < maxPollAge {
			return true, nil
		}
	}
	return false, nil
}
