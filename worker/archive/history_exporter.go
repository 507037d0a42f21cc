package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"stanch/worker/audit"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// HistoryExporter reads every history of an incident from Temporal.
type HistoryExporter struct {
	Temporal      client.Client
	DataConverter converter.DataConverter
}

// Limits of one incident.
const (
	maxRunsPerIncident   = 300
	maxEventsPerIncident = 200_000
)

// historyExport is one export in progress.
type historyExport struct {
	*HistoryExporter
	runs       []audit.WorkflowRun
	seenRunIDs map[string]bool // by run id
	eventCount int
}

// Export returns the histories of an incident: its own runs, its playbooks, its leases, and the leases of other
// incidents that it joined. It returns no runs if Temporal has none.
func (c *HistoryExporter) Export(ctx context.Context, incident string) ([]audit.WorkflowRun, error) {
	if !incidentIDPattern.MatchString(incident) {
		return nil, fmt.Errorf("invalid incident id %q", incident)
	}
	g := &historyExport{HistoryExporter: c, seenRunIDs: map[string]bool{}}
	if err := g.addListedRuns(ctx, fmt.Sprintf("%s = '%s'", workflows.IncidentSearchAttribute, incident),
		nil); err != nil {
		return nil, err
	}
	// Visibility may lag behind: children are also found from the histories themselves.
	for i := 0; i < len(g.runs); i++ {
		if err := g.addChildRuns(ctx, i); err != nil {
			return nil, err
		}
	}
	if err := g.addJoinedLeases(ctx); err != nil {
		return nil, err
	}
	return g.runs, nil
}

func (g *historyExport) addListedRuns(ctx context.Context, query string, fits func(audit.WorkflowRun) bool) error {
	var token []byte
	for {
		page, err := g.Temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: query, PageSize: 100,
			NextPageToken: token,
		})
		if err != nil {
			return fmt.Errorf("list the incident's workflows in Temporal: %w", err)
		}
		for _, w := range page.GetExecutions() {
			if err := g.addRun(ctx, w.GetExecution().GetWorkflowId(), w.GetExecution().GetRunId(), fits); err != nil {
				return err
			}
		}
		if token = page.GetNextPageToken(); len(token) == 0 {
			return nil
		}
	}
}

// addRun reads one run's history.
func (g *historyExport) addRun(ctx context.Context, workflow, run string, fits func(audit.WorkflowRun) bool) error {
	if g.seenRunIDs[run] {
		return nil
	}
	if len(g.runs) >= maxRunsPerIncident {
		return fmt.Errorf("the incident has more than %d workflows", maxRunsPerIncident)
	}
	r := audit.WorkflowRun{WorkflowID: workflow, RunID: run, IsOpen: true}
	for it := g.Temporal.GetWorkflowHistory(ctx, workflow, run, false,
		enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); it.HasNext(); {
		e, err := it.Next()
		var gone *serviceerror.NotFound
		if errors.As(err, &gone) {
			return nil // its retention ended after the list was read
		}
		if err != nil {
			return fmt.Errorf("read the history of %s: %w", workflow, err)
		}
		if g.eventCount++; g.eventCount > maxEventsPerIncident {
			return fmt.Errorf("the incident's histories have more than %d events", maxEventsPerIncident)
		}
		r.Events = append(r.Events, e)
	}
	if len(r.Events) == 0 {
		return nil
	}
	r.WorkflowType = r.Events[0].GetWorkflowExecutionStartedEventAttributes().GetWorkflowType().GetName()
	switch r.Events[len(r.Events)-1].GetEventType() { //nolint:exhaustive // only those that end a run
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
		enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT,
		enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
		enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
		r.IsOpen = false
	}
	if fits != nil && !fits(r) {
		return nil
	}
	g.seenRunIDs[run] = true
	g.runs = append(g.runs, r)
	return nil
}

// addChildRuns adds what a run started, and the run that continues it.
func (g *historyExport) addChildRuns(ctx context.Context, i int) error {
	r := g.runs[i]
	for _, e := range r.Events {
		if a := e.GetChildWorkflowExecutionStartedEventAttributes(); a != nil {
			if err := g.addRun(ctx, a.GetWorkflowExecution().GetWorkflowId(), a.GetWorkflowExecution().GetRunId(),
				nil); err != nil {
				return err
			}
		}
		if a := e.GetWorkflowExecutionContinuedAsNewEventAttributes(); a != nil {
			if err := g.addRun(ctx, r.WorkflowID, a.GetNewExecutionRunId(), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// addJoinedLeases adds leases of other incidents that reported to this incident or its playbooks.
func (g *historyExport) addJoinedLeases(ctx context.Context) error {
	wanted := map[string][]string{} // lease ids by workflow id
	for _, r := range g.runs {
		if r.WorkflowType == audit.TypeLease || len(r.Events) == 0 {
			continue
		}
		for _, e := range r.Events {
			a := e.GetWorkflowExecutionSignaledEventAttributes()
			if a.GetSignalName() != workflows.SignalLeaseReport {
				continue
			}
			var report lease.OutgoingReport
			if g.DataConverter.FromPayloads(a.GetInput(), &report) != nil || report.Lease.ID == "" {
				continue // the timeline reports what cannot be read
			}
			id := a.GetExternalWorkflowExecution().GetWorkflowId()
			if !strings.HasPrefix(id, "lease/") || !strings.HasSuffix(id, "/"+report.Lease.Target+"/"+report.Lease.Facet) {
				continue
			}
			if !slices.Contains(wanted[id], report.Lease.ID) {
				wanted[id] = append(wanted[id], report.Lease.ID)
			}
		}
	}
	for _, r := range g.runs {
		if ids, ok := wanted[r.WorkflowID]; ok {
			wanted[r.WorkflowID] = slices.DeleteFunc(ids, func(id string) bool { return id == leaseIDOfRun(r) })
		}
	}
	for workflow, ids := range wanted {
		if len(ids) == 0 || strings.ContainsAny(workflow, "'\"") {
			continue
		}
		if err := g.addListedRuns(ctx, fmt.Sprintf("WorkflowId = '%s'", workflow),
			func(r audit.WorkflowRun) bool { return slices.Contains(ids, leaseIDOfRun(r)) }); err != nil {
			return err
		}
	}
	return nil
}

// leaseIDOfRun returns the id of a run's lease, which is derived from the first run of its chain.
func leaseIDOfRun(r audit.WorkflowRun) string {
	first := r.Events[0].GetWorkflowExecutionStartedEventAttributes().GetFirstExecutionRunId()
	first = strings.ToUpper(strings.ReplaceAll(first, "-", ""))
	return "LSE-" + first[:min(20, len(first))]
}
