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

// SelectedPlaybook is a matching playbook with its source. Lists of them are in order of priority.
type SelectedPlaybook struct {
	Name   string `json:"name"`
	File   string `json:"file,omitempty"`
	Source []byte `json:"source,omitempty"`
	// Callees are the files of all playbooks that it calls.
	Callees []playbooks.SourceFile `json:"callees,omitempty"`
	// PlaybookAuthorization proves that the playbook belongs to the installation.
	PlaybookAuthorization *attestation.Envelope `json:"playbook_authorization,omitempty"`
	// CanContain means that it may contain. Of these playbooks, only the first that does not fail runs on a target.
	CanContain bool `json:"can_contain,omitempty"`
	// Shipped means that it is from Stanch's library.
	Shipped bool `json:"shipped,omitempty"`
	// NotSelectedReason says why it does not start now; "" if it does. IsFallback means that it starts if the one
	// before it ends without containment.
	NotSelectedReason string `json:"not_selected_reason,omitempty"`
	IsFallback        bool   `json:"is_fallback,omitempty"`
	// WaitsForEnrichment means that a user's playbook may still match after enrichment, with precedence.
	WaitsForEnrichment bool `json:"waits_for_enrichment,omitempty"`
}

// containingRun is a run that contains a target.
type containingRun struct {
	Playbook   string `json:"playbook"`
	Shipped    bool   `json:"shipped,omitempty"`
	WorkflowID string `json:"run"`
}

// maxEnrichmentWait limits how long a shipped playbook waits for enrichment.
const maxEnrichmentWait = 500 * time.Millisecond

// assignTargets returns the targets on which a playbook starts now: those that it does not cover yet and, if it
// contains, that no playbook before it contains. It records why it omits others.
func (r *incidentRun) assignTargets(ctx workflow.Context, s SelectedPlaybook,
	all []SelectedPlaybook,
) []playbooks.Target {
	if s.NotSelectedReason != "" && !s.IsFallback {
		r.recordNotSelected(ctx, s.Name, s.NotSelectedReason)
		return nil
	}
	if s.WaitsForEnrichment && !r.enrichmentWaitOver && (r.activeEnrichments > 0 || !r.enriched) {
		r.waitForEnrichment(ctx)
		return nil
	}
	var targets []playbooks.Target
	for _, t := range r.Incident.Targets {
		if r.CoveredTargets[s.Name+"\x00"+t.ID()] {
			continue
		}
		if why := r.containmentConflict(s, t, all); why != "" {
			r.recordNotSelected(ctx, s.Name, why)
			continue
		}
		targets = append(targets, t)
	}
	return targets
}

// containmentConflict returns why a playbook that contains does not start on a target, or "".
func (r *incidentRun) containmentConflict(s SelectedPlaybook, t playbooks.Target, all []SelectedPlaybook) string {
	if !s.CanContain {
		return ""
	}
	for _, first := range all {
		if first.Name == s.Name {
			break
		}
		if first.CanContain && (first.NotSelectedReason == "" || first.IsFallback) &&
			!r.RefusedTargets[first.Name+"\x00"+t.ID()] {
			return s.NotSelectedReason
		}
	}
	// A user's playbook and a shipped one never both contain a target for the same objective.
	if by, ok := r.ContainingRuns[r.containmentKey(t)]; ok && by.Playbook != s.Name && by.Shipped != s.Shipped {
		if s.Shipped {
			return fmt.Sprintf("your playbook %s already contains %s", by.Playbook, t)
		}
		return fmt.Sprintf(
			"the shipped playbook %s already contains %s; to prevent that, add `replaces: %s` to yours or use `library.except` in the configuration",
			by.Playbook,
			t,
			by.Playbook,
		)
	}
	return ""
}

// containmentKey identifies a target and the incident's objective.
func (r *incidentRun) containmentKey(t playbooks.Target) string {
	return string(r.Incident.Objective) + "\x00" + t.ID()
}

// recordContainingRun records that a run contains its targets.
func (r *incidentRun) recordContainingRun(s SelectedPlaybook, id string, targets []playbooks.Target) {
	if !s.CanContain {
		return
	}
	if r.ContainingRuns == nil {
		r.ContainingRuns = map[string]containingRun{}
	}
	for _, t := range targets {
		r.ContainingRuns[r.containmentKey(t)] = containingRun{Playbook: s.Name, Shipped: s.Shipped, WorkflowID: id}
	}
}

// pinnedVersion returns the version of a playbook that this incident started first, with its authorization.
func (r *incidentRun) pinnedVersion(s SelectedPlaybook) SelectedPlaybook {
	if was, ok := r.StartedVersions[s.Name]; ok {
		return was
	}
	if r.StartedVersions == nil {
		r.StartedVersions = map[string]SelectedPlaybook{}
	}
	r.StartedVersions[s.Name] = s
	return s
}

// releaseRefusedTargets releases the targets of a run that ended without containment: it was refused or failed, and no
// person denied it. The next playbook may contain them.
func (r *incidentRun) releaseRefusedTargets(report playbook.Report) {
	if report.Ended.IsZero() || !r.endedWithoutContainment(report) {
		return
	}
	if r.RefusedTargets == nil {
		r.RefusedTargets = map[string]bool{}
	}
	for _, key := range slices.Sorted(maps.Keys(r.ContainingRuns)) {
		by := r.ContainingRuns[key]
		if by.WorkflowID != report.WorkflowID {
			continue
		}
		delete(r.ContainingRuns, key)
		_, target, _ := strings.Cut(key, "\x00")
		r.RefusedTargets[by.Playbook+"\x00"+target] = true
		r.fallbackPending = true
	}
}

// startFallback starts the next playbook after a run that ended without containment.
func (r *incidentRun) startFallback(ctx workflow.Context) {
	if r.fallbackPending {
		r.fallbackPending = false
		r.startMatchingPlaybooks(ctx)
	}
}

// endedWithoutContainment reports whether a run was refused or failed before it contained anything. A denial by people,
// a phase or the kill switch is final: no other playbook may bypass it.
func (r *incidentRun) endedWithoutContainment(report playbook.Report) bool {
	hindered := report.Error != ""
	for _, step := range report.Steps {
		asked := step.Action == "approval"
		if !asked && r.workflows.Playbooks.Catalog[step.Action].Verb != playbooks.VerbContain {
			continue
		}
		switch step.Outcome {
		case playbooks.OutcomeRefused, playbooks.OutcomeFailed:
			if step.Guard != "" && step.Guard != "action" {
				return false // any other playbook would be refused too
			}
			hindered = true
		case playbooks.OutcomeDenied:
			return false
		case playbooks.OutcomeSkipped:
		case playbooks.OutcomeSucceeded, playbooks.OutcomeChanged, playbooks.OutcomeUnverified, playbooks.OutcomeUnchanged,
			playbooks.OutcomeProposed:
			if !asked { // steps inside an approval are reported too
				return false
			}
		}
	}
	return hindered
}

// recordNotSelected records why a matching playbook does not start, once.
func (r *incidentRun) recordNotSelected(ctx workflow.Context, name, reason string) {
	same := func(n playbooks.NotSelectedPlaybook) bool { return n.Playbook == name && n.Reason == reason }
	if reason == "" || len(r.Incident.NotSelected) >= maxNotSelected || slices.ContainsFunc(r.Incident.NotSelected, same) {
		return
	}
	now := workflow.Now(ctx)
	r.Incident.NotSelected = append(r.Incident.NotSelected, playbooks.NotSelectedPlaybook{
		Playbook: name, Reason: reason,
		At: now,
	})
	r.addTimeline(now, fmt.Sprintf("playbook %s not selected: %s", name, reason))
}

// maxNotSelected is the maximum number that an incident keeps.
const maxNotSelected = 50

// waitForEnrichment starts the waiting playbooks after maxEnrichmentWait. The end of enrichment starts them earlier.
func (r *incidentRun) waitForEnrichment(ctx workflow.Context) {
	if r.enrichmentWaitRunning {
		return
	}
	r.enrichmentWaitRunning = true
	workflow.Go(ctx, func(ctx workflow.Context) {
		if workflow.Sleep(ctx, maxEnrichmentWait) == nil {
			r.enrichmentWaitOver = true
			r.startAfterEnrichment(ctx)
		}
	})
}

// startAfterEnrichment starts the playbooks that waited for enrichment, whatever its result.
func (r *incidentRun) startAfterEnrichment(ctx workflow.Context) {
	if r.enrichmentWaitRunning {
		r.enrichmentWaitRunning = false
		r.startMatchingPlaybooks(ctx)
	}
}
