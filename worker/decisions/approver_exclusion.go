package decisions

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/truncate"
	"stanch/worker/config"
	"stanch/workflows/playbook"
)

// isRequestedBy reports whether an approval request is based on the person's manual request. A run without a known
// requester counts as requested by everybody who made a request.
func isRequestedBy(in playbooks.Incident, q playbook.ApprovalRequest, p config.Person) bool {
	i := slices.IndexFunc(in.Playbooks, func(r playbooks.PlaybookRun) bool { return r.WorkflowID == q.WorkflowID })
	switch {
	case i >= 0 && in.Playbooks[i].RequestID == "":
		return false // the playbook matched automatically
	case i >= 0 && in.Playbooks[i].RequestedBy != "":
		return in.Playbooks[i].RequestedBy == p.Name
	}
	return slices.Contains(in.Actors, sensors.ActorPersonPrefix+p.Name)
}

// ExclusionReason returns why a person's approval does not count, or "": the person caused the detection, or requested
// the containment. Actors of a detection may not answer any approval request of the incident.
func ExclusionReason(in playbooks.Incident, q playbook.ApprovalRequest, p config.Person) string {
	for _, actor := range in.Actors {
		if !strings.HasPrefix(actor, sensors.ActorPersonPrefix) && p.MatchesActor(actor) {
			return fmt.Sprintf("%s triggered this (%s); someone else must decide", p.Name, truncate.Name(actor))
		}
	}
	if isRequestedBy(in, q, p) {
		return fmt.Sprintf("%s requested this; someone else must approve it; withdraw it with `stanch deny`", p.Name)
	}
	return ""
}

// TooFewApproversReason returns why a request cannot be approved, or "": fewer people than the quorum may approve it.
// It says nothing about groups that another system manages.
func (d *Service) TooFewApproversReason(cfg *config.Config, a playbooks.Approvers,
	excluded func(config.Person) bool,
) string {
	may, alone := 0, false
	for _, g := range cfg.Groups {
		if d.GroupMembership != nil && g.SlackUserGroup != "" && (slices.Contains(a.Groups, g.Name) || a.Escalate != nil &&
			slices.Contains(a.Escalate.Groups, g.Name)) {
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
	text := fmt.Sprintf("only %d of the %d required approvers are allowed to vote, so it cannot be approved", may, quorum)
	if may == 0 {
		text = "none of its approvers is allowed to vote, so it cannot be approved"
	}
	if alone {
		text += " without break-glass"
	}
	return text
}

// PausedBy returns who paused new containments, or "".
func (d *Service) PausedBy(ctx context.Context) string {
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

// PausedWarning returns the warning on approval requests while new containments are paused.
func PausedWarning(by string) string {
	return fmt.Sprintf("%s (%s): containments approved now are refused; run `stanch resume` first", playbooks.ReasonPaused,
		by)
}
