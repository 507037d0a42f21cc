package slack

import (
	"context"
	"strconv"

	"go.temporal.io/sdk/activity"

	"stanch/activities"
	"stanch/playbooks"
)

// Say is `notify: slack`: a line in the incident's thread.
type Say struct{ Desk activities.Teller }

var _ activities.Observer = (*Say)(nil)

// SayParams are the parameters of slack.
type SayParams struct {
	Text string `json:"text,omitempty" doc:"what to say; the incident's summary if not given"`
}

// Spec declares slack.
func (*Say) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "slack", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve, Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc: "Write a line into the incident's thread in Slack.", Params: SayParams{},
	}
}

// Observe writes the line.
func (a *Say) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	params, err := activities.Params[SayParams](r)
	if err != nil {
		return activities.Observation{}, err
	}
	if a.Desk == nil {
		return activities.Observation{}, activities.Refuse("no Slack is configured: add `slack:` to stanch.yaml")
	}
	if params.Text == "" {
		params.Text = r.Incident.Summary
	}
	key := "notify"
	if activity.IsActivity(ctx) {
		info := activity.GetInfo(ctx)
		key += "/" + info.WorkflowExecution.ID + "/" + strconv.Quote(info.ActivityID)
	}
	return activities.Observation{}, a.Desk.Say(ctx, r.Incident, key, params.Text)
}
