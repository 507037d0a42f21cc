package simulate

import (
	"fmt"
	"slices"

	"stanch/activities"
	"stanch/playbooks/recording"
)

// Divergences returns the differences between a simulation and the recorded incident: started playbooks, guard
// decisions and outcomes. The order of simultaneous events is random and no difference.
func Divergences(rec recording.Recording, r Result) []string {
	var was, is []string
	for _, s := range rec.Steps {
		was = append(was, fmt.Sprintf("%s: %s %s on %q was %s: %s", s.Playbook, s.Step, s.Action, s.Target, s.Outcome,
			s.Reason))
	}
	for _, s := range r.Steps {
		is = append(is, fmt.Sprintf("%s: %s %s on %q was %s: %s", s.Playbook, s.Step, s.Action, s.Target, s.Outcome,
			s.Reason))
	}
	for _, p := range rec.Playbooks {
		was = append(was, fmt.Sprintf("the playbook %s was started", p.Name))
	}
	for _, name := range r.Playbooks {
		is = append(is, fmt.Sprintf("the playbook %s was started", name))
	}
	if rec.Incident.ClosedAfterMS > 0 {
		for _, p := range rec.NotSelected {
			was = append(was, fmt.Sprintf("the playbook %s was not started: %s", p.Playbook, p.Reason))
		}
		for _, p := range r.FinalIncident.NotSelected {
			is = append(is, fmt.Sprintf("the playbook %s was not started: %s", p.Playbook, p.Reason))
		}
	}
	decidedBefore, decidedNow := decisionLines(rec, r)
	was, is = append(was, decidedBefore...), append(is, decidedNow...)
	var out []string
	if r.Error != "" {
		out = append(out, r.Error)
	}
	slices.Sort(was)
	slices.Sort(is)
	for _, line := range was {
		if i := slices.Index(is, line); i >= 0 {
			is = slices.Delete(is, i, i+1)
		} else {
			out = append(out, "recorded, but not simulated: "+line)
		}
	}
	for _, line := range is {
		out = append(out, "simulated, but not recorded: "+line)
	}
	return out
}

// decisionLines returns the recorded and the simulated decisions of the guards, a line each.
func decisionLines(rec recording.Recording, r Result) (was, is []string) {
	said := func(operation, action, target, verdict, guard, reason string, phase int) string {
		return fmt.Sprintf("the guards decided, during %s of %s on %s: %s (%s, phase %d): %s", operation, action, target,
			verdict, guard, phase, reason)
	}
	refused := map[string]int{} // effects that the action refused after the guards permitted them
	for _, a := range rec.ActionResults {
		if a.Operation == recording.OperationApply && a.RefusalReason != "" {
			refused[a.Action+" "+a.Target]++
		}
		if d := a.GuardDecision; (a.Operation == recording.OperationPlan || a.Operation == recording.OperationApply) &&
			d != nil && (a.RefusalReason == "" || d.Guard != "" && d.Guard != "action") {
			was = append(was, said(string(a.Operation), a.Action, a.Target, d.Verdict, d.Guard, d.Reason, d.Phase))
		}
	}
	for _, d := range r.Decisions {
		operation := string(recording.OperationPlan)
		if d.AtEnforcement {
			operation = string(recording.OperationApply)
		}
		if key := d.Action + " " + d.Target; d.AtEnforcement && refused[key] > 0 && d.Verdict == activities.VerdictRun {
			refused[key]--
			continue
		}
		if d.Guard != "action" {
			is = append(is, said(operation, d.Action, d.Target, string(d.Verdict), d.Guard, d.Reason, d.Phase))
		}
	}
	return was, is
}
