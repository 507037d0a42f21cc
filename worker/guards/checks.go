package guards

import (
	"fmt"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/duration"
)

func newRefusal(format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictRefuse, Reason: fmt.Sprintf(format, args...)}
}

func newProposal(format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictPropose, Reason: fmt.Sprintf(format, args...)}
}

func newApprovalDecision(f Input, format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{
		Verdict: activities.VerdictAskApproval, Reason: fmt.Sprintf(format, args...),
		Approvers: ApproversOfScope(f.Scope),
	}
}

func checkKillSwitch(f Input) *activities.GuardDecision {
	if f.PausedBy == "" {
		return nil
	}
	return newRefusal("%s (%s); resume them with `stanch resume`", playbooks.ReasonPaused, f.PausedBy)
}

func checkEvidence(f Input) *activities.GuardDecision {
	if !f.Enforce {
		return nil // the evidence may run between the plan of an approval and its effect
	}
	for _, r := range f.Receipts {
		if r.TargetID == f.Request.Target.ID() || !f.Request.Target.Kind.IsDetectable() {
			return nil
		}
	}
	return newRefusal("no attempt to capture evidence of %s was made before the containment", f.Request.Target)
}

func checkGrantValid(f Input) *activities.GuardDecision {
	if f.Authorization.Grant == nil {
		return nil
	}
	switch target := f.Request.Target; {
	case f.Grant == nil:
		return newRefusal("invalid grant: %s", f.GrantError)
	case f.Grant.Namespace != target.Namespace:
		return newRefusal("invalid grant: it is for the namespace %q, not %q", f.Grant.Namespace, target.Namespace)
	case f.Grant.DrillOnly && f.DrillTarget == nil:
		return newRefusal("invalid grant: a drill's grant is not allowed outside of a drill")
	}
	return nil
}

// maxStartDelay is the maximum delay between plan and effect, including clock differences.
const maxStartDelay = 5 * time.Minute

// checkMatchesPlan compares the end with the plan: a grant is bound to the plan, and thus to its duration.
func checkMatchesPlan(f Input) *activities.GuardDecision {
	r := f.Request
	if end := f.Now.Add(r.Duration + maxStartDelay); r.ExpiresAt.After(end) && r.ExpiresAt.After(f.HeldUntil) {
		return newRefusal("the requested end %s is later than the planned duration of %s allows",
			r.ExpiresAt.UTC().Format(time.RFC3339), duration.Format(r.Duration))
	}
	return nil
}

func checkBudget(f Input) *activities.GuardDecision {
	if f.Grant != nil || f.Authorization.RequiresGrant {
		return nil // people decided; the budget limits what runs without them
	}
	if reason := f.Budget.CheckLeft(f); reason != "" {
		return newProposal("%s", reason)
	}
	return nil
}

// checkPhase decides by the table of what each class of action may do in each phase.
func checkPhase(f Input) *activities.GuardDecision {
	class, p := f.Spec.Class, f.effectivePhase()
	switch {
	case class == playbooks.ClassObserve:
		return &activities.GuardDecision{Verdict: activities.VerdictRun, Reason: "it changes nothing"}
	case p < 2 || class == playbooks.ClassDisrupt && p < 3:
		return newProposal("phase %d of scope %s does not allow a %s action", p, f.Scope.Name, class)
	case f.Grant != nil:
		return &activities.GuardDecision{Verdict: activities.VerdictRun, Reason: "granted by " +
			strings.Join(f.Grant.GrantedBy, ", "), BasisID: f.BasisID}
	case class == playbooks.ClassDisrupt || f.Authorization.RequiresGrant:
		return newApprovalDecision(f, "this action requires approval")
	case f.unknownReason() != "":
		return newApprovalDecision(f, "%s", f.unknownReason())
	case len(f.CorrelationInputs) == 0:
		return newRefusal("no attested detection about %s within the last %s", f.Request.Target,
			duration.Format(MaxDetectionAge))
	case f.Correlation.Confidence < f.Scope.ConfidenceThreshold:
		return newApprovalDecision(f, "confidence %.2f is below the %.2f that scope %s requires to run without approval",
			f.Correlation.Confidence, f.Scope.ConfidenceThreshold, f.Scope.Name)
	case f.Request.Duration > time.Duration(f.Config.Budget.MaxDuration):
		return newApprovalDecision(f, "%s is longer than the %s that `budget.max_duration` allows without approval",
			duration.Format(f.Request.Duration), f.Config.Budget.MaxDuration)
	}
	if f.ManualRequest != nil {
		return &activities.GuardDecision{
			Verdict: activities.VerdictRun, BasisID: f.BasisID,
			Reason: fmt.Sprintf("phase %d, requested by %s: %s", p, display.FormatPerson(f.ManualRequest.Person,
				f.ManualRequest.AuthenticatedBy), f.ManualRequest.Reason),
		}
	}
	return &activities.GuardDecision{
		Verdict: activities.VerdictRun, BasisID: f.BasisID,
		Reason: fmt.Sprintf("phase %d, confidence %.2f from attested detections", p, f.Correlation.Confidence),
	}
}
