package decisions

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/truncate"
	"stanch/worker/config"
	"stanch/worker/httpserver"
	"stanch/worker/ingest"
	"stanch/worker/nodeserver"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// ManualRequests handles `stanch contain` and `stanch run`. It never contains anything itself: it authenticates the
// person, resolves the target, attests both, and sends the request to the target's incident. The playbook there goes
// through the same guards, approvals and leases as any other.
type ManualRequests struct {
	Ingester   *ingest.Ingester
	NodeServer *nodeserver.Server
	// ProgramForRequest returns the playbook of a request.
	ProgramForRequest func(sensors.ManualRequest) (*playbooks.Program, error)
	// Plan plans a containment and evaluates the guards, without any effect.
	Plan func(context.Context, activities.PlanInput) (activities.PlanResult, error)
}

// ContainRequest is a manual request: either Action and Duration, or Playbook.
type ContainRequest struct {
	// ID identifies the request, so that sending it twice has one effect. The client chooses it.
	ID string `json:"id"`
	// Target is pod/NAMESPACE/NAME, NAMESPACE/NAME, container/ID, a container id, or an incident id for all targets
	// of the incident.
	Target string `json:"target"`
	// UID is the UID of the pod, if the caller knows it; a pod of that name with another UID is refused.
	UID string `json:"uid,omitempty"`
	// Node is the node of a container outside the cluster; "" asks the connected nodes.
	Node string `json:"node,omitempty"`
	// Action and Duration, or Playbook, say what to do.
	Action   string        `json:"action,omitempty"`
	Duration time.Duration `json:"for,omitempty"`
	Playbook string        `json:"playbook,omitempty"`
	Reason   string        `json:"reason"`
	DryRun   bool          `json:"dry_run,omitempty"`
}

// ContainResponse is the response to a ContainRequest.
type ContainResponse struct {
	IncidentID string `json:"incident,omitempty"` // "" for a dry run
	Playbook   string `json:"playbook"`
	// Containments are the containment actions of the playbook; empty for a playbook that only captures evidence.
	Containments []string        `json:"containments,omitempty"`
	Targets      []ContainTarget `json:"targets"`
}

// ContainTarget is one target of a request.
type ContainTarget struct {
	Target playbooks.Target `json:"target"`
	Scope  string           `json:"scope"`
	Phase  int              `json:"phase"`
	// RequestID identifies the playbook run in the incident; "" for a dry run.
	RequestID string `json:"request_id,omitempty"`
	// Plans are the planned containments of a dry run, with the decisions of the guards.
	Plans []ContainPlan `json:"plans,omitempty"`
}

// ContainPlan is the plan of one containment of a dry run.
type ContainPlan struct {
	Action   string                   `json:"action"`
	Plan     activities.Plan          `json:"plan"`
	Decision activities.GuardDecision `json:"decision"`
	// UnplannableReason is why the containment cannot be planned before the playbook runs; "" if it is planned.
	UnplannableReason string `json:"unplannable_reason,omitempty"`
}

const (
	maxRequestIDBytes = 64
	maxRequestTargets = 20 // targets of one request
	// maxRunsPerIncident limits the playbook runs of an incident with manual requests: its leases keep it open, and
	// it stores all of its runs.
	maxRunsPerIncident = 200
)

// Contain checks that the person may contain the target, and starts the request or, for a dry run, plans it.
func (d *Service) Contain(ctx context.Context, s Principal, q ContainRequest) (*ContainResponse, error) {
	if d.ManualRequests == nil {
		return nil, httpserver.NotFound("this Stanch installation does not support manual requests")
	}
	if !d.AllowRequest(s.RateLimitKey) {
		return nil, httpserver.TooManyRequests("too many requests; try again in a moment")
	}
	cfg, err := d.Roster.Current()
	if err != nil {
		return nil, httpserver.Forbidden("%v", err)
	}
	q.Reason = strings.TrimSpace(truncate.Runes(q.Reason, MaxReasonRunes))
	switch {
	case s.DrillName != "":
		return nil, httpserver.Forbidden("a drill's key cannot be used to request a containment")
	case q.Reason == "":
		return nil, httpserver.BadRequest("missing reason; it is recorded in the incident, the audit log and the chat")
	case !q.DryRun && (q.ID == "" || len(q.ID) > maxRequestIDBytes):
		return nil, httpserver.BadRequest("invalid request id; use 1 to %d characters", maxRequestIDBytes)
	case (q.Action == "") == (q.Playbook == ""):
		return nil, httpserver.BadRequest("request either an action or a playbook")
	}
	requested := sensors.ManualRequest{
		Person: s.Name, AuthenticatedBy: s.AuthenticatedBy, Reason: q.Reason,
		Action: q.Action, Duration: q.Duration, Playbook: q.Playbook,
	}
	program, err := d.ManualRequests.ProgramForRequest(requested)
	if err != nil {
		return nil, httpserver.BadRequest("%v", err)
	}
	found, err := d.resolveTargets(ctx, q)
	if err != nil {
		return nil, err
	}
	permitted := &attestation.ManualRequest{Person: s.Name, AuthenticatedBy: s.AuthenticatedBy, Reason: q.Reason}
	permitted.Actions, permitted.MaxDuration = program.Containments()
	for i := range found {
		if err := d.authorizeContain(ctx, cfg, s, incident.TargetOfDetection(found[i])); err != nil {
			return nil, err
		}
		found[i] = toManualRequestDetection(found[i], requested, s, q.ID)
	}
	answer := &ContainResponse{Playbook: program.Name, Containments: permitted.Actions}
	if q.DryRun {
		answer.Targets, err = dryRun{d, cfg, program, permitted}.planTargets(ctx, found)
	} else {
		err = d.startRequests(ctx, answer, found, permitted, func(incident string) {
			d.Log.Warn("a person requested a containment", "person", s.Name, "authenticated_by", s.AuthenticatedBy, "incident",
				incident, "what", requested.Describe(), "reason", q.Reason)
			d.recordInManifest(incident, activities.EntryKindTriage,
				activities.AuditRecord{Action: "requested " + requested.Describe(), People: []string{s.describe()}, Note: q.Reason})
		})
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// authorizeContain returns an error unless the person is an approver of the target's scope or the operator, who runs
// Stanch on this machine.
func (d *Service) authorizeContain(ctx context.Context, cfg *config.Config, s Principal,
	target playbooks.Target,
) error {
	if s.IsOperator {
		return nil
	}
	approvers := d.ScopeApprovers.ApproversForNamespace(target.Namespace, false)
	groups, err := d.GroupsForApprovers(ctx, cfg, s, approvers)
	if err != nil {
		return err
	}
	if !approvers.CanApprove(s.Name, groups, 1<<62) {
		return httpserver.Forbidden("%s is not allowed to contain %s; allowed: %s", s.Name, target,
			describeApprovers(approvers))
	}
	return nil
}

// toManualRequestDetection returns the detection of a target as the detection of a manual request.
func toManualRequestDetection(d sensors.Detection, r sensors.ManualRequest, s Principal, id string) sensors.Detection {
	now, target := time.Now(), incident.TargetOfDetection(d)
	// The hash keeps a person from choosing the id of another person's request.
	d.ID = "request/" + attestation.HashJSON([]string{s.RateLimitKey, id, target.ID()})[:32]
	d.Rule, d.Source, d.Objective = sensors.RuleManualRequest, sensors.SourceManualRequest, sensors.ObjectiveManualRequest
	d.Title, d.Severity, d.Confidence = "Requested by "+r.Person, sensors.SeverityHigh, 1
	d.Reasons = append([]string{fmt.Sprintf("%s requested %s: %s", display.FormatPerson(r.Person, r.AuthenticatedBy),
		r.Describe(), r.Reason)}, d.Reasons...)
	d.Time, d.Detected, d.ManualRequest = now, now, &r
	d.Event.Kind, d.Event.Time, d.Event.Actor = sensors.KindManualRequest, now, sensors.ActorPersonPrefix+r.Person
	return d
}

// startRequests sends the request to the incidents of its targets, and calls note for each incident. With an error, it
// says how many targets were requested before.
func (d *Service) startRequests(ctx context.Context, answer *ContainResponse, found []sensors.Detection,
	permitted *attestation.ManualRequest, note func(incident string),
) error {
	for n, one := range found {
		in, err := d.startRequest(ctx, one, permitted)
		if in.ID != "" && in.ID != answer.IncidentID {
			note(in.ID)
			answer.IncidentID = in.ID
		}
		if err != nil && n > 0 {
			return fmt.Errorf(
				"containment of %d of %d targets was requested, the last one in incident %s; %s could not be requested: %w", n,
				len(found),
				answer.IncidentID, incident.TargetOfDetection(one), err)
		}
		if err != nil {
			return err
		}
		answer.Targets = append(answer.Targets, ContainTarget{
			Target: incident.TargetOfDetection(one), Scope: in.Scope,
			Phase: in.Phase, RequestID: one.ID,
		})
	}
	return nil
}

// startRequest sends the request to the incident of one target.
func (d *Service) startRequest(ctx context.Context, one sensors.Detection,
	permitted *attestation.ManualRequest,
) (in playbooks.Incident, err error) {
	key := d.ManualRequests.Ingester.GroupingKey(one)
	if open, err := d.latestIncident(ctx, key); err == nil && open.Status == "open" &&
		len(open.Playbooks) >= maxRunsPerIncident {
		return in,
			httpserver.Conflict("incident %s has %d playbook runs and accepts no more requests; use `stanch extend` to "+
				"extend a lease, or release its leases so that the incident closes", open.ID, len(open.Playbooks))
	}
	if err := d.ManualRequests.Ingester.IngestManualRequest(ctx, one, permitted); err != nil {
		return in, err
	}
	if in, err = d.latestIncident(ctx, key); err != nil {
		return in, fmt.Errorf("the request was accepted, but its incident could not be read: %w", err)
	}
	return in, nil
}

// latestIncident reads the latest incident of a grouping key.
func (d *Service) latestIncident(ctx context.Context, key string) (playbooks.Incident, error) {
	var in playbooks.Incident
	value, err := d.Queries.Temporal.QueryWorkflow(ctx, workflows.IncidentWorkflowID(key), "",
		workflows.QueryIncident)
	if err == nil {
		err = value.Get(&in)
	}
	return in, err //nolint:wrapcheck // the caller adds context
}

// dryRun plans the containments of a request without any effect.
type dryRun struct {
	*Service
	config    *config.Config
	program   *playbooks.Program
	permitted *attestation.ManualRequest
}

// planTargets returns what each containment of the playbook would change, and what the guards decide.
func (r dryRun) planTargets(ctx context.Context, found []sensors.Detection) ([]ContainTarget, error) {
	var out []ContainTarget
	ingester := r.ManualRequests.Ingester
	for _, one := range found {
		signed, err := ingester.SignAttestation(one, time.Now(), r.permitted)
		if err != nil {
			return nil, err
		}
		scope, phase, _ := ingester.ScopeOfDetection(one)
		target := ContainTarget{Target: incident.TargetOfDetection(one), Scope: scope, Phase: phase}
		brief := activities.IncidentRef{
			ID: "dry-run", GroupingKey: ingester.GroupingKey(one), Cluster: ingester.Config.Cluster, Scope: scope,
			Workload: incident.WorkloadOfDetection(one), Confidence: 1, MaxPhase: r.program.MaxPhase,
		}
		for _, step := range containmentSteps(r.program) {
			plan, err := r.planStep(ctx, step, target.Target, activities.PlanInput{
				Request:       activities.Request{IncidentRef: brief},
				Authorization: activities.Authorization{Attestations: []attestation.Envelope{signed}},
			})
			if err != nil {
				return nil, err
			}
			target.Plans = append(target.Plans, plan)
		}
		out = append(out, target)
	}
	return out, nil
}

// planStep plans one containment; in contains the incident and the attestation.
func (r dryRun) planStep(ctx context.Context, step containmentStep, target playbooks.Target,
	in activities.PlanInput,
) (ContainPlan, error) {
	plan := ContainPlan{Action: step.Action}
	params, known := step.program.ConstantArguments(step.Step)
	if !known || step.Target != nil {
		plan.UnplannableReason = "its parameters or target depend on earlier steps"
		return plan, nil
	}
	in.Request.Action, in.Request.Target, in.Request.Params = step.Action, target, params
	in.Request.Duration, in.Request.ExpiresAt = step.LeaseDuration, time.Now().Add(step.LeaseDuration)
	in.Authorization.RequiresGrant = step.approval != nil
	planned, err := r.ManualRequests.Plan(ctx, in)
	if err != nil {
		return plan, fmt.Errorf("plan %s on %s: %w", step.Action, target, err)
	}
	plan.Plan, plan.Decision = planned.Plan, planned.Decision
	if plan.Decision.Verdict != activities.VerdictAskApproval {
		return plan, nil
	}
	if step.approval != nil {
		plan.Decision.Approvers = step.approval.Approvers // instead of those of the scope
	}
	if why := r.TooFewApproversReason(r.config, plan.Decision.Approvers,
		func(p config.Person) bool { return p.Name == r.permitted.Person }); why != "" {
		plan.Plan.Warnings = append(plan.Plan.Warnings, why)
	}
	return plan, nil
}

// containmentStep is a containment step with its enclosing approval; nil without one.
type containmentStep struct {
	*playbooks.Step
	program  *playbooks.Program
	approval *playbooks.Approval
}

// containmentSteps returns the containment steps of a playbook and of those that it calls.
func containmentSteps(p *playbooks.Program) []containmentStep {
	var out []containmentStep
	var walk func(p *playbooks.Program, steps []playbooks.Step, under *playbooks.Approval)
	walk = func(p *playbooks.Program, steps []playbooks.Step, under *playbooks.Approval) {
		for i := range steps {
			s := &steps[i]
			if s.Verb == playbooks.VerbContain {
				out = append(out, containmentStep{s, p, under})
			}
			for _, b := range s.Blocks() {
				if s.Approval != nil && b.Kind == "steps" {
					walk(p, b.Steps, s.Approval)
				} else {
					walk(p, b.Steps, under)
				}
			}
			if s.Call != nil && p.Callees[s.Call.Playbook] != nil {
				callee := p.Callees[s.Call.Playbook]
				walk(callee, callee.Steps, under)
			}
		}
	}
	walk(p, p.Steps, nil)
	return out
}

// shortContainerIDPattern matches a prefix of a container id, as lists show it.
var shortContainerIDPattern = regexp.MustCompile(`^[0-9a-f]{12,63}$`)
