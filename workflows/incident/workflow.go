// Package incident is one story for each attack: it takes in detections by signal, correlates them, gets the
// context, starts every playbook that matches, and closes after a quiet window when nothing is held any more.
//
// It refuses to contain: playbooks and leases do, and report here. It loses no report: playbooks and leases are
// abandoned children, and everything is carried through continue-as-new.
package incident

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/workflows"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// Input starts an incident, or goes on with one.
type Input struct {
	ID          string `json:"id"` // minted by the gateway: INC- and a ULID
	GroupingKey string `json:"grouping_key"`
	Cluster     string `json:"cluster"`
	Scope       string `json:"scope"`
	Phase       int    `json:"phase"`
	Drill       bool   `json:"drill,omitempty"`
	// IdleTimeout is how long nothing must happen before the incident closes. Default 15 min.
	IdleTimeout time.Duration `json:"idle_timeout,omitempty"`
	LeaseTiming lease.Timing  `json:"lease_timing"`
	// ConfigHash is the short hash of the configuration that was in force when it began.
	ConfigHash string `json:"config_hash,omitempty"`
	// ChatEnabled: people are told by chat.
	ChatEnabled bool           `json:"chat_enabled,omitempty"`
	Resume      *incidentState `json:"resume,omitempty"`
}

// MatchPlaybooksActivity is the local activity that picks playbooks; the worker implements it from the library that it loaded.
const MatchPlaybooksActivity = "MatchPlaybooks"

// Workflows are the incident workflow with the playbook workflow that it starts.
type Workflows struct {
	Playbooks *playbook.Workflows
}

// Incident runs one incident to its end and returns it.
func (w *Workflows) Incident(ctx workflow.Context, in Input) (playbooks.Incident, error) {
	r := &incidentRun{workflows: w, input: in, incidentState: in.Resume}
	if r.incidentState == nil {
		now := workflow.Now(ctx)
		r.incidentState = &incidentState{LastDetectionAt: now, CoveredTargets: map[string]bool{}, Attestations: map[string][]attestation.Envelope{}, Incident: playbooks.Incident{
			Version: playbooks.IncidentVersion, ID: in.ID, GroupingKey: in.GroupingKey, Cluster: in.Cluster, Status: "open", Opened: now, Updated: now,
			Scope: in.Scope, Phase: in.Phase, Drill: in.Drill,
		}}
	}
	r.input.IdleTimeout = cmp.Or(in.IdleTimeout, 15*time.Minute)
	if err := workflow.SetQueryHandler(ctx, workflows.QueryIncident, func() (playbooks.Incident, error) { return r.Incident, nil }); err != nil {
		return playbooks.Incident{}, err //nolint:wrapcheck // a mistake of the program
	}
	if r.enriched = r.Incident.Context.Enriched; in.Resume != nil {
		r.enriched = true
	}
	r.keepMessageSynced(ctx)
	r.runWatcherLoop(ctx)
	for {
		r.receiveSignals(ctx)
		if r.canClose(workflow.Now(ctx)) {
			// Signals that came while this task ran must not be lost with the close.
			if r.receiveSignals(ctx) {
				continue
			}
			r.Incident.Status, r.Incident.Closed = "closed", workflow.Now(ctx)
			r.addTimeline(r.Incident.Closed, "closed: quiet for "+duration.Format(r.input.IdleTimeout)+", nothing is held")
			if r.finalSync(ctx) && r.receiveSignals(ctx) {
				// It arrived while the thread was told: it must not be lost with the close.
				r.Incident.Status, r.Incident.Closed = "open", time.Time{}
				r.addTimeline(workflow.Now(ctx), "open again: something arrived while it closed")
				continue
			}
			return r.Incident, nil
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() && r.activeEnrichments == 0 && !r.enrichmentWaitRunning {
			next := in
			next.Resume = r.incidentState
			return playbooks.Incident{}, workflow.NewContinueAsNewError(ctx, w.Incident, next)
		}
		r.waitForWork(ctx)
	}
}

type incidentRun struct {
	workflows *Workflows
	*incidentState
	input                 Input
	enriched              bool
	activeEnrichments     int
	messageUpToDate       bool // the thread was told of everything so far
	suspensionNoted       bool // it was said that nothing starts any more
	watcherLoopRunning    bool // somebody tells the watchers
	enrichmentWaitRunning bool // a shipped playbook waits for the enrichment, since a user's may match after it
	enrichmentWaitOver    bool // that has lasted long enough
	fallbackPending       bool // a run came to nothing: the next may start
	watchersOutdated      bool // the watchers were not told yet
}

// receiveSignals takes in every signal that is there; true if there was any.
func (r *incidentRun) receiveSignals(ctx workflow.Context) bool {
	heard, news := false, false
	var asked []AttestedDetection // what people requested
	for {
		var batch []AttestedDetection
		if !workflow.GetSignalChannel(ctx, workflows.SignalDetections).ReceiveAsync(&batch) {
			break
		}
		heard = true
		for _, a := range batch {
			added := r.addDetection(a, workflow.Now(ctx))
			if news = added || news; added && a.Detection.ManualRequest != nil {
				asked = append(asked, a)
			}
		}
	}
	if news {
		r.recompute()
		r.startMatchingPlaybooks(ctx)
		r.startManualRequests(ctx, asked)
		r.enrichContext(ctx)
	}
	for {
		var mark TriageDecision
		if !workflow.GetSignalChannel(ctx, workflows.SignalTriage).ReceiveAsync(&mark) {
			break
		}
		heard = true
		r.handleTriage(ctx, mark)
	}
	for {
		var report playbook.Report
		if !workflow.GetSignalChannel(ctx, workflows.SignalPlaybookReport).ReceiveAsync(&report) {
			break
		}
		heard = true
		r.handlePlaybookReport(report, workflow.Now(ctx))
		r.startFallback(ctx)
	}
	for {
		var report lease.OutgoingReport
		if !workflow.GetSignalChannel(ctx, workflows.SignalLeaseReport).ReceiveAsync(&report) {
			break
		}
		heard = true
		r.handleLeaseReport(report.Lease)
	}
	for {
		var id string
		if !workflow.GetSignalChannel(ctx, workflows.SignalWatchIncident).ReceiveAsync(&id) {
			break
		}
		heard = true
		r.handleWatch(ctx, id, true)
	}
	for {
		var id string
		if !workflow.GetSignalChannel(ctx, workflows.SignalUnwatchIncident).ReceiveAsync(&id) {
			break
		}
		r.handleWatch(ctx, id, false)
	}
	r.messageUpToDate, r.watchersOutdated = r.messageUpToDate && !heard, r.watchersOutdated || heard
	return heard
}

func (r *incidentRun) waitForWork(ctx workflow.Context) {
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	idle := max(r.LastDetectionAt.Add(r.input.IdleTimeout).Sub(workflow.Now(ctx)), time.Second)
	if !r.isIdle(workflow.Now(ctx)) {
		idle = max(idle, r.input.IdleTimeout)
	}
	s := workflow.NewSelector(ctx).AddFuture(workflow.NewTimer(timerCtx, idle), func(workflow.Future) {})
	for _, name := range []string{workflows.SignalDetections, workflows.SignalTriage, workflows.SignalPlaybookReport, workflows.SignalLeaseReport, workflows.SignalWatchIncident, workflows.SignalUnwatchIncident} {
		s.AddReceive(workflow.GetSignalChannel(ctx, name), func(workflow.ReceiveChannel, bool) {})
	}
	s.Select(ctx)
}

// isIdle tells whether nothing is under way.
func (r *incidentRun) isIdle(time.Time) bool {
	if r.activeEnrichments > 0 {
		return false
	}
	for _, p := range r.Incident.Playbooks {
		if p.Ended.IsZero() {
			return false
		}
	}
	for _, l := range r.Incident.Leases {
		if l.State != string(lease.StateEnded) {
			return false
		}
	}
	return true
}

func (r *incidentRun) canClose(now time.Time) bool {
	return r.isIdle(now) && !now.Before(r.LastDetectionAt.Add(r.input.IdleTimeout)) && r.Incident.TotalDetections > 0 || r.Incident.TotalDetections == 0 && !now.Before(r.LastDetectionAt.Add(r.input.IdleTimeout))
}

// startMatchingPlaybooks runs every playbook that matches, on the targets that it does not cover yet.
func (r *incidentRun) startMatchingPlaybooks(ctx workflow.Context) {
	if r.isManualOnly() {
		return
	}
	if r.isAssigned() {
		if !r.suspensionNoted {
			r.suspensionNoted = true
			r.addTimeline(workflow.Now(ctx), notStartedReason(r.Incident))
		}
		return
	}
	local := workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{ScheduleToCloseTimeout: 10 * time.Second})
	var selected []SelectedPlaybook
	if err := workflow.ExecuteLocalActivity(local, MatchPlaybooksActivity, r.Incident).Get(ctx, &selected); err != nil {
		r.addTimeline(workflow.Now(ctx), "playbooks could not be matched: "+err.Error())
		return
	}
	for _, s := range selected {
		targets := r.assignTargets(ctx, s, selected)
		if len(targets) == 0 && (s.NotSelectedReason != "" || !r.runsWithoutTargets(s.Name)) {
			continue
		}
		r.startPlaybook(ctx, r.pinnedVersion(s), targets)
	}
}

// runsWithoutTargets tells whether a playbook is to run once on an incident that has no target: one about the telemetry itself, where
// people are called and nothing is held. No history from before these incidents can come here.
func (r *incidentRun) runsWithoutTargets(name string) bool {
	if len(r.Incident.Targets) > 0 || r.Incident.Trigger.Event.Kind != sensors.KindSensorHealth || r.CoveredTargets[name+"\x00"] {
		return false
	}
	r.CoveredTargets[name+"\x00"] = true
	return true
}

// startPlaybook starts a playbook on targets; attested is what permits this run alone.
func (r *incidentRun) startPlaybook(ctx workflow.Context, s SelectedPlaybook, targets []playbooks.Target, attested ...attestation.Envelope) {
	r.RunCount++
	snapshot := r.Incident
	snapshot.Targets = targets
	snapshot.Timeline, snapshot.Playbooks, snapshot.Leases, snapshot.Evidence, snapshot.NotSelected = nil, nil, nil, nil, nil
	attestations := map[string][]attestation.Envelope{}
	for _, t := range targets {
		r.CoveredTargets[s.Name+"\x00"+t.ID()] = true
		attestations[t.ID()] = slices.Concat(r.Attestations[t.ID()], attested)
	}
	id := fmt.Sprintf("playbook/%s/%d/%s", r.Incident.ID, r.RunCount, s.Name)
	r.recordContainingRun(s, id, targets)
	childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID: id, ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_ABANDON,
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workflows.IncidentSearchAttribute).ValueSet(r.Incident.ID)),
	})
	input := playbook.Input{LanguageVersion: playbooks.LanguageVersion, File: s.File, Source: s.Source, Callees: s.Callees, Incident: snapshot, IncidentRef: r.incidentRef(), Attestations: attestations, LeaseTiming: r.input.LeaseTiming, PlaybookAuthorization: s.PlaybookAuthorization, ChatEnabled: r.input.ChatEnabled, LeasePerNode: true}
	child := workflow.ExecuteChildWorkflow(childCtx, r.workflows.Playbooks.Playbook, input)
	r.Incident.Playbooks = append(r.Incident.Playbooks, playbooks.PlaybookRun{Playbook: s.Name, WorkflowID: id, Started: workflow.Now(ctx)})
	r.addTimeline(workflow.Now(ctx), "playbook "+s.Name+" started")
	workflow.Go(ctx, func(ctx workflow.Context) {
		if err := child.GetChildWorkflowExecution().Get(ctx, nil); err != nil {
			r.handlePlaybookReport(playbook.Report{WorkflowID: id, Playbook: s.Name, Ended: workflow.Now(ctx), Error: "it could not be started: " + err.Error()}, workflow.Now(ctx))
			r.startFallback(ctx)
			return
		}
		// A run that was terminated reports nothing; its end as a child is heard all the same.
		var report playbook.Report
		if err := child.Get(ctx, &report); err != nil && ctx.Err() == nil {
			r.handlePlaybookReport(playbook.Report{WorkflowID: id, Playbook: s.Name, Ended: workflow.Now(ctx), Error: err.Error()}, workflow.Now(ctx))
			r.startFallback(ctx)
		}
	})
}

// maxStepReports bounds the lines of reports that an incident keeps: it is handed on whole.
const maxStepReports = 1500

func (r *incidentRun) handlePlaybookReport(report playbook.Report, now time.Time) {
	i := slices.IndexFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool { return p.WorkflowID == report.WorkflowID })
	if i < 0 || !r.Incident.Playbooks[i].Ended.IsZero() {
		return
	}
	complete := report // what it came to is judged by all of it
	for _, other := range r.Incident.Playbooks {
		report.Steps = report.Steps[:min(len(report.Steps), max(0, maxStepReports-len(other.Steps)))]
	}
	p := &r.Incident.Playbooks[i]
	p.SourceHash, p.Steps, p.Error, p.Ended, p.Outcome, p.Reason, p.ResponderGuide = report.SourceHash, report.Steps, report.Error, report.Ended, report.Outcome, report.Reason, report.ResponderGuide
	r.Incident.Evidence = append(r.Incident.Evidence, report.Evidence...)
	for _, step := range report.Steps {
		r.addTimeline(step.At, display.StepTimelineText(report.Playbook, step))
	}
	ended := report.Ended
	if ended.IsZero() {
		ended = now
	}
	r.addTimeline(ended, fmt.Sprintf("playbook %s ended: %s", report.Playbook, display.SummarizeRun(r.Incident, *p)))
	r.Incident.Updated = now
	r.releaseRefusedTargets(complete)
}

func (r *incidentRun) handleLeaseReport(l playbooks.LeaseReport) {
	text := fmt.Sprintf("lease %s of %s on %s: %s", l.ID, l.Action, display.TargetName(r.Incident, l.Target), display.DescribeLease(l))
	if l.Reason != "" {
		text += ": " + l.Reason
	}
	r.addTimeline(l.At, text)
	r.Incident.Updated = l.At
	if i := slices.IndexFunc(r.Incident.Leases, func(x playbooks.LeaseReport) bool { return x.ID == l.ID }); i >= 0 {
		r.Incident.Leases[i] = l
		return
	}
	r.Incident.Leases = append(r.Incident.Leases, l)
}

// enrichContext gets the context once, beside the playbooks and not before them; playbooks that match only then start then.
func (r *incidentRun) enrichContext(ctx workflow.Context) {
	if r.enriched || len(r.Incident.Targets) == 0 {
		return
	}
	r.enriched = true
	r.activeEnrichments++
	target := r.Incident.Targets[0]
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer func() {
			r.activeEnrichments--
			r.messageUpToDate, r.watchersOutdated = false, true
			r.startAfterEnrichment(ctx)
		}()
		var set *activities.Activities
		var result activities.Result
		o := workflow.ActivityOptions{
			TaskQueue: workflows.TaskQueue, StartToCloseTimeout: 20 * time.Second, ScheduleToCloseTimeout: time.Minute,
			RetryPolicy: &temporal.RetryPolicy{InitialInterval: time.Second, MaximumAttempts: 3},
		}
		err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.Observe,
			activities.ObserveInput{Request: activities.Request{Action: "workload", Target: target, IncidentRef: r.incidentRef()}}).Get(ctx, &result)
		if err != nil || !result.Outcome.HasOutputs() {
			reason := result.Reason
			if err != nil {
				reason = err.Error()
			}
			r.Incident.Context.Missing = append(r.Incident.Context.Missing, "workload: "+reason)
			return
		}
		var w activities.WorkloadContext
		if err := json.Unmarshal(result.Outputs, &w); err != nil {
			r.Incident.Context.Missing = append(r.Incident.Context.Missing, "workload: "+err.Error())
			return
		}
		r.Incident.Context = playbooks.ContextStatus{Enriched: true, Missing: w.Missing}
		w.ApplyToIncident(&r.Incident)
		r.recompute()
		r.enrichmentWaitRunning = false
		r.startMatchingPlaybooks(ctx)
	})
}
