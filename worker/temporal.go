package worker

import (
	"context"
	"fmt"
	"time"

	"go.temporal.io/sdk/activity"
	sdkworker "go.temporal.io/sdk/worker"

	"stanch/playbooks"
	"stanch/workflows"
	"stanch/workflows/chatmessage"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// workflowTypes are the workflows that a worker runs.
type workflowTypes struct {
	leases    *lease.Workflows
	playbooks *playbook.Workflows
	incidents *incident.Workflows
}

func newWorkflowTypes(catalog playbooks.Catalog) workflowTypes {
	leases := &lease.Workflows{Catalog: catalog}
	plays := &playbook.Workflows{Catalog: catalog, Leases: leases}
	return workflowTypes{leases, plays, &incident.Workflows{Playbooks: plays}}
}

// startWorkflows starts to run workflows and activities.
func (w *Worker) startWorkflows(context.Context) error {
	w.temporalWorker = sdkworker.New(w.TemporalClient, workflows.TaskQueue, sdkworker.Options{
		MaxConcurrentWorkflowTaskPollers: 4, MaxConcurrentActivityTaskPollers: 4, WorkerStopTimeout: 5 * time.Second,
	})
	w.temporalWorker.RegisterWorkflow(w.workflows.leases.Lease)
	w.temporalWorker.RegisterWorkflow(w.workflows.playbooks.Playbook)
	w.temporalWorker.RegisterWorkflow(w.workflows.incidents.Incident)
	w.temporalWorker.RegisterWorkflow(chatmessage.ChatMessage)
	w.temporalWorker.RegisterActivityWithOptions(w.Activities, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	w.temporalWorker.RegisterActivityWithOptions(w.Library.MatchPlaybooks,
		activity.RegisterOptions{Name: incident.MatchPlaybooksActivity})
	w.temporalWorker.RegisterActivityWithOptions(w.Library.MatchManualRequest,
		activity.RegisterOptions{Name: incident.MatchManualRequestActivity})
	if err := w.temporalWorker.Start(); err != nil {
		return fmt.Errorf("start the Temporal worker: %w", err)
	}
	w.closers = append(w.closers, w.temporalWorker.Stop)
	return nil
}

// pollNodeTaskQueue polls a node's task queue while its stream is connected here.
func (w *Worker) pollNodeTaskQueue(name string) (func(), error) {
	nodeWorker := sdkworker.New(w.TemporalClient, workflows.NodeTaskQueue(name), sdkworker.Options{
		DisableWorkflowWorker: true, MaxConcurrentActivityTaskPollers: 4, WorkerStopTimeout: time.Second,
		Identity: w.replicaName,
	})
	nodeWorker.RegisterActivityWithOptions(w.Activities, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	if err := nodeWorker.Start(); err != nil {
		return nil, fmt.Errorf("serve node %s: %w", name, err)
	}
	return nodeWorker.Stop, nil
}
