package slackendpoint

import (
	"context"
	"fmt"

	"github.com/slack-go/slack"

	view "stanch/activities/slack"
	"stanch/worker/decisions"
)

// reasonForms are the forms of buttons that ask for a reason first.
var reasonForms = map[view.ButtonKind]struct{ title, submit, label, hint string }{
	view.ButtonDeny: {"Deny", "Deny", "Why not?", "shown to the requester and kept in the audit log"},
	view.ButtonBreakGlass: {
		"Use break-glass", "Approve alone", "Why can't this wait for the other approvers?",
		"you approve alone in place of the full quorum; everyone can see this",
	},
	view.ButtonFalsePositive: {
		"False positive", "Release everything", "What caused the detection?",
		"the incident's leases are released, and its open approval requests are denied",
	},
}

func needsReason(k view.ButtonKind) bool { _, ok := reasonForms[k]; return ok }

// openReasonForm opens a form that asks for a reason. It carries only the button's value.
func (s *Endpoint) openReasonForm(ctx context.Context, c *slackClick) error {
	f := reasonForms[c.reference.Kind]
	plain := func(text string) *slack.TextBlockObject {
		return slack.NewTextBlockObject(slack.PlainTextType, text, false, false)
	}
	input := slack.NewPlainTextInputBlockElement(plain(f.hint), reasonInputID)
	input.Multiline, input.MaxLength = true, decisions.MaxReasonRunes
	block := slack.NewInputBlock(reasonBlockID, plain(f.label), nil, input)
	_, err := s.SlackClient.OpenViewContext(ctx, c.TriggerID, slack.ModalViewRequest{
		Type: slack.VTModal, Title: plain(f.title), Submit: plain(f.submit), Close: plain("Go back"),
		PrivateMetadata: c.buttonValue, CallbackID: "stanch", Blocks: slack.Blocks{BlockSet: []slack.Block{block}},
	})
	if err != nil {
		return fmt.Errorf("open the form: %w", err)
	}
	return nil
}
