package health_test

import (
	"context"

	sdkworker "go.temporal.io/sdk/worker"

	"stanch/testenv/temporal"
	"stanch/workflows"
)

// pollNodeQueue polls a node's queue, as the worker of the replica with the node's stream does.
func pollNodeQueue(server *temporal.Server, node, name string) (func(), error) {
	w := sdkworker.New(server.Client, workflows.NodeTaskQueue(node), sdkworker.Options{
		DisableWorkflowWorker: true,
		Identity:              name,
	})
	w.RegisterActivity(noopActivity)
	if err := w.Start(); err != nil {
		return nil, err
	}
	return w.Stop, nil
}

func noopActivity(context.Context) error { return nil }
