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
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// Input starts an incident, or goes on with one.
type Input struct {
	ID      string `json:"id"` // minted by the gateway: INC- and a ULID
	Key     string `json:"key"`
	Cluster string `json:"cluster"`
	Scope   string `json:"scope"`
	Phase   int    `json:"phase"`
	Drill   bool   `json:"drill,omitempty"`
	// Quiet is how long nothing must happen before the incident closes. Default 15 min.
	Quiet  time.Duration `json:"quiet,omitempty"`
	Timing lease.Timing  `json:"timing"`
	// Config is the short hash of the configuration that was in force when it began.
	Config string `json:"config,omitempty"`
	// Thread: people are told by chat.
	Thread bool   `json:"thread,omitempty"`
	Carry  *state `json:"carry,omitempty"`
}

// Match is the local activity that picks playbooks; the worker implements it from the library that it loaded.
const Match = "MatchPlaybooks"

// Workflows are the incident workflow with the playbook workflow that it starts.
type Workflows struct {
	Playbooks *playbook.Workflows
}

// Incident runs one incident to its end and returns it.
func (w *Workflows) Incident(ctx workflow.Context, in Input) (playbooks.Incident, error) {
	r := &run{w: w, in: in, state: in.Carry}
	if r.state == nil {
		now := workflow.Now(ctx)
		r.state = &state{Last: now, Covered: map[string]bool{}, Attestations: map[string][]attestation.Envelope{}, Incident: playbooks.Incident{
			Version: playbooks.IncidentVersion, ID: in.ID, GroupingKey: in.Key, Cluster: in.Cluster, Status: "open", Opened: now, Updated: now,
			Scope: in.Scope, Phase: in.Phase, Drill: in.Drill,
		}}
	}
	r.in.Quiet = cmp.Or(in.Quiet, 15*time.Minute)
	if err := workflow.SetQueryHandler(ctx, workflows.QueryIncident, func() (playbooks.Incident, error) { return r.Incident, nil }); err != nil {
		return playbooks.Incident{}, err //nolint:wrapcheck // a mistake of the program
	}
	if r.enriched = r.Incident.Context.Enriched; in.Carry != nil {
		r.enriched = true
	}
	r.keepThread(ctx)
	r.keepWatchers(ctx)
	for {
		r.receive(ctx)
		if r.closeable(workflow.Now(ctx)) {
			// Signals that came while this task ran must not be lost with the close.
			if r.receive(ctx) {
				continue
			}
			r.Incident.Status, r.Incident.Closed = "closed", workflow.Now(ctx)
			r.line(r.Incident.Closed, "closed: quiet for "+duration.Format(r.in.Quiet)+", nothing is held")
			if r.lastLook(ctx) && r.receive(ctx) {
				// It arrived while the thread was told: it must not be lost with the close.
				r.Incident.Status, r.Incident.Closed = "open", time.Time{}
				r.line(workflow.Now(ctx), "open again: something arrived while it closed")
				continue
			}
			return r.Incident, nil
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() && r.enriching == 0 && !r.waiting {
			next := in
			next.Carry = r.state
			return playbooks.Incident{}, workflow.NewContinueAsNewError(ctx, w.Incident, next)
		}
		r.wait(ctx)
	}
}

type run struct {
	w *Workflows
	*state
	in        Input
	enriched  bool
	enriching int
	told      bool // the thread was told of everything so far
	handed    bool // it was said that nothing starts any more
	watched   bool // somebody tells the watchers
	waiting   bool // a shipped playbook waits for the enrichment, since a user's may match after it
	waited    bool // that has lasted long enough
	again     bool // a run came to nothing: the next may start
	changed   bool // the watchers were not told yet
}

// receive takes in every signal that is there; true if there was any.
func (r *run) receive(ctx workflow.Context) bool {
	heard, news := false, false
	var asked []Attested // what people requested
	for {
		var batch []Attested
		if !workflow.GetSignalChannel(ctx, workflows.SignalDetections).ReceiveAsync(&batch) {
			break
		}
		heard = true
		for _, a := range batch {
			added := r.add(a, workflow.Now(ctx))
			if news = added || news; added && a.Detection.ManualRequest != nil {
				asked = append(asked, a)
			}
		}
	}
	if news {
		r.conclude()
		r.start(ctx)
		r.requested(ctx, asked)
		r.enrich(ctx)
	}
	for {
		var mark Mark
		if !workflow.GetSignalChannel(ctx, workflows.SignalMark).ReceiveAsync(&mark) {
			break
		}
		heard = true
		r.heardMark(ctx, mark)
	}
	for {
		var report playbook.Report
		if !workflow.GetSignalChannel(ctx, workflows.SignalPlaybookReport).ReceiveAsync(&report) {
			break
		}
		heard = true
		r.heardPlaybook(report, workflow.Now(ctx))
		r.next(ctx)
	}
	for {
		var report lease.Report
		if !workflow.GetSignalChannel(ctx, workflows.SignalLeaseReport).ReceiveAsync(&report) {
			break
		}
		heard = true
		r.heardLease(report.Lease)
	}
	for {
		var id string
		if !workflow.GetSignalChannel(ctx, workflows.SignalWatch).ReceiveAsync(&id) {
			break
		}
		heard = true
		r.heardWatch(ctx, id, true)
	}
	for {
		var id string
		if !workflow.GetSignalChannel(ctx, workflows.SignalUnwatch).ReceiveAsync(&id) {
			break
		}
		r.heardWatch(ctx, id, false)
	}
	r.told, r.changed = r.told && !heard, r.changed || heard
	return heard
}

func (r *run) wait(ctx workflow.Context) {
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	idle := max(r.Last.Add(r.in.Quiet).Sub(workflow.Now(ctx)), time.Second)
	if !r.quiet(workflow.Now(ctx)) {
		idle = max(idle, r.in.Quiet)
	}
	s := workflow.NewSelector(ctx).AddFuture(workflow.NewTimer(timerCtx, idle), func(workflow.Future) {})
	for _, name := range []string{workflows.SignalDetections, workflows.SignalMark, workflows.SignalPlaybookReport, workflows.SignalLeaseReport, workflows.SignalWatch, workflows.SignalUnwatch} {
		s.AddReceive(workflow.GetSignalChannel(ctx, name), func(workflow.ReceiveChannel, bool) {})
	}
	s.Select(ctx)
}

// quiet tells whether nothing is under way.
func (r *run) quiet(time.Time) bool {
	if r.enriching > 0 {
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

func (r *run) closeable(now time.Time) bool {
	return r.quiet(now) && !now.Before(r.Last.Add(r.in.Quiet)) && r.Incident.TotalDetections > 0 || r.Incident.TotalDetections == 0 && !now.Before(r.Last.Add(r.in.Quiet))
}

// start runs every playbook that matches, on the targets that it does not cover yet.
func (r *run) start(ctx workflow.Context) {
	if r.onlyRequested() {
		return
	}
	if r.inHand() {
		if !r.handed {
			r.handed = true
			r.line(workflow.Now(ctx), notStarted(r.Incident))
		}
		return
	}
	local := workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{ScheduleToCloseTimeout: 10 * time.Second})
	var selected []Selected
	if err := workflow.ExecuteLocalActivity(local, Match, r.Incident).Get(ctx, &selected); err != nil {
		r.line(workflow.Now(ctx), "playbooks could not be matched: "+err.Error())
		return
	}
	for _, s := range selected {
		targets := r.assign(ctx, s, selected)
		if len(targets) == 0 && (s.NotSelected != "" || !r.bare(s.Name)) {
			continue
		}
		r.launch(ctx, r.version(s), targets)
	}
}

// bare tells whether a playbook is to run once on an incident that has no target: one about the telemetry itself, where
// people are called and nothing is held. No history from before these incidents can come here.
func (r *run) bare(name string) bool {
	if len(r.Incident.Targets) > 0 || r.Incident.Trigger.Event.Kind != sensors.KindSensorHealth || r.Covered[name+"\x00"] {
		return false
	}
	r.Covered[name+"\x00"] = true
	return true
}

// launch starts a playbook on targets; attested is what permits this run alone.
func (r *run) launch(ctx workflow.Context, s Selected, targets []playbooks.Target, attested ...attestation.Envelope) {
	r.Runs++
	snapshot := r.Incident
	snapshot.Targets = targets
	snapshot.Timeline, snapshot.Playbooks, snapshot.Leases, snapshot.Evidence, snapshot.NotSelected = nil, nil, nil, nil, nil
	attestations := map[string][]attestation.Envelope{}
	for _, t := range targets {
		r.Covered[s.Name+"\x00"+t.ID()] = true
		attestations[t.ID()] = slices.Concat(r.Attestations[t.ID()], attested)
	}
	id := fmt.Sprintf("playbook/%s/%d/%s", r.Incident.ID, r.Runs, s.Name)
	r.take(s, id, targets)
	childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID: id, ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_ABANDON,
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workflows.IncidentAttribute).ValueSet(r.Incident.ID)),
	})
	input := playbook.Input{Language: playbooks.LanguageVersion, File: s.File, Source: s.Source, Called: s.Called, Incident: snapshot, Brief: r.brief(), Attestations: attestations, Timing: r.in.Timing, Selection: s.Selection, Thread: r.in.Thread, LeasePerNode: true}
	child := workflow.ExecuteChildWorkflow(childCtx, r.w.Playbooks.Playbook, input)
	r.Incident.Playbooks = append(r.Incident.Playbooks, playbooks.PlaybookRun{Playbook: s.Name, WorkflowID: id, Started: workflow.Now(ctx)})
	r.line(workflow.Now(ctx), "playbook "+s.Name+" started")
	workflow.Go(ctx, func(ctx workflow.Context) {
		if err := child.GetChildWorkflowExecution().Get(ctx, nil); err != nil {
			r.heardPlaybook(playbook.Report{Run: id, Playbook: s.Name, Ended: workflow.Now(ctx), Error: "it could not be started: " + err.Error()}, workflow.Now(ctx))
			r.next(ctx)
			return
		}
		// A run that was terminated reports nothing; its end as a child is heard all the same.
		var report playbook.Report
		if err := child.Get(ctx, &report); err != nil && ctx.Err() == nil {
			r.heardPlaybook(playbook.Report{Run: id, Playbook: s.Name, Ended: workflow.Now(ctx), Error: err.Error()}, workflow.Now(ctx))
			r.next(ctx)
		}
	})
}

// maxSteps bounds the lines of reports that an incident keeps: it is handed on whole.
const maxSteps = 1500

func (r *run) heardPlaybook(report playbook.Report, now time.Time) {
	i := slices.IndexFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool { return p.WorkflowID == report.Run })
	if i < 0 || !r.Incident.Playbooks[i].Ended.IsZero() {
		return
	}
	complete := report // what it came to is judged by all of it
	for _, other := range r.Incident.Playbooks {
		report.Steps = report.Steps[:min(len(report.Steps), max(0, maxSteps-len(other.Steps)))]
	}
	p := &r.Incident.Playbooks[i]
	p.SourceHash, p.Steps, p.Error, p.Ended, p.Outcome, p.Reason, p.ResponderGuide = report.Hash, report.Steps, report.Error, report.Ended, report.Outcome, report.Reason, report.Guide
	r.Incident.Evidence = append(r.Incident.Evidence, report.Evidence...)
	for _, step := range report.Steps {
		r.line(step.At, display.StepTimelineText(report.Playbook, step))
	}
	ended := report.Ended
	if ended.IsZero() {
		ended = now
	}
	r.line(ended, fmt.Sprintf("playbook %s ended: %s", report.Playbook, display.SummarizeRun(r.Incident, *p)))
	r.Incident.Updated = now
	r.freed(complete)
}

func (r *run) heardLease(l playbooks.LeaseReport) {
	text := fmt.Sprintf("lease %s of %s on %s: %s", l.ID, l.Action, display.TargetName(r.Incident, l.Target), display.DescribeLease(l))
	if l.Reason != "" {
		text += ": " + l.Reason
	}
	r.line(l.At, text)
	r.Incident.Updated = l.At
	if i := slices.IndexFunc(r.Incident.Leases, func(x playbooks.LeaseReport) bool { return x.ID == l.ID }); i >= 0 {
		r.Incident.Leases[i] = l
		return
	}
	r.Incident.Leases = append(r.Incident.Leases, l)
}

// enrich gets the context once, beside the playbooks and not before them; playbooks that match only then start then.
func (r *run) enrich(ctx workflow.Context) {
	if r.enriched || len(r.Incident.Targets) == 0 {
		return
	}
	r.enriched = true
	r.enriching++
	target := r.Incident.Targets[0]
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer func() {
			r.enriching--
			r.told, r.changed = false, true
			r.enrichmentEnded(ctx)
		}()
		var set *activities.Activities
		var result activities.Result
		o := workflow.ActivityOptions{
			TaskQueue: workflows.TaskQueue, StartToCloseTimeout: 20 * time.Second, ScheduleToCloseTimeout: time.Minute,
			RetryPolicy: &temporal.RetryPolicy{InitialInterval: time.Second, MaximumAttempts: 3},
		}
		err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.Observe,
			activities.ObserveInput{Request: activities.Request{Action: "workload", Target: target, IncidentRef: r.brief()}}).Get(ctx, &result)
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
		r.conclude()
		r.waiting = false
		r.start(ctx)
	})
}
