package slack

import (
	"cmp"
	"context"
	"fmt"

	"github.com/slack-go/slack"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/duration"
)

// maxMentions is the maximum number of mentions of one request.
const maxMentions = 10

// postReplies posts the replies that mention or notify people once.
func (p *messageView) postReplies(ctx context.Context) error {
	for _, q := range p.approvalRequests {
		hash := q.PlansHash[:min(12, len(q.PlansHash))]
		if err := p.mentionApprovers(ctx, "asked/"+q.QualifiedID()+"/"+hash, "your approval is requested: ", q.Title,
			q.Approvers); err != nil {
			return err
		}
		if e := q.Approvers.Escalate; e != nil && !p.now().Before(q.AskedAt.Add(e.After)) {
			if err := p.mentionApprovers(ctx, "escalated/"+q.QualifiedID()+"/"+hash,
				fmt.Sprintf("there was no decision within %s, so your approval is requested too: ", duration.Format(e.After)),
				q.Title, playbooks.Approvers{Groups: e.Groups, Users: e.Users}); err != nil {
				return err
			}
		}
	}
	for _, l := range p.incident.Leases {
		var what string
		switch {
		case l.State == "held" && l.Verified:
			what = fmt.Sprintf("%s on %s: %s; it ends automatically at %s", l.Action, display.TargetName(p.incident, l.Target),
				display.DescribeLease(l), display.FormatTime(l.ExpiresAt))
		case l.State == "stuck":
			what = fmt.Sprintf("%s on %s could NOT be undone: %s", l.Action, display.TargetName(p.incident, l.Target), l.Reason)
		case l.State == "ended" && l.Undone:
			what = fmt.Sprintf("%s on %s: %s", l.Action, display.TargetName(p.incident, l.Target), display.DescribeLease(l))
		default:
			continue
		}
		if err := p.postReplyOnce(ctx, "lease/"+l.ID+"/"+l.State, what, textSection(what)); err != nil {
			return err
		}
	}
	if p.incident.Status == "closed" {
		what := fmt.Sprintf("closed: %s; %d evidence artifacts", p.incident.Summary, len(p.incident.Evidence))
		return p.postReplyOnce(ctx, "closed", what, textSection(what))
	}
	return nil
}

// mentionApprovers mentions the approvers of a request.
func (p *messageView) mentionApprovers(ctx context.Context, key, why, title string, of playbooks.Approvers) error {
	var elements []slack.RichTextSectionElement
	if p.MentionResolver != nil {
		members, userGroups := p.MentionResolver.ResolveMentions(of.Groups, of.Users)
		for _, id := range firstN(userGroups, maxMentions) {
			elements = append(elements, slack.NewRichTextSectionUserGroupElement(id), plainElement(" "))
		}
		for _, id := range firstN(members, maxMentions) {
			elements = append(elements, slack.NewRichTextSectionUserElement(id, nil), plainElement(" "))
		}
	}
	elements = append(elements, plainElement(why+sanitizeText(title, maxHeaderWeight)+
		". Approve or deny in the message above, or run `stanch approve "+p.incident.ID+"`."))
	return p.postReplyOnce(ctx, key, why+title, slack.NewRichTextBlock("", slack.NewRichTextSection(elements...)))
}

// postReplyOnce posts a reply if it was not posted before.
func (p *messageView) postReplyOnce(ctx context.Context, key, line string, block slack.Block) error {
	if p.state.PostedReplies[key] {
		return nil
	}
	_, _, err := p.SlackClient.PostMessageContext(ctx, cmp.Or(p.state.Channel, p.Channel),
		slack.MsgOptionTS(p.state.MessageTS), slack.MsgOptionText(p.incident.ID+": "+escapeMarkup(line), true),
		slack.MsgOptionBlocks(block), p.metadataOption(key),
		slack.MsgOptionDisableLinkUnfurl(), slack.MsgOptionDisableMediaUnfurl())
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	p.state.PostedReplies[key] = true
	return nil
}
