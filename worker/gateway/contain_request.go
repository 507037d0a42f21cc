package gateway

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// ManualRequests contains what a person asks for: `stanch contain` and `stanch run`. It refuses to contain itself: it proves
// who asks and what the target is, attests that, and gives it to the target's incident, whose playbook goes through the
// same guards, approvals and leases as any other.
type ManualRequests struct {
	Ingester   *Ingester
	NodeServer *NodeServer
	// ProgramForRequest is the playbook of a request.
	ProgramForRequest func(sensors.ManualRequest) (*playbooks.Program, error)
	// Plan plans a containment and asks the guards, without an effect.
	Plan func(context.Context, activities.PlanInput) (activities.PlanResult, error)
}

// ContainRequest is what a person asks for.
type ContainRequest struct {
	// ID makes the request unique: the same one sent twice is one. The client chooses it.
	ID string `json:"id"`
	// Target is pod/NAMESPACE/NAME, NAMESPACE/NAME, container/ID, a container's id, or an incident's id, which means its targets.
	Target string `json:"target"`
	// UID is the pod's, where who asks knows it; another pod of the name is refused.
	UID string `json:"uid,omitempty"`
	// Node is where a container of a machine outside of a cluster runs; "" asks the connected nodes.
	Node string `json:"node,omitempty"`
	// Action and For, or Playbook.
	Action   string        `json:"action,omitempty"`
	Duration time.Duration `json:"for,omitempty"`
	Playbook string        `json:"playbook,omitempty"`
	Reason   string        `json:"reason"`
	DryRun   bool          `json:"dry_run,omitempty"`
}

// ContainResponse is what became of a request: a line for each target.
type ContainResponse struct {
	IncidentID string `json:"incident,omitempty"` // "" of a dry run
	Playbook   string `json:"playbook"`
	// Containments are the containments that the playbook may ask for; none of one that captures evidence alone.
	Containments []string        `json:"containments,omitempty"`
	Targets      []ContainTarget `json:"targets"`
}

// ContainTarget is one target of a request.
type ContainTarget struct {
	Target playbooks.Target `json:"target"`
	Scope  string           `json:"scope"`
	Phase  int              `json:"phase"`
	// RequestID is the id under which the incident's playbook run stands; "" of a dry run.
	RequestID string `json:"request_id,omitempty"`
	// Plans are of a dry run: what each containment would change and what the guards say.
	Plans []ContainPlan `json:"plans,omitempty"`
}

// ContainPlan is the plan of one containment of a dry run.
type ContainPlan struct {
	Action   string                   `json:"action"`
	Plan     activities.Plan          `json:"plan"`
	Decision activities.GuardDecision `json:"decision"`
	// UnplannableReason says why it cannot be planned before the playbook runs.
	UnplannableReason string `json:"unplannable_reason,omitempty"`
}

const (
	maxRequestIDBytes = 64
	maxRequestTargets = 20 // targets of one request
	// maxRunsPerIncident bounds the playbook runs of an incident that people add to: an incident is kept open by what it holds, and
	// carries all of its runs.
	maxRunsPerIncident = 200
)

func badRequest(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// Contain proves that the person may, and starts what they ask for, or plans it.
func (d *ApprovalService) Contain(ctx context.Context, s Principal, q ContainRequest) (*ContainResponse, error) {
	if d.ManualRequests == nil {
		return nil, notFound("this Stanch takes no requests")
	}
	if !d.rateLimiter.allow(s.RateLimitKey) {
		return nil, &httpError{http.StatusTooManyRequests, "too many requests; wait a moment"}
	}
	cfg, err := d.Roster.Current()
	if err != nil {
		return nil, forbidden("%v", err)
	}
	q.Reason = strings.TrimSpace(truncateTo(q.Reason, maxReasonBytes))
	switch {
	case s.DrillName != "":
		return nil, forbidden("a drill's key contains nothing by request")
	case q.Reason == "":
		return nil, badRequest("a reason is required: it is in the incident, the audit and the chat")
	case !q.DryRun && (q.ID == "" || len(q.ID) > maxRequestIDBytes):
		return nil, badRequest("the request has no id of at most %d characters", maxRequestIDBytes)
	case (q.Action == "") == (q.Playbook == ""):
		return nil, badRequest("ask for an action or for a playbook")
	}
	requested := sensors.ManualRequest{Person: s.Name, AuthenticatedBy: s.AuthenticatedBy, Reason: q.Reason, Action: q.Action, Duration: q.Duration, Playbook: q.Playbook}
	program, err := d.ManualRequests.ProgramForRequest(requested)
	if err != nil {
		return nil, badRequest("%v", err)
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
		err = d.planDryRun(ctx, cfg, answer, program, found, permitted)
	} else {
		err = d.startRequests(ctx, answer, found, permitted, func(incident string) {
			d.Log.Warn("a person requested a containment", "person", s.Name, "proved", s.AuthenticatedBy, "incident", incident, "what", requested.Describe(), "reason", q.Reason)
			d.recordInManifest(incident, activities.EntryKindTriage, activities.AuditRecord{Action: "requested " + requested.Describe(), People: []string{s.describe()}, Note: q.Reason})
		})
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// authorizeContain says why the person may not ask for a containment of a target, or nil: the approvers of its scope may, and who
// runs Stanch on this machine.
func (d *ApprovalService) authorizeContain(ctx context.Context, cfg *config.Config, s Principal, target playbooks.Target) error {
	if s.IsOperator {
		return nil
	}
	approvers := d.ScopeApprovers.ApproversForNamespace(target.Namespace, false)
	groups, err := d.groupsForApprovers(ctx, cfg, s, approvers)
	if err != nil {
		return err
	}
	if !approvers.CanApprove(s.Name, groups, 1<<62) {
		return forbidden("%s may not contain %s: that is for %s", s.Name, target, describeApprovers(approvers))
	}
	return nil
}

// toManualRequestDetection makes a target's detection the one of a request.
func toManualRequestDetection(d sensors.Detection, r sensors.ManualRequest, s Principal, id string) sensors.Detection {
	now, target := time.Now(), incident.TargetOfDetection(d)
	d.ID = "request/" + attestation.HashJSON([]string{s.RateLimitKey, id, target.ID()})[:32] // nobody chooses the id of another's
	d.Rule, d.Source, d.Objective = sensors.RuleManualRequest, sensors.SourceManualRequest, sensors.ObjectiveManualRequest
	d.Title, d.Severity, d.Confidence = "Requested by "+r.Person, sensors.SeverityHigh, 1
	d.Reasons = append([]string{fmt.Sprintf("%s asked for %s: %s", display.FormatPerson(r.Person, r.AuthenticatedBy), r.Describe(), r.Reason)}, d.Reasons...)
	d.Time, d.Detected, d.ManualRequest = now, now, &r
	d.Event.Kind, d.Event.Time, d.Event.Actor = sensors.KindManualRequest, now, sensors.ActorPersonPrefix+r.Person
	return d
}

// startRequests gives the request to the incidents of its targets, and has it noted in each of them. Its error says how many of
// the targets came before.
func (d *ApprovalService) startRequests(ctx context.Context, answer *ContainResponse, found []sensors.Detection, permitted *attestation.ManualRequest, note func(incident string)) error {
	for n, one := range found {
		in, err := d.startRequest(ctx, one, permitted)
		if in.ID != "" && in.ID != answer.IncidentID {
			note(in.ID)
			answer.IncidentID = in.ID
		}
		if err != nil && n > 0 {
			return fmt.Errorf("%d of %d targets were requested, the last in %s; %s was not: %w", n, len(found), answer.IncidentID, incident.TargetOfDetection(one), err)
		}
		if err != nil {
			return err
		}
		answer.Targets = append(answer.Targets, ContainTarget{Target: incident.TargetOfDetection(one), Scope: in.Scope, Phase: in.Phase, RequestID: one.ID})
	}
	return nil
}

// startRequest gives the request to the incident of one target.
func (d *ApprovalService) startRequest(ctx context.Context, one sensors.Detection, permitted *attestation.ManualRequest) (in playbooks.Incident, err error) {
	key := d.ManualRequests.Ingester.GroupingKey(one)
	if open, err := d.latestIncident(ctx, key); err == nil && open.Status == "open" && len(open.Playbooks) >= maxRunsPerIncident {
		return in, &httpError{http.StatusConflict, fmt.Sprintf("incident %s has %d playbook runs and takes no more requests; `stanch extend` lets a lease hold longer, and after a release the incident closes", open.ID, len(open.Playbooks))}
	}
	if err := d.ManualRequests.Ingester.ingestManualRequest(ctx, one, permitted); err != nil {
		return in, err
	}
	if in, err = d.latestIncident(ctx, key); err != nil {
		return in, fmt.Errorf("the request was taken; read its incident: %w", err)
	}
	return in, nil
}

// latestIncident reads the latest incident of a key.
func (d *ApprovalService) latestIncident(ctx context.Context, key string) (playbooks.Incident, error) {
	var in playbooks.Incident
	value, err := d.QueryService.Temporal.QueryWorkflow(ctx, workflows.IncidentWorkflowID(key), "", workflows.QueryIncident)
	if err == nil {
		err = value.Get(&in)
	}
	return in, err //nolint:wrapcheck // the caller says what was read
}

// planDryRun says for each containment of the playbook what it would change and what the guards say. It leaves nothing behind.
func (d *ApprovalService) planDryRun(ctx context.Context, cfg *config.Config, answer *ContainResponse, program *playbooks.Program, found []sensors.Detection, permitted *attestation.ManualRequest) error {
	for _, one := range found {
		signed, err := d.ManualRequests.Ingester.signAttestation(one, time.Now(), permitted)
		if err != nil {
			return err
		}
		target := incident.TargetOfDetection(one)
		scope, phase, _ := d.ManualRequests.Ingester.scopeOfDetection(one)
		out := ContainTarget{Target: target, Scope: scope, Phase: phase}
		brief := activities.IncidentRef{
			ID: "dry-run", GroupingKey: d.ManualRequests.Ingester.GroupingKey(one), Cluster: d.ManualRequests.Ingester.Config.Cluster, Scope: scope, Workload: incident.WorkloadOfDetection(one), Confidence: 1, MaxPhase: program.MaxPhase,
		}
		for _, step := range containmentSteps(program) {
			plan := ContainPlan{Action: step.Action}
			params, known := step.program.ConstantArguments(step.Step)
			if !known || step.Target != nil {
				plan.UnplannableReason = "its parameters or its target depend on what the playbook finds"
			} else {
				basis := activities.Authorization{Attestations: []attestation.Envelope{signed}, RequiresGrant: step.approval != nil}
				request := activities.Request{Action: step.Action, Target: target, Params: params, IncidentRef: brief, Duration: step.LeaseDuration, ExpiresAt: time.Now().Add(step.LeaseDuration)}
				planned, err := d.ManualRequests.Plan(ctx, activities.PlanInput{Request: request, Authorization: basis})
				if err != nil {
					return fmt.Errorf("plan %s of %s: %w", step.Action, target, err)
				}
				plan.Plan, plan.Decision = planned.Plan, planned.Decision
				if plan.Decision.Verdict == activities.VerdictAskApproval {
					if step.approval != nil {
						plan.Decision.Approvers = playbook.ApproversOfStep(step.approval) // and not the scope's
					}
					if why := d.tooFewApproversReason(cfg, plan.Decision.Approvers, func(p config.Person) bool { return p.Name == permitted.Person }); why != "" {
						plan.Plan.Warnings = append(plan.Plan.Warnings, why)
					}
				}
			}
			out.Plans = append(out.Plans, plan)
		}
		answer.Targets = append(answer.Targets, out)
	}
	return nil
}

// containmentStep is a step that contains, and the approval inside of which it stands; nil outside of any.
type containmentStep struct {
	*playbooks.Step
	program  *playbooks.Program
	approval *playbooks.Approval
}

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

// shortContainerIDPattern is the beginning of a container's id, as lists show it.
var shortContainerIDPattern = regexp.MustCompile(`^[0-9a-f]{12,63}$`)
