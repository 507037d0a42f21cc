// Package notify sends notifications by log, mail and webhook. It never interprets the text that it sends: text from a
// playbook may contain attacker-controlled strings.
package notify

import (
	"context"
	"log/slog"

	"stanch/activities"
	"stanch/playbooks"
)

// LogAction is `notify: log`: a line in Stanch's own log.
type LogAction struct{ Logger *slog.Logger }

var _ activities.Observer = (*LogAction)(nil)

// LogParams are the parameters of log.
type LogParams struct {
	Text string `json:"text,omitempty" doc:"the text; default the incident's summary"`
}

// Spec returns the spec of log.
func (*LogAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "log", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc:     "Write a line to Stanch's log.", Params: LogParams{},
	}
}

// Observe writes the line.
func (a *LogAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	params, err := activities.DecodeParams[LogParams](r)
	if err != nil {
		return activities.Observation{}, err
	}
	if params.Text == "" {
		params.Text = r.IncidentRef.Summary
	}
	a.Logger.LogAttrs(ctx, slog.LevelWarn, "notify", slog.String("incident", r.IncidentRef.ID),
		slog.String("text", params.Text))
	return activities.Observation{}, nil
}
