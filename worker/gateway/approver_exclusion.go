package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/worker/config"
	"stanch/workflows/playbook"
)

// isRequestedBy reports whether a question rests on what a person asked for. A run that does not say who asked for it, or that
// its incident does not know, rests on everybody's requests.
func isRequestedBy(in playbooks.Incident, q playbook.ApprovalRequest, p config.Person) bool {
	i := slices.IndexFunc(in.Playbooks, func(r playbooks.PlaybookRun) bool { return r.WorkflowID == q.WorkflowID })
	switch {
	case i >= 0 && in.Playbooks[i].RequestID == "":
		return false // it matched by itself
	case i >= 0 && in.Playbooks[i].RequestedBy != "":
		return in.Playbooks[i].RequestedBy == p.Name
	}
	return slices.Contains(in.Actors, sensors.ActorPersonPrefix+p.Name)
}

// exclusionReason says why a person's yes to a question does not count, or "": they did what was detected, or asked for what the
// question is about. Who did what was detected gives no answer to any question of the incident.
func exclusionReason(in playbooks.Incident, q playbook.ApprovalRequest, p config.Person) string {
	for _, actor := range in.Actors {
		if !strings.HasPrefix(actor, sensors.ActorPersonPrefix) && p.MatchesActor(actor) {
			return fmt.Sprintf("%s triggered this (%s): somebody else must answer it", p.Name, truncateText(actor))
		}
	}
	if isRequestedBy(in, q, p) {
		return fmt.Sprintf("%s asked for this: somebody else must approve it; `stanch deny` withdraws it", p.Name)
	}
	return ""
}

// tooFewApproversReason says that a question cannot be approved, or "": fewer people than must agree may answer it. Of groups that are kept
// elsewhere nothing is said.
func (d *ApprovalService) tooFewApproversReason(cfg *config.Config, a activities.Approvers, excluded func(config.Person) bool) string {
	may, alone := 0, false
	for _, g := range cfg.Groups {
		if d.GroupMembership != nil && g.SlackUserGroup != "" && (slices.Contains(a.Groups, g.Name) || a.Escalate != nil && slices.Contains(a.Escalate.Groups, g.Name)) {
			return ""
		}
	}
	for _, p := range cfg.People {
		if excluded(p) {
			continue
		}
		if alone = alone || p.BreakGlass; a.CanApprove(p.Name, p.Groups, 1<<62) {
			may++
		}
	}
	quorum := max(a.Quorum, 1)
	if may >= quorum || a.IsEmpty() {
		return ""
	}
	text := fmt.Sprintf("only %d of the %d who must agree may answer, so nobody can approve it", may, quorum)
	if may == 0 {
		text = "nobody of those whom it asks may answer, so nobody can approve it"
	}
	if alone {
		text += " but by breaking the glass"
	}
	return text
}

// pausedBy says who paused new containments, or "" if nobody did.
func (d *ApprovalService) pausedBy(ctx context.Context) string {
	if d.KillSwitch == nil {
		return ""
	}
	stopped, who, err := d.KillSwitch.IsPaused(ctx)
	switch {
	case err != nil:
		return "the kill switch cannot be read"
	case stopped:
		return who
	}
	return ""
}

// pausedWarning is what a question says while new containments are paused.
func pausedWarning(by string) string {
	return fmt.Sprintf("%s (%s): what is approved now is refused; `stanch resume` first", playbooks.ReasonPaused, by)
}
