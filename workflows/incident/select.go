package incident

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows/playbook"
)

// Selected is a playbook that matches, with its source. They come in the order of their priorities.
type Selected struct {
	Name   string `json:"name"`
	File   string `json:"file,omitempty"`
	Source []byte `json:"source,omitempty"`
	// Called are the playbooks that it calls, complete.
	Called []playbooks.SourceFile `json:"called,omitempty"`
	// Selection proves that it is one of the installation's.
	Selection *attestation.Envelope `json:"selection,omitempty"`
	// Contains: it may contain something. Of those only the first that comes to something runs on a target.
	Contains bool `json:"contains,omitempty"`
	// Shipped: it is one of Stanch's library.
	Shipped bool `json:"shipped,omitempty"`
	// NotSelected says why it is not started now; "" if it is. Next: it is the next where that one comes to nothing.
	NotSelected string `json:"not_selected,omitempty"`
	Next        bool   `json:"next,omitempty"`
	// Waits: a user's playbook may still match after enrichment, and would come first.
	Waits bool `json:"waits,omitempty"`
}

// container is a run that contains a target.
type container struct {
	Playbook string `json:"playbook"`
	Shipped  bool   `json:"shipped,omitempty"`
	Run      string `json:"run"`
}

// maxWait bounds how long a shipped playbook waits for the enrichment.
const maxWait = 500 * time.Millisecond

// assign are the targets on which a playbook is started now: those that it does not cover yet and, if it contains, that
// no playbook before it contains. Why it leaves one out is recorded.
func (r *run) assign(ctx workflow.Context, s Selected, all []Selected) []playbooks.Target {
	if s.NotSelected != "" && !s.Next {
		r.notSelected(ctx, s.Name, s.NotSelected)
		return nil
	}
	if s.Waits && !r.waited && (r.enriching > 0 || !r.enriched) {
		r.waitForEnrichment(ctx)
		return nil
	}
	var targets []playbooks.Target
	for _, t := range r.Incident.Targets {
		if r.Covered[s.Name+"\x00"+t.ID()] {
			continue
		}
		if why := r.contained(s, t, all); why != "" {
			r.notSelected(ctx, s.Name, why)
			continue
		}
		targets = append(targets, t)
	}
	return targets
}

// contained says why a playbook that contains is not started on a target, or "".
func (r *run) contained(s Selected, t playbooks.Target, all []Selected) string {
	if !s.Contains {
		return ""
	}
	for _, first := range all {
		if first.Name == s.Name {
			break
		}
		if first.Contains && (first.NotSelected == "" || first.Next) && !r.Refused[first.Name+"\x00"+t.ID()] {
			return s.NotSelected
		}
	}
	// The user's playbooks and the shipped ones never both contain a target for one objective.
	if by, ok := r.Containing[r.slot(t)]; ok && by.Playbook != s.Name && by.Shipped != s.Shipped {
		if s.Shipped {
			return fmt.Sprintf("your playbook %s contains %s already", by.Playbook, t)
		}
		return fmt.Sprintf("the shipped playbook %s contains %s already; `replaces: %s` in yours, or `library.except` in the configuration, keeps it from starting", by.Playbook, t, by.Playbook)
	}
	return ""
}

// slot names a target as it is contained for the incident's objective.
func (r *run) slot(t playbooks.Target) string { return string(r.Incident.Objective) + "\x00" + t.ID() }

// take records that a run contains its targets.
func (r *run) take(s Selected, id string, targets []playbooks.Target) {
	if !s.Contains {
		return
	}
	if r.Containing == nil {
		r.Containing = map[string]container{}
	}
	for _, t := range targets {
		r.Containing[r.slot(t)] = container{Playbook: s.Name, Shipped: s.Shipped, Run: id}
	}
}

// version is a playbook as this incident started it first, with its proof.
func (r *run) version(s Selected) Selected {
	if was, ok := r.Versions[s.Name]; ok {
		return was
	}
	if r.Versions == nil {
		r.Versions = map[string]Selected{}
	}
	r.Versions[s.Name] = s
	return s
}

// freed gives up the targets of a run that ended and came to nothing: it was refused or failed before it contained
// anything, and nobody was asked in vain. The next playbook may contain them then.
func (r *run) freed(report playbook.Report) {
	if report.Ended.IsZero() || !r.cameToNothing(report) {
		return
	}
	if r.Refused == nil {
		r.Refused = map[string]bool{}
	}
	for _, key := range slices.Sorted(maps.Keys(r.Containing)) {
		by := r.Containing[key]
		if by.Run != report.Run {
			continue
		}
		delete(r.Containing, key)
		_, target, _ := strings.Cut(key, "\x00")
		r.Refused[by.Playbook+"\x00"+target] = true
		r.again = true
	}
}

// next starts what comes next where a run came to nothing.
func (r *run) next(ctx workflow.Context) {
	if r.again {
		r.again = false
		r.start(ctx)
	}
}

// cameToNothing reports whether a run was refused or failed before it contained anything. What people or a phase did not
// permit is an answer, and so is the kill switch: no other playbook gets around them.
func (r *run) cameToNothing(report playbook.Report) bool {
	hindered := report.Error != ""
	for _, step := range report.Steps {
		asked := step.Action == "approval"
		if !asked && r.w.Playbooks.Catalogue[step.Action].Verb != playbooks.VerbContain {
			continue
		}
		switch step.Outcome {
		case playbooks.OutcomeRefused, playbooks.OutcomeFailed:
			if step.Guard != "" && step.Guard != "action" {
				return false // it would be refused to any other as well
			}
			hindered = true
		case playbooks.OutcomeDenied:
			return false
		case playbooks.OutcomeSkipped:
		case playbooks.OutcomeChanged, playbooks.OutcomeUnverified, playbooks.OutcomeUnchanged, playbooks.OutcomeProposed:
			if !asked { // the steps inside of an approval are reported too
				return false
			}
		}
	}
	return hindered
}

// notSelected records once why a playbook that matches is not started.
func (r *run) notSelected(ctx workflow.Context, name, reason string) {
	same := func(n playbooks.NotSelectedPlaybook) bool { return n.Playbook == name && n.Reason == reason }
	if reason == "" || len(r.Incident.NotSelected) >= maxNotSelected || slices.ContainsFunc(r.Incident.NotSelected, same) {
		return
	}
	now := workflow.Now(ctx)
	r.Incident.NotSelected = append(r.Incident.NotSelected, playbooks.NotSelectedPlaybook{Playbook: name, Reason: reason, At: now})
	r.line(now, fmt.Sprintf("playbook %s not selected: %s", name, reason))
}

// maxNotSelected bounds what an incident keeps.
const maxNotSelected = 50

// waitForEnrichment starts the playbooks again once it has lasted long enough; the end of the enrichment does it earlier.
func (r *run) waitForEnrichment(ctx workflow.Context) {
	if r.waiting {
		return
	}
	r.waiting = true
	workflow.Go(ctx, func(ctx workflow.Context) {
		if workflow.Sleep(ctx, maxWait) == nil {
			r.waited = true
			r.enrichmentEnded(ctx)
		}
	})
}

// enrichmentEnded starts what waited for the enrichment, whatever came of it.
func (r *run) enrichmentEnded(ctx workflow.Context) {
	if r.waiting {
		r.waiting = false
		r.start(ctx)
	}
}
