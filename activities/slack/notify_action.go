package slack

import (
	"context"
	"strconv"

	"go.temporal.io/sdk/activity"

	"stanch/activities"
	"stanch/playbooks"
)

// NotifyAction is `notify: slack`: a reply in the incident's thread.
type NotifyAction struct{ Notifier activities.Notifier }

var _ activities.Observer = (*NotifyAction)(nil)

// NotifyParams are the parameters of slack.
type NotifyParams struct {
	Text string `json:"text,omitempty" doc:"the text; default the incident's summary"`
}

// Spec returns the spec of slack.
func (*NotifyAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "slack", Verb: playbooks.VerbNotify, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetIncident},
		Doc:     "Post a message to the incident's Slack thread.", Params: NotifyParams{},
	}
}

// Observe posts the reply.
func (a *NotifyAction) Observe(ctx context.Context, r activities.Request) (activities.Observation, error) {
	params, err := activities.DecodeParams[NotifyParams](r)
	if err != nil {
		return activities.Observation{}, err
	}
	if a.Notifier == nil {
		return activities.Observation{}, activities.Refusef("Slack is not configured; add `slack:` to stanch.yaml")
	}
	if params.Text == "" {
		params.Text = r.IncidentRef.Summary
	}
	key := "notify"
	if activity.IsActivity(ctx) {
		info := activity.GetInfo(ctx)
		key += "/" + info.WorkflowExecution.ID + "/" + strconv.Quote(info.ActivityID)
	}
	return activities.Observation{}, a.Notifier.Post(ctx, r.IncidentRef, key, params.Text)
}
