package slack

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slack-go/slack"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/redact"
)

// Bounds of a message. Slack takes 50 blocks, and refuses a message of some 13,000 characters of blocks without having
// written down how it counts: Stanch stays well below.
const (
	maxQuestions = 5
	maxLeases    = 6
	maxMessage   = 9000
	// maxLeast is for the message that is tried when Slack refuses the whole one.
	maxLeast = 6000
)

// line is the message in one line, for notifications, where blocks are not shown.
func (p *page) line() string {
	return fmt.Sprintf("%s: %s, %s in %s", p.in.ID, safe(string(p.in.Severity)), safe(string(p.in.Objective)), safe(p.in.Workload.String()))
}

// head and foot are what every message has; between them is where people take the incident into their own hand.
func (p *page) head() slack.Block {
	in := p.in
	title := fmt.Sprintf("%s · %s · %s", strings.ToUpper(string(in.Severity)), in.Objective, in.Workload)
	if in.Drill {
		title = "DRILL · " + title
	}
	return slack.NewHeaderBlock(slack.NewTextBlockObject(slack.PlainTextType, text(title, maxHeader), false, false))
}

func (p *page) end() []slack.Block {
	var blocks []slack.Block
	if p.in.Status == "open" {
		blocks = append(blocks, slack.NewDividerBlock(), p.hand())
	}
	return append(blocks, slack.NewContextBlock("", slack.NewTextBlockObject(slack.PlainTextType, cut(redact.EscapeControlChars(p.foot()), maxFoot), false, false)))
}

// blocks are the whole message. What people must answer has room first, then what they can end, then what is so, then
// what Stanch did.
func (p *page) blocks() []slack.Block {
	const maxSummary = 300
	head, end := p.head(), p.end()
	what := []slack.RichTextElement{line{label: "What", words: text(p.in.Summary, maxSummary)}.show(maxText)}
	left := room(maxMessage - size(head) - sizes(end) - size(slack.NewRichTextBlock("what", what...)))
	questions, more := p.questions(&left)
	leases := p.leases(&left)
	p.widen(&left, questions, detailNone, detailSome)
	elsewhere := fmt.Sprintf("is too much for a message: `stanch incidents %s` shows it", p.in.ID)
	done := p.done()
	kept := min(left/3, room(size(bullets(done, maxText))+2*listRoom)) // no fact hides that a step failed
	left -= kept
	what = append(what, left.fit(p.facts(), false, elsewhere)...)
	left += kept - listRoom
	blocks := []slack.Block{head, slack.NewRichTextBlock("what", what...)}
	if did := left.fit(done, true, elsewhere); did != nil {
		blocks = append(blocks, slack.NewRichTextBlock("did", append([]slack.RichTextElement{slack.NewRichTextSection(bold("What Stanch did"))}, did...)...))
	}
	blocks = append(blocks, leases...)
	for _, q := range questions {
		blocks = append(blocks, q.blocks...)
	}
	return slices.Concat(blocks, more, end)
}

// least is what people must not miss, for when Slack refuses the whole message.
func (p *page) least() []slack.Block {
	blocks := []slack.Block{p.head(), section(fmt.Sprintf("Slack did not take the whole message: `stanch incidents %s` shows what is missing here", p.in.ID))}
	end := p.end()
	left := room(maxLeast - sizes(blocks) - sizes(end))
	questions, more := p.questions(&left)
	for _, q := range questions {
		blocks = append(blocks, q.blocks...)
	}
	return slices.Concat(blocks, more, end)
}

func button(value string, kind Kind, label string, style slack.Style) *slack.ButtonBlockElement {
	b := slack.NewButtonBlockElement(string(kind), value, slack.NewTextBlockObject(slack.PlainTextType, label, false, false))
	b.Style = style
	return b
}

func confirmed(b *slack.ButtonBlockElement, title, what, yes string) *slack.ButtonBlockElement {
	plain := func(s string, n int) *slack.TextBlockObject {
		return slack.NewTextBlockObject(slack.PlainTextType, text(s, n), false, false)
	}
	b.Confirm = slack.NewConfirmationBlockObject(plain(title, 90), plain(what, maxConfirm), plain(yes, 28), plain("Go back", 28))
	return b
}

// leases are those that hold, as many as there is room for.
func (p *page) leases(r *room) []slack.Block {
	held := slices.DeleteFunc(slices.Clone(p.in.Leases), func(l playbooks.LeaseReport) bool { return l.State == "ended" })
	if len(held) == 0 {
		return nil
	}
	more := section("and more is held; `stanch leases` lists all")
	noted := r.take(more)
	var blocks []slack.Block
	for i, l := range held {
		if b := p.lease(l); i < maxLeases && r.take(b...) {
			blocks = append(blocks, b...)
			continue
		}
		if noted {
			blocks = append(blocks, more)
		}
		return blocks
	}
	if noted {
		*r += room(size(more))
	}
	return blocks
}

// lease shows what holds, with the buttons that end it and let it last.
func (p *page) lease(l playbooks.LeaseReport) []slack.Block {
	const maxTarget = 300
	what := line{label: "Held: " + l.Action, words: strings.TrimSpace(fmt.Sprintf("%s  %s, until %s. %s",
		text(display.TargetName(p.in, l.Target), maxTarget), display.DescribeLease(l), display.FormatTime(l.ExpiresAt), text(l.Reason, maxTarget)))}
	r := Reference{Incident: p.in.ID, Lease: l.ID}
	release, extend := r, r
	release.Kind, extend.Kind = KindRelease, KindExtend
	return []slack.Block{
		slack.NewRichTextBlock("", what.show(3*maxTarget)),
		slack.NewActionBlock("lease/"+l.ID,
			confirmed(button(Seal(p.Sealer, release), KindRelease, "Release", slack.StyleDefault), "Release it now?", l.Action+" of "+l.Target+" is undone at once.", "Release"),
			button(Seal(p.Sealer, extend), KindExtend, "Hold 1 h from now", slack.StyleDefault)),
	}
}

// hand is how a person takes the incident into their own hand.
func (p *page) hand() slack.Block {
	r := Reference{Incident: p.in.ID, Kind: KindTakeOver}
	fp := r
	fp.Kind = KindFalsePositive
	return slack.NewActionBlock("hand",
		button(Seal(p.Sealer, r), KindTakeOver, "Take over", slack.StyleDefault),
		button(Seal(p.Sealer, fp), KindFalsePositive, "False positive…", slack.StyleDefault))
}

func (p *page) foot() string {
	in := p.in
	parts := []string{in.ID, "opened " + in.Opened.UTC().Format(time.DateTime) + " UTC", fmt.Sprintf("scope %s, phase %d", in.Scope, in.Phase)}
	if in.Status == "closed" {
		parts = append(parts, "CLOSED "+display.FormatTime(in.Closed))
	}
	if standing := display.DescribeStatus(in); standing != in.Status {
		parts = append(parts, strings.TrimPrefix(standing, in.Status+", "))
	}
	if p.Head != nil {
		if head := p.Head(in.ID); head != "" {
			parts = append(parts, "manifest "+head)
		}
	}
	return strings.Join(parts, " · ")
}
