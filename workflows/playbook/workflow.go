// Package playbook is the interpreter: one workflow that runs a checked playbook, step by step. Branches of a parallel
// step are isolated and always joined. Leases are child workflows that outlive the run and report by signal.
//
// It makes no security decisions: guards in the activity decide whether an effect is permitted, and an approval is a
// grant that the authority signs after people voted, never a value of this workflow.
package playbook

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/diagnostic"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// Input is everything that a run depends on: an edit of the playbook never changes a run in progress.
type Input struct {
	LanguageVersion int    `json:"language_version"`
	File            string `json:"file"`
	Source          []byte `json:"source"`
	// Callees are the files of all playbooks that it calls.
	Callees []playbooks.SourceFile `json:"callees,omitempty"`
	// Incident is the snapshot taken when the playbook matched.
	Incident    playbooks.Incident     `json:"incident"`
	IncidentRef activities.IncidentRef `json:"incident_ref"`
	// Attestations are the attested detections of each target, by target id.
	Attestations map[string][]attestation.Envelope `json:"attestations"`
	LeaseTiming  lease.Timing                      `json:"lease_timing"`
	// PlaybookAuthorization proves that the playbook belongs to the installation.
	PlaybookAuthorization *attestation.Envelope `json:"playbook_authorization,omitempty"`
	// ChatEnabled means that the incident has a chat message.
	ChatEnabled bool `json:"chat_enabled,omitempty"`
	// LeasePerNode gives targets that only a node reports a lease id with the node. Runs of earlier versions lack it.
	LeasePerNode bool `json:"lease_per_node,omitempty"`
}

// Report is a run's report to its incident.
type Report struct {
	WorkflowID string                  `json:"run"`
	Playbook   string                  `json:"playbook"`
	SourceHash string                  `json:"hash"`
	Ended      time.Time               `json:"ended,omitzero"` // zero while it is running
	Steps      []playbooks.StepReport  `json:"steps"`
	Evidence   []playbooks.EvidenceRef `json:"evidence,omitempty"`
	Error      string                  `json:"error,omitempty"`
	// Outcome is the outcome of the complete run: that of its `stop`, otherwise the worst of its steps. Reason is that
	// of its `stop`.
	Outcome        playbooks.Outcome `json:"outcome,omitempty"`
	Reason         string            `json:"reason,omitempty"`
	ResponderGuide string            `json:"responder_guide,omitempty"` // for the responder
}

// LoadPlaybook loads the playbook of a run with its callees.
func (in Input) LoadPlaybook(catalog playbooks.Catalog) (*playbooks.Program, diagnostic.Diagnostics) {
	return playbooks.LoadForRun(playbooks.SourceFile{File: in.File, Content: in.Source}, in.Callees, catalog)
}

// Workflows contains the playbook workflow and the catalog for checks.
type Workflows struct {
	Catalog playbooks.Catalog
	// Leases is the lease workflow that containments start.
	Leases *lease.Workflows
	// Load parses and checks a playbook; nil means Input.LoadPlaybook. Simulation caches the result.
	Load func(in Input, catalog playbooks.Catalog) (*playbooks.Program, diagnostic.Diagnostics)
}

// Playbook runs one playbook on one incident.
func (w *Workflows) Playbook(ctx workflow.Context, in Input) (Report, error) {
	if in.LanguageVersion > playbooks.LanguageVersion {
		// This worker is older than the run: panicking makes Temporal retry the task until a newer worker receives it.
		panic(fmt.Sprintf("the run needs version %d of the playbook language; this worker supports %d", in.LanguageVersion,
			playbooks.LanguageVersion))
	}
	load := w.Load
	if load == nil {
		load = Input.LoadPlaybook
	}
	program, problems := load(in, w.Catalog)
	info := workflow.GetInfo(ctx)
	report := Report{WorkflowID: info.WorkflowExecution.ID}
	if program == nil {
		report.Error, report.Ended = problems.Err().Error(), workflow.Now(ctx)
		return report, reportToIncident(ctx, in, report)
	}
	report.Playbook, report.SourceHash, report.ResponderGuide = program.Name, program.Hash, program.ResponderGuide
	r := &playbookRun{
		Workflows: w, input: in, workflowID: info.WorkflowExecution.ID, report: &report,
		waitingHolders: map[string]workflow.Settable{}, earlyLeaseReports: map[string]playbooks.LeaseReport{},
		receipts: map[string][]attestation.Envelope{}, openRequests: map[string]*openRequest{},
	}
	r.incidentRef = in.IncidentRef
	r.incidentRef.MaxPhase = program.MaxPhase
	if err := r.registerHandlers(ctx); err != nil {
		return report, err
	}
	r.runMainPlaybook(ctx, program)
	report.Ended = workflow.Now(ctx)
	return report, reportToIncident(ctx, in, report)
}

func reportToIncident(ctx workflow.Context, in Input, report Report) error {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	err := workflow.SignalExternalWorkflow(ctx, workflows.IncidentWorkflowID(in.IncidentRef.GroupingKey), "",
		workflows.SignalPlaybookReport, report).Get(ctx, nil)
	if err != nil {
		workflow.GetLogger(ctx).Info("the incident ended before its playbook", "error", err)
	}
	return nil
}

// playbookRun is one run in progress.
type playbookRun struct {
	*Workflows
	input             Input
	incidentRef       activities.IncidentRef
	workflowID        string
	report            *Report
	receipts          map[string][]attestation.Envelope // by target id
	waitingHolders    map[string]workflow.Settable
	earlyLeaseReports map[string]playbooks.LeaseReport
	openRequests      map[string]*openRequest
	requestCount      int
	answeredRequests  []activities.ApprovalOutcome // the last ones, for queries only
	// currentIncident is the incident's current state, once a step waits for it. incidentWaiters are notified of each
	// change.
	currentIncident *playbooks.Incident
	incidentWaiters []workflow.Channel
	watchRunning    bool
	reportedBytes   int // in bytes
	unreportedLines int // number of timeline lines
	activeWaits     int
	suspendedReason string // why nothing is contained anymore: a person decides
	holderCount     int
}

// registerHandlers registers the queries, and starts the branches that receive signals.
func (r *playbookRun) registerHandlers(ctx workflow.Context) error {
	if err := workflow.SetQueryHandler(ctx, workflows.QuerySteps, func() (Report, error) {
		return *r.report,
			nil
	}); err != nil {
		return err //nolint:wrapcheck // a programming error
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryPendingApprovals, func() ([]ApprovalRequest, error) {
		var all []ApprovalRequest
		for _, id := range slices.Sorted(maps.Keys(r.openRequests)) {
			all = append(all, r.openRequests[id].ApprovalRequest)
		}
		return all, nil
	}); err != nil {
		return err //nolint:wrapcheck // a programming error
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryAnsweredApprovals, func() ([]activities.ApprovalOutcome,
		error,
	) {
		return r.answeredRequests, nil
	}); err != nil {
		return err //nolint:wrapcheck // a programming error
	}
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var l lease.OutgoingReport
			workflow.GetSignalChannel(ctx, workflows.SignalLeaseReport).Receive(ctx, &l)
			if waiting, ok := r.waitingHolders[l.HolderID]; ok {
				delete(r.waitingHolders, l.HolderID)
				waiting.SetValue(l.Lease)
			} else {
				r.earlyLeaseReports[l.HolderID] = l.Lease
			}
		}
	})
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var why string
			workflow.GetSignalChannel(ctx, workflows.SignalSuspend).Receive(ctx, &why)
			r.suspendedReason = why
			// A person has decided: pending approval requests end.
			for _, id := range slices.Sorted(maps.Keys(r.openRequests)) {
				r.openRequests[id].wakeUp.SendAsync(true)
			}
		}
	})
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var vote attestation.Envelope
			workflow.GetSignalChannel(ctx, workflows.SignalVote).Receive(ctx, &vote)
			r.receiveVote(vote)
		}
	})
	return nil
}

// approvedGrants are the grants for the steps inside an approval, by plan hash.
type approvedGrants struct {
	approval      *playbooks.Approval
	grants        map[string]attestation.Envelope
	title         string
	approvedPlans plannedActions // the plans as they were approved
	// proposeOnly means denied or proposed: the steps inside are recorded and do not run.
	proposeOnly bool
}

func lastN[T any](s []T, n int) []T { return s[max(0, len(s)-n):] }

func activityErrorText(err error) string {
	// The message of the activity's error, without Temporal's wrapping.
	if app := (*temporal.ApplicationError)(nil); errors.As(err, &app) {
		return app.Message()
	}
	if late := (*temporal.TimeoutError)(nil); errors.As(err, &late) {
		return "timed out"
	}
	text := err.Error()
	if i := strings.Index(text, "): "); i > 0 && strings.HasPrefix(text, "activity error") {
		text = text[i+3:]
	}
	return text
}
