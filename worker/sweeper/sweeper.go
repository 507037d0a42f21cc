// Package sweeper undoes orphans: contained objects past their stamped end whose lease is not running, because its
// workflow was terminated.
//
// It knows no action: the action table says who finds orphans, and each orphan says how it is undone. It never ends a
// lease that is running, and never overwrites what someone else changed.
package sweeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/workflows"
)

const (
	// interval is the time between two sweeps.
	interval = time.Minute
	// cloudRounds is the number of sweeps between two searches of the cloud account, which need many calls.
	cloudRounds = 15
	// gracePeriod is the time after the stamped end in which the lease's own workflow undoes it; that in the cloud is
	// longer, because AWS's clock decides.
	gracePeriod      = 30 * time.Second
	cloudGracePeriod = time.Minute
)

// WorkflowDescriber returns the state of a workflow. Temporal's client implements it.
type WorkflowDescriber interface {
	DescribeWorkflowExecution(ctx context.Context, workflowID, runID string) (
		*workflowservice.DescribeWorkflowExecutionResponse, error)
}

// Sweeper searches for orphans and undoes them.
type Sweeper struct {
	Actions  []activities.Action // those that implement activities.OrphanFinder find orphans
	Temporal WorkflowDescriber
	Cluster  string // as in the ids of lease workflows
	// SearchCloud includes actions with IAM permissions. In phase 1, Stanch contains nothing there and has no permission
	// to search.
	SearchCloud bool
	Log         *slog.Logger
}

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for round := 0; ; round++ {
		if err := s.Sweep(ctx, round, time.Now()); err != nil && ctx.Err() == nil {
			s.Log.Warn("could not undo orphaned containments; retrying", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep undoes the orphans of every action. Every cloudRounds-th round, beginning with 0, it searches the cloud too. A
// failure of one action or orphan does not stop the others; the errors are joined.
func (s *Sweeper) Sweep(ctx context.Context, round int, now time.Time) error {
	var problems []error
	for _, action := range s.Actions {
		finder, ok := action.(activities.OrphanFinder)
		if !ok {
			continue
		}
		before := now.Add(-gracePeriod)
		if len(action.Spec().ApplyIAMPermissions) > 0 {
			if !s.SearchCloud || round%cloudRounds != 0 {
				continue
			}
			before = now.Add(-cloudGracePeriod)
		}
		orphans, err := finder.FindOrphans(ctx, before)
		if err != nil {
			problems = append(problems, fmt.Errorf("find what %s left: %w", action.Spec().Name, err))
		}
		for _, o := range orphans {
			if err := s.undo(ctx, o); err != nil {
				problems = append(problems, err)
			}
		}
	}
	return errors.Join(problems...)
}

// undo undoes an orphan unless its lease is running.
func (s *Sweeper) undo(ctx context.Context, o activities.Orphan) error {
	if running, err := s.isLeaseRunning(ctx, o.Target, o.Facet); err != nil {
		return fmt.Errorf("query the lease of %s: %w", o.ObjectName, err)
	} else if running {
		return nil
	}
	drift, err := o.Undo(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("undo %s, which lease %s left: %w", o.ObjectName, o.Lease.ID, err)
	case drift != nil:
		s.Log.Error("an orphaned containment was changed by another writer; undo it manually", "object", o.ObjectName,
			"lease", o.Lease.ID, "expired", o.Lease.ExpiresAt, "difference", drift.Detail)
	default:
		s.Log.Warn("an orphaned containment was undone", "object", o.ObjectName, "lease", o.Lease.ID, "expired",
			o.Lease.ExpiresAt)
	}
	return nil
}

// isLeaseRunning reports whether the lease of a target's facet is running.
func (s *Sweeper) isLeaseRunning(ctx context.Context, target playbooks.Target, facet playbooks.Facet) (bool, error) {
	ids := []string{workflows.LeaseWorkflowID(s.Cluster, target, facet)}
	if target.Node != "" { // the lease may be its node's, started during an outage of the API server
		ids = append(ids, workflows.NodeLeaseWorkflowID(s.Cluster, target, facet))
	}
	for _, id := range ids {
		d, err := s.Temporal.DescribeWorkflowExecution(ctx, id, "")
		var gone *serviceerror.NotFound
		switch {
		case errors.As(err, &gone):
		case err != nil:
			return false, err
		case d.GetWorkflowExecutionInfo().GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:
			return true, nil
		}
	}
	return false, nil
}
