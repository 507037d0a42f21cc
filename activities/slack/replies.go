package slack

import (
	"cmp"
	"context"
	"fmt"

	"github.com/slack-go/slack"

	"stanch/activities"
	"stanch/playbooks/display"
	"stanch/sensors/duration"
)

// maxMentions bounds whom one question calls.
const maxMentions = 10

// reply writes into the thread what people must be called for or told of once.
func (p *page) reply(ctx context.Context) error {
	for _, q := range p.pending {
		hash := q.Hash[:min(12, len(q.Hash))]
		if err := p.call(ctx, "asked/"+q.Name()+"/"+hash, "you are asked: ", q, q.Approvers.Groups, q.Approvers.Users); err != nil {
			return err
		}
		if e := q.Approvers.Escalate; e != nil && !p.now().Before(q.Asked.Add(e.After)) {
			if err := p.call(ctx, "escalated/"+q.Name()+"/"+hash, fmt.Sprintf("nobody decided within %s, so you are asked too: ", duration.Format(e.After)), q, e.Groups, e.Users); err != nil {
				return err
			}
		}
	}
	for _, l := range p.in.Leases {
		var what string
		switch {
		case l.State == "held" && l.Verified:
			what = fmt.Sprintf("%s of %s: %s; it ends by itself at %s", l.Action, display.TargetName(p.in, l.Target), display.DescribeLease(l), display.FormatTime(l.ExpiresAt))
		case l.State == "stuck":
			what = fmt.Sprintf("%s of %s could NOT be undone: %s", l.Action, display.TargetName(p.in, l.Target), l.Reason)
		case l.State == "ended" && l.Undone:
			what = fmt.Sprintf("%s of %s: %s", l.Action, display.TargetName(p.in, l.Target), display.DescribeLease(l))
		default:
			continue
		}
		if err := p.say(ctx, "lease/"+l.ID+"/"+l.State, what, section(what)); err != nil {
			return err
		}
	}
	if p.in.Status == "closed" {
		what := fmt.Sprintf("closed: %s; %d pieces of evidence", p.in.Summary, len(p.in.Evidence))
		return p.say(ctx, "closed", what, section(what))
	}
	return nil
}

// call mentions those who are asked.
func (p *page) call(ctx context.Context, key, why string, q activities.Pending, groups, users []string) error {
	var elements []slack.RichTextSectionElement
	if p.Mentions != nil {
		members, userGroups := p.Mentions.Mention(groups, users)
		for _, id := range first(userGroups, maxMentions) {
			elements = append(elements, slack.NewRichTextSectionUserGroupElement(id), words(" "))
		}
		for _, id := range first(members, maxMentions) {
			elements = append(elements, slack.NewRichTextSectionUserElement(id, nil), words(" "))
		}
	}
	elements = append(elements, words(why+text(q.Title, maxHeader)+". Answer in the message above, or with `stanch approve "+p.in.ID+"`."))
	return p.say(ctx, key, why+q.Title, slack.NewRichTextBlock("", slack.NewRichTextSection(elements...)))
}

// say writes one reply, once.
func (p *page) say(ctx context.Context, key, line string, block slack.Block) error {
	if p.state.Said[key] {
		return nil
	}
	_, _, err := p.API.PostMessageContext(ctx, cmp.Or(p.state.Channel, p.Channel), slack.MsgOptionTS(p.state.TS), slack.MsgOptionText(p.in.ID+": "+safe(line), true), slack.MsgOptionBlocks(block), p.metadata(key),
		slack.MsgOptionDisableLinkUnfurl(), slack.MsgOptionDisableMediaUnfurl())
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was done
	}
	p.state.Said[key] = true
	return nil
}
