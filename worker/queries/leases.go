package queries

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"

	"stanch/workflows"
	"stanch/workflows/lease"
)

const (
	runningLeasesQuery = "WorkflowType = 'Lease' AND ExecutionStatus = 'Running'"
	allLeasesQuery     = "WorkflowType = 'Lease'"
	// maxLeasesPerRequest is the maximum number of leases that one request reads.
	maxLeasesPerRequest = 10_000
	// leaseQueryTimeout limits the query of one lease, and concurrentLeaseQueries is the number of parallel queries: a
	// lease whose worker hangs does not delay others. After a crash, Temporal first queries the dead worker for five
	// seconds, and only then a live one.
	leaseQueryTimeout      = 20 * time.Second
	concurrentLeaseQueries = 16
)

// RunningLeases returns the running leases by workflow id. With named, a lease or workflow id, it reads only that lease
// if it is found without reading others. Leases that could be read are returned even with an error, which names the
// others.
func (r *Service) RunningLeases(ctx context.Context, named string) (map[string]*lease.Machine, error) {
	found, problem := r.listLeaseWorkflows(ctx, runningLeasesQuery)
	for _, w := range found {
		if id := w.GetExecution().GetWorkflowId(); named != "" &&
			(id == named || lease.IDFromFirstRun(w.GetExecution().GetRunId()) == named) {
			return r.queryLeases(ctx, []*workflowpb.WorkflowExecutionInfo{w})
		}
	}
	out, err := r.queryLeases(ctx, found)
	for id, m := range out {
		if named != "" && m.LeaseID == named { // its run continues an earlier one
			return map[string]*lease.Machine{id: m}, nil
		}
	}
	return out, errors.Join(problem, err)
}

// listLeaseWorkflows lists leases, and returns an error if there are more than the limit.
func (r *Service) listLeaseWorkflows(ctx context.Context, query string) ([]*workflowpb.WorkflowExecutionInfo,
	error,
) {
	found, more, err := r.listWorkflowsUpTo(ctx, query, maxLeasesPerRequest)
	if err != nil {
		return found, fmt.Errorf("list the leases (%d were listed before the failure): %w", len(found), err)
	}
	if more {
		return found, fmt.Errorf("list the leases: there are more than %d; these are the first; try again when some have "+
			"ended", len(found))
	}
	return found, nil
}

// queryLeases queries the state of each lease.
func (r *Service) queryLeases(ctx context.Context,
	found []*workflowpb.WorkflowExecutionInfo,
) (map[string]*lease.Machine, error) {
	out := map[string]*lease.Machine{}
	var problems []error
	r.queryEachLease(ctx, found, func(w *workflowpb.WorkflowExecutionInfo, m *lease.Machine, err error) {
		if err != nil {
			problems = append(problems, err)
			return
		}
		key := w.GetExecution().GetWorkflowId()
		if _, twice := out[key]; twice {
			key += "/" + w.GetExecution().GetRunId()
		}
		out[key] = m
	})
	return out, errors.Join(problems...)
}

// queryEachLease queries leases in parallel, and passes the results to take, one at a time. A lease that Temporal has
// deleted has no result.
func (r *Service) queryEachLease(ctx context.Context, found []*workflowpb.WorkflowExecutionInfo,
	take func(*workflowpb.WorkflowExecutionInfo, *lease.Machine, error),
) {
	var all sync.WaitGroup
	var taking sync.Mutex
	free := make(chan struct{}, concurrentLeaseQueries)
	for _, w := range found {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			m, err := r.queryLease(ctx, w)
			if m == nil && err == nil {
				return
			}
			taking.Lock()
			defer taking.Unlock()
			take(w, m, err)
		})
	}
	all.Wait()
}

func (r *Service) queryLease(ctx context.Context, w *workflowpb.WorkflowExecutionInfo) (*lease.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseQueryTimeout)
	defer cancel()
	id, run := w.GetExecution().GetWorkflowId(), w.GetExecution().GetRunId()
	value, err := r.Temporal.QueryWorkflow(ctx, id, run, workflows.QueryLease)
	if gone := (*serviceerror.NotFound)(nil); errors.As(err, &gone) {
		return nil, nil
	}
	m := &lease.Machine{}
	if err == nil {
		err = value.Get(m)
	}
	if err != nil {
		return nil, fmt.Errorf("read the lease of %s (%s): %w", strings.TrimPrefix(id, "lease/"), lease.IDFromFirstRun(run),
			err)
	}
	return m, nil
}

// Leases returns the leases in force, or all that Temporal still has. A lease that cannot be read is listed as
// unreadable.
func (r *Service) Leases(ctx context.Context, all bool) ([]*lease.Machine, error) {
	query := runningLeasesQuery
	if all {
		query = allLeasesQuery
	}
	found, err := r.listLeaseWorkflows(ctx, query)
	if err != nil && len(found) == 0 {
		return nil, err
	}
	out := []*lease.Machine{}
	r.queryEachLease(ctx, found, func(w *workflowpb.WorkflowExecutionInfo, m *lease.Machine, err error) {
		if err != nil {
			m = unreadableLease(lease.IDFromFirstRun(w.GetExecution().GetRunId()), err)
		}
		out = append(out, m)
	})
	if err != nil {
		out = append(out, unreadableLease("", err))
	}
	return out, nil
}

// unreadableAction is the name under which CountLeasesInForce counts leases that cannot be read.
const unreadableAction = "unreadable"

// CountLeasesInForce returns the number of leases in force by the name of their action. A lease that cannot be read
// counts as one of the action "unreadable".
func (r *Service) CountLeasesInForce(ctx context.Context) (map[string]int, error) {
	found, err := r.listLeaseWorkflows(ctx, runningLeasesQuery)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	r.queryEachLease(ctx, found, func(_ *workflowpb.WorkflowExecutionInfo, m *lease.Machine, err error) {
		if err != nil {
			counts[unreadableAction]++
			return
		}
		counts[m.Action]++
	})
	return counts, nil
}

// unreadableLease returns the list entry of a lease that could not be read.
func unreadableLease(id string, err error) *lease.Machine {
	return &lease.Machine{LeaseID: id, State: "unreadable", Reason: err.Error()}
}
