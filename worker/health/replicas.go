package health

import (
	"context"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"stanch/workflows"
)

// TaskQueuePollers asks Temporal which nodes are served: only the replica with a node's stream polls the node's task
// queue.
type TaskQueuePollers struct {
	Temporal client.Client
	// OwnIdentity is the identity of this replica's own polls.
	OwnIdentity string
}

var _ ReplicaChecker = TaskQueuePollers{}

// maxPollAge is the maximum age of a poll that may still be active: Temporal answers a poll after at most a minute.
const maxPollAge = 90 * time.Second

// ServesNode reports whether another replica polls a node's queue.
func (p TaskQueuePollers) ServesNode(ctx context.Context, node string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	queue, err := p.Temporal.DescribeTaskQueue(ctx, workflows.NodeTaskQueue(node), enumspb.TASK_QUEUE_TYPE_ACTIVITY)
	if err != nil {
		return false, fmt.Errorf("find the gateway that serves node %s: %w", node, err)
	}
	for _, poller := range queue.GetPollers() {
		if poller.GetIdentity() != p.OwnIdentity && time.Since(poller.GetLastAccessTime().AsTime()) < maxPollAge {
			return true, nil
		}
	}
	return false, nil
}
