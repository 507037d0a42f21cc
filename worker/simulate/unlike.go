package simulate

import (
	"fmt"
	"slices"

	"stanch/playbooks/recording"
)

// Unlike says where a simulation went otherwise than the incident did: in what the guards said of each plan, and in what
// became of each step. The order in which things happened at once is chance and no difference.
func Unlike(rec recording.Recording, r Result) []string {
	var was, is []string
	for _, s := range rec.Steps {
		was = append(was, fmt.Sprintf("%s: %s %s on %q was %s: %s", s.Playbook, s.Step, s.Action, s.Target, s.Outcome, s.Reason))
	}
	for _, s := range r.Steps {
		is = append(is, fmt.Sprintf("%s: %s %s on %q was %s: %s", s.Playbook, s.Step, s.Action, s.Target, s.Outcome, s.Reason))
	}
	said := func(action, target, verdict, guard, reason string, phase int) string {
		return fmt.Sprintf("the guards said of %s on %s: %s (%s, phase %d): %s", action, target, verdict, guard, phase, reason)
	}
	for _, a := range rec.Answers {
		if d := a.Decision; a.Operation == recording.Plan && d != nil && a.Refused == "" {
			was = append(was, said(a.Action, a.Target, d.Verdict, d.Guard, d.Reason, d.Phase))
		}
	}
	for _, d := range r.Decisions {
		if !d.Before {
			is = append(is, said(d.Action, d.Target, string(d.Verdict), d.Guard, d.Reason, d.Phase))
		}
	}
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
			out = append(out, "it was, and is not simulated: "+line)
		}
	}
	for _, line := range is {
		out = append(out, "it is simulated, and was not: "+line)
	}
	return out
}
