// Package queries reads incidents, approval requests and leases from Temporal, which stores them. It changes nothing
// and keeps no copy.
package queries

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/truncate"
	"stanch/worker/httpserver"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// Service reads incidents, approval requests and leases from Temporal, which stores them.
type Service struct{ Temporal client.Client }

const (
	// maxListedIncidents is the maximum length of a list.
	maxListedIncidents = 500
	// concurrentIncidentReads is the number of parallel reads for a list.
	concurrentIncidentReads = 8
)

func (r *Service) listWorkflows(ctx context.Context, query string) ([]*workflowpb.WorkflowExecutionInfo, error) {
	out, _, err := r.listWorkflowsUpTo(ctx, query, maxListedIncidents)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// listWorkflowsUpTo lists workflows up to a limit, and reports whether there are more. With an error, it returns what
// it listed before.
func (r *Service) listWorkflowsUpTo(ctx context.Context, query string,
	most int,
) (out []*workflowpb.WorkflowExecutionInfo, more bool, err error) {
	var token []byte
	for len(out) < most {
		page, err := r.Temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: query, PageSize: 100,
			NextPageToken: token,
		})
		if err != nil {
			return out, true, fmt.Errorf("list workflows in Temporal: %w", err)
		}
		out = append(out, page.GetExecutions()...)
		if token = page.GetNextPageToken(); len(token) == 0 {
			return out, false, nil
		}
	}
	return out, true, nil
}

var incidentIDPattern = regexp.MustCompile(`^INC-[0-9A-HJKMNP-TV-Z]{26}$`)

// IsIncidentID reports whether s has the form of an incident id.
func IsIncidentID(s string) bool { return incidentIDPattern.MatchString(s) }

// Incident returns one incident in its current state, including the steps of its running playbooks so far.
func (r *Service) Incident(ctx context.Context, id string) (playbooks.Incident, error) {
	in, err := r.QueryIncident(ctx, id)
	if err == nil {
		r.addRunningPlaybooks(ctx, &in)
	}
	return in, err
}

// QueryIncident returns the incident's own state; playbooks report to it only at their end.
func (r *Service) QueryIncident(ctx context.Context, id string) (playbooks.Incident, error) {
	if !incidentIDPattern.MatchString(id) {
		return playbooks.Incident{}, httpserver.NotFound("invalid incident id %q; `stanch incidents` lists the incidents",
			truncate.Name(id))
	}
	found, err := r.listWorkflows(ctx, fmt.Sprintf("WorkflowType = 'Incident' AND %s = '%s'",
		workflows.IncidentSearchAttribute, id))
	if err != nil {
		return playbooks.Incident{}, err
	}
	for _, w := range found {
		if w.GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW {
			continue
		}
		return r.readIncident(ctx, w)
	}
	return playbooks.Incident{}, httpserver.NotFound("unknown incident %s; `stanch incidents` lists the incidents", id)
}

func (r *Service) readIncident(ctx context.Context, w *workflowpb.WorkflowExecutionInfo) (playbooks.Incident,
	error,
) {
	var in playbooks.Incident
	if w.GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED {
		if err := r.Temporal.GetWorkflow(ctx, w.GetExecution().GetWorkflowId(), w.GetExecution().GetRunId()).Get(ctx,
			&in); err != nil {
			return in, fmt.Errorf("read %s: %w", w.GetExecution().GetWorkflowId(), err)
		}
		return in, nil
	}
	value, err := r.Temporal.QueryWorkflow(ctx, w.GetExecution().GetWorkflowId(), w.GetExecution().GetRunId(),
		workflows.QueryIncident)
	if err == nil {
		err = value.Get(&in)
	}
	if err != nil {
		return in, fmt.Errorf("read %s: %w", w.GetExecution().GetWorkflowId(), err)
	}
	if w.GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
		// The workflow was terminated or failed: its last state stays as it is.
		in.Status, in.Closed = "closed", w.GetCloseTime().AsTime()
	}
	return in, nil
}

var _ activities.ClosureReader = (*Service)(nil)

// Closure returns how an incident ended.
func (r *Service) Closure(ctx context.Context, id string) (activities.Closure, error) {
	if !incidentIDPattern.MatchString(id) {
		return activities.Closure{}, httpserver.NotFound("invalid incident id %q", truncate.Name(id))
	}
	found, err := r.listWorkflows(ctx, fmt.Sprintf("WorkflowType = 'Incident' AND %s = '%s'",
		workflows.IncidentSearchAttribute, id))
	if err != nil {
		return activities.Closure{}, err
	}
	for _, w := range found {
		switch w.GetStatus() {
		case enumspb.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW:
			continue
		case enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED, enumspb.WORKFLOW_EXECUTION_STATUS_FAILED,
			enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED, enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:
			return activities.Closure{ClosedAt: w.GetCloseTime().AsTime(), Abnormal: true}, nil
		case enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED:
			return activities.Closure{ClosedAt: w.GetCloseTime().AsTime()}, nil
		default:
			return activities.Closure{}, nil
		}
	}
	// Between two runs of its chain, the list may contain only earlier runs.
	return activities.Closure{NotFound: len(found) == 0}, nil
}

// Incidents returns incidents, newest first.
func (r *Service) Incidents(ctx context.Context) ([]playbooks.Incident, error) {
	found, err := r.listWorkflows(ctx, "WorkflowType = 'Incident'")
	if err != nil {
		return nil, err
	}
	read := make([]playbooks.Incident, len(found))
	var all sync.WaitGroup
	free := make(chan struct{}, concurrentIncidentReads)
	for i, w := range found {
		if w.GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW {
			continue
		}
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			in, err := r.readIncident(ctx, w)
			if err != nil {
				// An unreadable incident must not hide the others.
				in = playbooks.Incident{
					GroupingKey: w.GetExecution().GetWorkflowId(), Opened: w.GetStartTime().AsTime(),
					Status: "unreadable", Summary: err.Error(),
				}
			} else {
				r.addRunningPlaybooks(ctx, &in)
			}
			read[i] = in
		})
	}
	all.Wait()
	out := []playbooks.Incident{}
	for _, in := range read {
		if in.TotalDetections > 0 || in.Status == "unreadable" {
			out = append(out, in)
		}
	}
	return out, nil
}

// PendingApprovals returns an incident's pending approval requests. Those that could be read are returned even with an
// error, which names the others.
func (r *Service) PendingApprovals(ctx context.Context, incident string) ([]playbook.ApprovalRequest, error) {
	if !incidentIDPattern.MatchString(incident) {
		return nil, httpserver.NotFound("invalid incident id %q", truncate.Name(incident))
	}
	return r.queryPendingApprovals(
		ctx,
		fmt.Sprintf(
			"WorkflowType = 'Playbook' AND ExecutionStatus = 'Running' AND %s = '%s'",
			workflows.IncidentSearchAttribute,
			incident,
		),
	)
}

// AllPendingApprovals returns every pending approval request.
func (r *Service) AllPendingApprovals(ctx context.Context) ([]playbook.ApprovalRequest, error) {
	return r.queryPendingApprovals(ctx, "WorkflowType = 'Playbook' AND ExecutionStatus = 'Running'")
}

func (r *Service) queryPendingApprovals(ctx context.Context, query string) ([]playbook.ApprovalRequest, error) {
	found, err := r.listWorkflows(ctx, query)
	if err != nil {
		return nil, err
	}
	out := []playbook.ApprovalRequest{}
	var problems []error
	for _, w := range found {
		value, err := r.Temporal.QueryWorkflow(ctx, w.GetExecution().GetWorkflowId(), w.GetExecution().GetRunId(),
			workflows.QueryPendingApprovals)
		var gone *serviceerror.NotFound
		if errors.As(err, &gone) {
			continue
		}
		var some []playbook.ApprovalRequest
		if err == nil {
			err = value.Get(&some)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("query %s: %w", w.GetExecution().GetWorkflowId(), err))
			continue
		}
		for _, p := range some {
			// others are hidden: nobody may approve what they did not see
			if p.WorkflowID == w.GetExecution().GetWorkflowId() && p.Validate() == nil {
				out = append(out, p)
			}
		}
	}
	return out, errors.Join(problems...)
}
