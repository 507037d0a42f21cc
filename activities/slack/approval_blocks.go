package slack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slack-go/slack"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/redact"
)

// detailLevel is how much of an approval request is shown.
type detailLevel int

const (
	// detailTitleOnly shows what is requested and of whom, and that it must be read elsewhere. It can be denied.
	detailTitleOnly detailLevel = iota
	// detailPartial also shows a few of the changes.
	detailPartial
	// detailExact shows every change that an approval permits, and every warning. It can be approved.
	detailExact
	// detailFull also shows the reasons.
	detailFull
)

const (
	// maxPartialChanges and maxPartialChangeWeight limit the changes at detailPartial.
	maxPartialChanges      = 3
	maxPartialChangeWeight = 200
	// maxConfirmRunes is the maximum text of the confirmation dialog.
	maxConfirmRunes  = 280
	maxWarningWeight = 300
)

// shownRequest is an approval request and how much of it is shown.
type shownRequest struct {
	activities.ApprovalRequest
	index  int
	detail detailLevel
	blocks []slack.Block
}

// approvalBlocks shows at least the title of every request, and enough to approve it if the message has room.
func (p *messageView) approvalBlocks(r *sizeBudget) (shown []*shownRequest, more []slack.Block) {
	n := min(len(p.approvalRequests), maxQuestions)
	for ; n >= 0; n-- {
		shown, more = nil, nil
		var least []slack.Block
		for i, q := range p.approvalRequests[:n] {
			a := &shownRequest{ApprovalRequest: q, index: i}
			a.blocks = p.blocksForRequest(i, q, detailTitleOnly)
			shown, least = append(shown, a), append(least, a.blocks...)
		}
		if left := len(p.approvalRequests) - n; left > 0 {
			more = []slack.Block{textSection(fmt.Sprintf("and %d more approval requests; run `stanch incidents %s`", left,
				p.incident.ID))}
		}
		if r.reserve(append(least, more...)...) {
			break
		}
	}
	p.expandDetails(r, shown, detailTitleOnly, detailExact)
	p.expandDetails(r, shown, detailExact, detailFull)
	return shown, more
}

// expandDetails shows more of the requests, oldest first, while the message has room.
func (p *messageView) expandDetails(r *sizeBudget, shown []*shownRequest, from, to detailLevel) {
	for _, a := range shown {
		if a.detail != from {
			continue
		}
		wider := p.blocksForRequest(a.index, a.ApprovalRequest, to)
		if n := sizeBudget(totalJSONSize(wider) - totalJSONSize(a.blocks)); n <= *r {
			*r -= n
			a.detail, a.blocks = to, wider
		}
	}
}

// permittedChanges returns the changes that an approval permits, unabbreviated: one line per change, and at least one
// per plan.
func permittedChanges(q activities.ApprovalRequest) []string {
	var out []string
	for _, result := range q.Plans {
		before := len(out)
		for _, c := range result.Plan.Changes {
			if strings.TrimSpace(c) != "" {
				out = append(out, redact.EscapeControlChars(c))
			}
		}
		if len(out) == before {
			out = append(out, redact.EscapeControlChars(result.Plan.Action+" on "+result.Plan.TargetID))
		}
	}
	return out
}

// endMechanismText says what ends a lease by itself.
func endMechanismText(e playbooks.EndMechanism) string {
	if e == "" {
		return ", automatically"
	}
	return ": " + e.String()
}

// durationLines returns the durations of what an approval permits; a single line if they are equal.
func durationLines(q activities.ApprovalRequest) []listLine {
	var out []listLine
	for i, result := range q.Plans {
		if i > 0 &&
			slices.IndexFunc(
				q.Plans,
				func(r activities.PlanResult) bool { return r.Plan.Duration != q.Plans[0].Plan.Duration },
			) < 0 {
			break
		}
		l := listLine{label: "Undo", text: "after " + duration.Format(result.Plan.Duration) +
			endMechanismText(result.Plan.EndMechanism)}
		if result.Plan.Duration <= 0 {
			l.text = "not automatically"
		}
		out = append(out, l)
	}
	if len(out) == 1 && q.Plans[0].Plan.Duration <= 0 {
		return nil // irreversible actions say so themselves
	}
	for i := range out {
		if len(out) > 1 {
			out[i].text = fmt.Sprintf("%s on %s: %s", sanitizeText(q.Plans[i].Plan.Action, maxPartialChangeWeight),
				redact.EscapeControlChars(q.Plans[i].Plan.TargetID), out[i].text)
			out[i].neverTruncated = true
		}
	}
	return out
}

// uniqueLines returns each line that several plans share only once.
func uniqueLines(label string, all []string) []listLine {
	var out []listLine
	known := map[string]bool{}
	for _, s := range all {
		s = sanitizeText(s, maxWarningWeight)
		if strings.TrimSpace(s) == "" || known[s] {
			continue
		}
		known[s] = true
		out = append(out, listLine{label: label, text: s})
	}
	return out
}

// warningLines returns the reasons against an approval: warnings, and changes since an earlier request.
func warningLines(q activities.ApprovalRequest) []listLine {
	var all []string
	for _, result := range q.Plans {
		all = append(all, result.Plan.Warnings...)
	}
	return append(uniqueLines("Changed since the last request", q.ChangesSinceReplaced), uniqueLines("But", all)...)
}

// reasonLines returns why the approval is requested.
func reasonLines(q activities.ApprovalRequest, in string) []listLine {
	var all []string
	for _, result := range q.Plans {
		all = append(all, result.Decision.Reason)
	}
	out := uniqueLines("Reason", all)
	if n := len(out) - maxReasonLines; n > 0 {
		out = append(firstN(out, maxReasonLines),
			listLine{label: "Reason", text: fmt.Sprintf("and %d more reasons; run `stanch incidents %s`", n, in)})
	}
	return out
}

// blocksForRequest shows the changes, the approvers and the progress. A request that is not shown completely cannot be
// approved.
func (p *messageView) blocksForRequest(i int, q activities.ApprovalRequest, d detailLevel) []slack.Block {
	would := permittedChanges(q)
	var lines []listLine
	for _, c := range would {
		if d >= detailExact || d == detailPartial && len(lines) < maxPartialChanges &&
			textWeight(c) <= maxPartialChangeWeight {
			lines = append(lines, listLine{label: "Change", text: c, neverTruncated: true})
		}
	}
	switch {
	case d >= detailExact:
		lines = slices.Concat(lines, durationLines(q), warningLines(q))
		if d == detailFull {
			lines = append(lines, reasonLines(q, p.incident.ID)...)
		}
	default:
		lines = append(lines, listLine{label: "Not shown", neverTruncated: true, text: fmt.Sprintf(
			"%d of %d changes, which are too long for a message. `stanch incidents %s` shows all of them; `stanch approve %s` approves them.",
			len(would)-len(lines),
			len(would),
			p.incident.ID,
			p.incident.ID,
		)})
	}
	quorum := max(q.Approvers.Quorum, 1)
	progress := fmt.Sprintf("%d of %d approved", len(q.ApprovedBy), quorum)
	if len(q.ApprovedBy) > 0 {
		progress += " (" + strings.Join(q.ApprovedBy, ", ") + ")"
	}
	title, people := maxTextWeight, 200
	if d < detailExact {
		title, people = 100, 80
	}
	lines = append(lines, listLine{
		label: "Approvers",
		text: fmt.Sprintf("%s. %s. If it is not approved by %s UTC, the request is denied.",
			sanitizeText(q.Approvers.Describe(), people), sanitizeText(progress, people),
			q.Deadline.UTC().Format(time.TimeOnly)),
	})
	head := listLine{label: "Approval", text: sanitizeText(q.Title, title)}
	if q.Question != "" && d >= detailExact {
		head.text = sanitizeText(q.Title, maxWarningWeight) + ": " + sanitizeText(q.Question, maxTextWeight)
	}
	return []slack.Block{
		slack.NewDividerBlock(),
		slack.NewRichTextBlock("", head.render(2*maxTextWeight), bulletList(lines, maxTextWeight)),
		p.answerButtons(i, q, would, quorum, d),
	}
}

// answerButtons returns the buttons of a request. Denying without reading everything is harmless.
func (p *messageView) answerButtons(i int, q activities.ApprovalRequest, would []string, quorum int,
	d detailLevel,
) slack.Block {
	r := ButtonReference{IncidentID: p.incident.ID, RequestID: q.QualifiedID(), PlansHash: q.PlansHash}
	value := func(k ButtonKind) string { r.Kind = k; return Sign(p.Signer, r) }
	var buttons []slack.BlockElement
	if d >= detailExact {
		buttons = append(buttons, withConfirmation(newButton(value(ButtonApprove), ButtonApprove, "Approve",
			slack.StylePrimary), "Approve exactly these changes?", confirmationText(would), "Approve"))
	}
	buttons = append(buttons, newButton(value(ButtonDeny), ButtonDeny, "Deny…", slack.StyleDanger))
	if d >= detailExact && p.BreakGlassEnabled && quorum > 1 {
		buttons = append(buttons, newButton(value(ButtonBreakGlass), ButtonBreakGlass, "Break glass…", slack.StyleDefault))
	}
	return slack.NewActionBlock(fmt.Sprintf("question/%d/%s", i, q.PlansHash[:min(16, len(q.PlansHash))]), buttons...)
}

// confirmationText returns the text of the confirmation dialog: all changes, or a reference to the list.
func confirmationText(would []string) string {
	if all := strings.Join(would, "; "); textWeight(all) <= maxConfirmRunes && len(would) > 0 &&
		sanitizeText(all, maxConfirmRunes) == all {
		return all
	}
	return fmt.Sprintf("Approve exactly the %s listed above.", cmp.Or(map[int]string{1: "one change"}[len(would)],
		fmt.Sprintf("%d changes", len(would))))
}
