package playbookstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/worker/actions"
	"stanch/workflows/incident"
)

// MatchManualRequest returns the playbook of a manual request: the named one, or a single containment. It is a local
// activity, so the result is recorded in the history. The guards decide whether anything is contained, not the caller.
func (l *Store) MatchManualRequest(_ context.Context, r sensors.ManualRequest) (incident.SelectedPlaybook, error) {
	p, err := l.ProgramForRequest(r)
	if err != nil {
		return incident.SelectedPlaybook{}, temporal.NewNonRetryableApplicationError(err.Error(), "requested", nil)
	}
	signed, err := l.signPlaybookAuthorization(p)
	if err != nil {
		return incident.SelectedPlaybook{}, err
	}
	return incident.SelectedPlaybook{
		Name: p.Name, File: p.File, Source: p.SourceText, Callees: p.CalleeSources(),
		PlaybookAuthorization: signed,
	}, nil
}

// ProgramForRequest returns the playbook of a request. For an unknown playbook or an action that cannot be requested,
// the error lists the valid ones.
func (l *Store) ProgramForRequest(r sensors.ManualRequest) (*playbooks.Program, error) {
	if r.Playbook != "" {
		var names []string
		for _, p := range l.Programs() {
			if p.Name == r.Playbook {
				return checkRequestable(p)
			}
			names = append(names, p.Name)
		}
		hint := diagnostic.DidYouMean(r.Playbook, names)
		if hint == "" {
			hint = "`stanch playbooks` lists the playbooks"
		}
		return nil, fmt.Errorf("unknown playbook %q; %s", r.Playbook, hint)
	}
	catalog := actions.Catalog()
	spec, ok := catalog[r.Action]
	if !ok || spec.Verb != playbooks.VerbContain || !spec.Reversible || spec.Class != playbooks.ClassContain ||
		!worksOnDetectedTargets(spec) {
		return nil, fmt.Errorf(
			"contain a pod or container: action %q cannot be requested for it; use one of %s, or `stanch run` with a playbook",
			r.Action,
			strings.Join(requestableActions(catalog), ", "),
		)
	}
	one := playbooks.ManualContainmentPlaybook(r.Action, r.Duration)
	programs, problems := playbooks.LoadPlaybooks([]playbooks.SourceFile{one}, catalog)
	if len(programs) != 1 {
		return nil, fmt.Errorf("plan %s for %s: %w", r.Action, r.Duration, problems.Err())
	}
	return programs[0], nil
}

// checkRequestable returns an error for a playbook that needs inputs, which a request cannot give.
func checkRequestable(p *playbooks.Program) (*playbooks.Program, error) {
	for _, in := range p.Inputs {
		if in.Default == nil {
			return nil, fmt.Errorf("playbook %s cannot be run directly: its input %s has no default; `call` it from another "+
				"playbook", p.Name, in.Name)
		}
	}
	return p, nil
}

// worksOnDetectedTargets reports whether an action accepts pods or containers, the targets of detections.
func worksOnDetectedTargets(s playbooks.ActionSpec) bool {
	return len(s.Targets) == 0 || slices.ContainsFunc(s.Targets, playbooks.TargetKind.IsDetectable)
}

// requestableActions returns the actions that people can request alone: reversible, and without required parameters.
func requestableActions(c playbooks.Catalog) []string {
	return slices.Sorted(maps.Keys(requestablePlaybooks(c)))
}

// requestablePlaybooks returns the playbook of each action that people can request alone.
func requestablePlaybooks(c playbooks.Catalog) map[string]*playbooks.Program {
	out := map[string]*playbooks.Program{}
	for name, s := range c {
		if s.Verb == playbooks.VerbContain && s.Reversible && s.Class == playbooks.ClassContain && worksOnDetectedTargets(s) {
			if programs, _ := playbooks.LoadPlaybooks([]playbooks.SourceFile{playbooks.ManualContainmentPlaybook(name,
				max(s.MinDuration, time.Hour))}, c); len(programs) == 1 {
				out[name] = programs[0]
			}
		}
	}
	return out
}
