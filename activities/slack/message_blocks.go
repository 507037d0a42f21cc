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

// Limits of a message. Slack accepts 50 blocks, and rejects messages with about 13,000 characters of blocks; the exact
// rule is undocumented, so Stanch stays well below.
const (
	maxQuestions    = 5
	maxLeases       = 6
	maxMessageBytes = 9000
	// maxMinimalMessageBytes is the limit of the shorter message that is sent when Slack rejects the full one.
	maxMinimalMessageBytes = 6000
)

// fallbackText returns the message in one line, for notifications, which do not show blocks.
func (p *messageView) fallbackText() string {
	return fmt.Sprintf("%s: %s, %s in %s", p.incident.ID, escapeMarkup(string(p.incident.Severity)),
		escapeMarkup(string(p.incident.Objective)), escapeMarkup(p.incident.Workload.String()))
}

// headerBlock returns the first block of every message.
func (p *messageView) headerBlock() slack.Block {
	in := p.incident
	title := fmt.Sprintf("%s · %s · %s", strings.ToUpper(string(in.Severity)), in.Objective, in.Workload)
	if in.Drill {
		title = "DRILL · " + title
	}
	return slack.NewHeaderBlock(slack.NewTextBlockObject(slack.PlainTextType, sanitizeText(title, maxHeaderWeight), false,
		false))
}

func (p *messageView) endBlocks() []slack.Block {
	var blocks []slack.Block
	if p.incident.Status == "open" {
		blocks = append(blocks, slack.NewDividerBlock(), p.triageActions())
	}
	return append(blocks, slack.NewContextBlock("", slack.NewTextBlockObject(slack.PlainTextType,
		truncateToWeight(redact.EscapeControlChars(p.footerText()), maxFooterWeight), false, false)))
}

// fullMessage returns the complete message. Space goes first to pending approvals, then to leases, then to the state,
// then to Stanch's steps.
func (p *messageView) fullMessage() []slack.Block {
	const maxSummary = 300
	head, end := p.headerBlock(), p.endBlocks()
	what := []slack.RichTextElement{listLine{label: "Summary", text: sanitizeText(p.incident.Summary,
		maxSummary)}.render(maxTextWeight)}
	left := sizeBudget(maxMessageBytes - jsonSize(head) - totalJSONSize(end) - jsonSize(slack.NewRichTextBlock("what",
		what...)))
	questions, more := p.approvalBlocks(&left)
	leases := p.leaseBlocks(&left)
	p.expandDetails(&left, questions, detailTitleOnly, detailPartial)
	elsewhere := fmt.Sprintf("is too long for a message; run `stanch incidents %s`", p.incident.ID)
	done := p.stepLines()
	// facts never displace failed steps
	kept := min(left/3, sizeBudget(jsonSize(bulletList(done, maxTextWeight))+2*listOverhead))
	left -= kept
	what = append(what, left.fitList(p.factLines(), false, elsewhere)...)
	left += kept - listOverhead
	blocks := []slack.Block{head, slack.NewRichTextBlock("what", what...)}
	if did := left.fitList(done, true, elsewhere); did != nil {
		blocks = append(blocks, slack.NewRichTextBlock("did",
			append([]slack.RichTextElement{slack.NewRichTextSection(boldElement("What Stanch did"))}, did...)...))
	}
	blocks = append(blocks, leases...)
	for _, q := range questions {
		blocks = append(blocks, q.blocks...)
	}
	return slices.Concat(blocks, more, end)
}

// minimalMessage returns the essential parts, for when Slack rejects the full message.
func (p *messageView) minimalMessage() []slack.Block {
	blocks := []slack.Block{
		p.headerBlock(),
		textSection(fmt.Sprintf("Slack rejected parts of this message; run `stanch incidents %s` to see them",
			p.incident.ID)),
	}
	end := p.endBlocks()
	left := sizeBudget(maxMinimalMessageBytes - totalJSONSize(blocks) - totalJSONSize(end))
	questions, more := p.approvalBlocks(&left)
	for _, q := range questions {
		blocks = append(blocks, q.blocks...)
	}
	return slices.Concat(blocks, more, end)
}

func newButton(value string, kind ButtonKind, label string, style slack.Style) *slack.ButtonBlockElement {
	b := slack.NewButtonBlockElement(string(kind), value, slack.NewTextBlockObject(slack.PlainTextType, label, false,
		false))
	b.Style = style
	return b
}

func withConfirmation(b *slack.ButtonBlockElement, title, what, yes string) *slack.ButtonBlockElement {
	plain := func(s string, n int) *slack.TextBlockObject {
		return slack.NewTextBlockObject(slack.PlainTextType, sanitizeText(s, n), false, false)
	}
	b.Confirm = slack.NewConfirmationBlockObject(plain(title, 90), plain(what, maxConfirmRunes), plain(yes, 28),
		plain("Cancel", 28))
	return b
}

// leaseBlocks returns the active leases, as many as fit.
func (p *messageView) leaseBlocks(r *sizeBudget) []slack.Block {
	held := slices.DeleteFunc(slices.Clone(p.incident.Leases),
		func(l playbooks.LeaseReport) bool { return l.State == "ended" })
	if len(held) == 0 {
		return nil
	}
	more := textSection("and more leases; run `stanch leases`")
	noted := r.reserve(more)
	var blocks []slack.Block
	for i, l := range held {
		if b := p.blocksForLease(l); i < maxLeases && r.reserve(b...) {
			blocks = append(blocks, b...)
			continue
		}
		if noted {
			blocks = append(blocks, more)
		}
		return blocks
	}
	if noted {
		*r += sizeBudget(jsonSize(more))
	}
	return blocks
}

// blocksForLease shows a lease, with the buttons that end and extend it.
func (p *messageView) blocksForLease(l playbooks.LeaseReport) []slack.Block {
	const maxTarget = 300
	what := listLine{label: "Lease: " + l.Action, text: strings.TrimSuffix(fmt.Sprintf("%s  %s, until %s; %s",
		sanitizeText(display.TargetName(p.incident, l.Target), maxTarget), display.DescribeLease(l),
		display.FormatTime(l.ExpiresAt), sanitizeText(l.Reason, maxTarget)), "; ")}
	r := ButtonReference{IncidentID: p.incident.ID, LeaseID: l.ID}
	release, extend := r, r
	release.Kind, extend.Kind = ButtonRelease, ButtonExtend
	return []slack.Block{
		slack.NewRichTextBlock("", what.render(3*maxTarget)),
		slack.NewActionBlock("lease/"+l.ID,
			withConfirmation(newButton(Sign(p.Signer, release), ButtonRelease, "Release", slack.StyleDefault), "Release it now?",
				l.Action+" on "+l.Target+" is undone immediately.", "Release"),
			newButton(Sign(p.Signer, extend), ButtonExtend, "Extend to 1 h from now", slack.StyleDefault)),
	}
}

// triageActions returns the buttons that assign or resolve the incident.
func (p *messageView) triageActions() slack.Block {
	r := ButtonReference{IncidentID: p.incident.ID, Kind: ButtonAssign}
	fp := r
	fp.Kind = ButtonFalsePositive
	return slack.NewActionBlock("hand",
		newButton(Sign(p.Signer, r), ButtonAssign, "Assign to me", slack.StyleDefault),
		newButton(Sign(p.Signer, fp), ButtonFalsePositive, "False positive…", slack.StyleDefault))
}

func (p *messageView) footerText() string {
	in := p.incident
	parts := []string{in.ID, "opened " + in.Opened.UTC().Format(time.DateTime) + " UTC", fmt.Sprintf("scope %s, phase %d",
		in.Scope, in.Phase)}
	if in.Status == "closed" {
		parts = append(parts, "CLOSED "+display.FormatTime(in.Closed))
	}
	if standing := display.DescribeStatus(in); standing != in.Status {
		parts = append(parts, strings.TrimPrefix(standing, in.Status+", "))
	}
	if p.ManifestHead != nil {
		if head := p.ManifestHead(in.ID); head != "" {
			parts = append(parts, "manifest "+head)
		}
	}
	return strings.Join(parts, " · ")
}
