package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"

	"stanch/activities/kube"
	"stanch/playbooks"
	"stanch/workflows"
)

// orphanCheckInterval is how often orphans are searched.
const orphanCheckInterval = time.Minute

// undoOrphansPeriodically undoes containments past their stamped end without a running lease, which a terminated
// workflow left. The node's lock ends in the kernel and needs no sweep.
func (w *Worker) undoOrphansPeriodically(ctx context.Context) {
	if w.KubeClient == nil && w.awsAccount == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.closers = append(w.closers, func() { cancel() })
	go func() {
		tick := time.NewTicker(orphanCheckInterval)
		defer tick.Stop()
		for round := 0; ; round++ {
			// in phase 1 Stanch contains nothing there
			if w.awsAccount != nil && w.Config.Phase > 1 && round%cloudOrphanCheckRounds == 0 {
				if err := w.undoCloudOrphans(ctx, time.Now().Add(-orphanCheckInterval)); err != nil && ctx.Err() == nil {
					w.Log.Warn("could not undo orphaned containments in AWS; retrying", "error", err)
				}
			}
			if err := w.UndoOrphans(ctx, time.Now().Add(-30*time.Second)); err != nil && ctx.Err() == nil {
				w.Log.Warn("could not undo orphaned containments; retrying", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
}

// UndoOrphans undoes containments in the cluster whose stamped end is before a time and whose lease is not running.
func (w *Worker) UndoOrphans(ctx context.Context, before time.Time) error {
	if w.KubeClient == nil {
		return nil
	}
	isolated, err := kube.FindOrphanedIsolations(ctx, w.KubeClient, before)
	if err != nil {
		return fmt.Errorf("find orphaned isolations: %w", err)
	}
	scaled, err := kube.FindOrphanedScalings(ctx, w.KubeClient, before)
	if err != nil {
		return fmt.Errorf("find orphaned scale-downs: %w", err)
	}
	var problems []error
	cordoned, err := kube.FindOrphanedCordons(ctx, w.KubeClient, before)
	if err != nil { // the permissions of an older installation may lack nodes: the others are swept anyway
		problems = append(problems, fmt.Errorf("find orphaned cordons: %w", err))
	}
	for _, o := range slices.Concat(isolated, scaled, cordoned) {
		if running, err := w.isOrphanLeaseRunning(ctx, o); err != nil || running {
			problems = append(problems, err)
			continue
		}
		var drift *kube.Drift
		var err error
		switch {
		case o.IsolateRequest != nil:
			drift, err = kube.UndoIsolate(ctx, w.KubeClient, *o.IsolateRequest, false)
		case o.ScaleRequest != nil && o.ScalePrior != nil:
			drift, err = kube.UndoScale(ctx, w.KubeClient, *o.ScaleRequest, *o.ScalePrior, false)
		case o.CordonRequest != nil && o.CordonPrior != nil:
			drift, err = kube.UndoCordon(ctx, w.KubeClient, *o.CordonRequest, *o.CordonPrior)
		default:
			err = fmt.Errorf("undo %s: its prior state cannot be read; undo it manually", o.Object)
		}
		switch {
		case err != nil:
			problems = append(problems, err)
		case drift != nil:
			w.Log.Error("an orphaned containment was changed by another writer; undo it manually", "object", o.Object, "lease",
				o.LeaseID, "expired", o.ExpiredAt)
		default:
			w.Log.Warn("an orphaned containment was undone", "object", o.Object, "lease", o.LeaseID, "expired", o.ExpiredAt)
		}
	}
	return errors.Join(problems...)
}

// isOrphanLeaseRunning reports whether the lease's own workflow is running and will undo it.
func (w *Worker) isOrphanLeaseRunning(ctx context.Context, o kube.Orphan) (bool, error) {
	var target playbooks.Target
	facet := playbooks.FacetNetwork
	switch {
	case o.IsolateRequest != nil:
		target = playbooks.Target{Kind: playbooks.TargetPod, UID: o.IsolateRequest.Pod.UID}
	case o.ScaleRequest != nil:
		target, facet = playbooks.Target{Kind: playbooks.TargetWorkload, UID: o.ScaleRequest.Target.UID},
			playbooks.FacetReplicas
	case o.CordonRequest != nil:
		target, facet = playbooks.Target{Kind: playbooks.TargetPod, UID: o.CordonRequest.Pod.UID}, playbooks.FacetScheduling
	}
	return w.isTargetLeased(ctx, target, facet, o.Object)
}

// cloudOrphanCheckRounds is the number of rounds between two sweeps of the cloud account, which need many calls.
const cloudOrphanCheckRounds = 15

// undoCloudOrphans undoes containments in the account past their stamped end without a running lease.
func (w *Worker) undoCloudOrphans(ctx context.Context, before time.Time) error {
	orphans, err := w.awsAccount.FindOrphans(ctx, before)
	if err != nil {
		return fmt.Errorf("find orphaned containments in AWS: %w", err)
	}
	var problems []error
	for _, o := range orphans {
		if running, err := w.isTargetLeased(ctx, o.Target, o.Facet, o.ObjectName); err != nil || running {
			problems = append(problems, err)
			continue
		}
		switch drift, err := o.Undo(ctx); {
		case err != nil:
			problems = append(problems, err)
		case drift != nil:
			w.Log.Error("an orphaned containment was changed by another writer; undo it manually", "object", o.ObjectName,
				"lease", o.LeaseID, "difference", drift.Detail)
		default:
			w.Log.Warn("an orphaned containment was undone", "object", o.ObjectName, "lease", o.LeaseID, "expired", o.ExpiredAt)
		}
	}
	return errors.Join(problems...)
}

// isTargetLeased reports whether the lease of a target's facet is running.
func (w *Worker) isTargetLeased(ctx context.Context, target playbooks.Target, facet playbooks.Facet,
	object string,
) (bool, error) {
	ids := []string{workflows.LeaseWorkflowID(w.Config.Cluster, target, facet)}
	if target.Node != "" { // the lease may be its node's, started during an outage of the API server
		ids = append(ids, workflows.NodeLeaseWorkflowID(w.Config.Cluster, target, facet))
	}
	for _, id := range ids {
		d, err := w.TemporalClient.DescribeWorkflowExecution(ctx, id, "")
		var gone *serviceerror.NotFound
		switch {
		case errors.As(err, &gone):
		case err != nil:
			return false, fmt.Errorf("query the lease of %s: %w", object, err)
		case d.GetWorkflowExecutionInfo().GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:
			return true, nil
		}
	}
	return false, nil
}
