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

// detail is how much of a question is shown.
type detail int

const (
	// detailNone says what is asked and of whom, and that it must be read elsewhere: it can be denied.
	detailNone detail = iota
	// detailSome shows a few of the changes besides.
	detailSome
	// detailExact shows all that a yes permits and every warning: it can be approved.
	detailExact
	// detailWhole shows why it is asked, too.
	detailWhole
)

const (
	// maxSome and maxSomeText bound the changes that are shown of a question that is too much.
	maxSome     = 3
	maxSomeText = 200
	// maxConfirm is what the dialog before an approval holds.
	maxConfirm = 280
	maxWarning = 300
)

// asking is a question and what of it is shown so far.
type asking struct {
	activities.Pending
	at     int
	detail detail
	blocks []slack.Block
}

// questions shows each question at least so that nobody overlooks it, and so much that it can be approved where there
// is room for that.
func (p *page) questions(r *room) (shown []*asking, more []slack.Block) {
	n := min(len(p.pending), maxQuestions)
	for ; n >= 0; n-- {
		shown, more = nil, nil
		var least []slack.Block
		for i, q := range p.pending[:n] {
			a := &asking{Pending: q, at: i}
			a.blocks = p.question(i, q, detailNone)
			shown, least = append(shown, a), append(least, a.blocks...)
		}
		if left := len(p.pending) - n; left > 0 {
			more = []slack.Block{section(fmt.Sprintf("and %d more questions; `stanch incidents %s` shows them", left, p.in.ID))}
		}
		if r.take(append(least, more...)...) {
			break
		}
	}
	p.widen(r, shown, detailNone, detailExact)
	p.widen(r, shown, detailExact, detailWhole)
	return shown, more
}

// widen shows more of the questions that are shown so far, the oldest first, where there is room.
func (p *page) widen(r *room, shown []*asking, from, to detail) {
	for _, a := range shown {
		if a.detail != from {
			continue
		}
		wider := p.question(a.at, a.Pending, to)
		if n := room(sizes(wider) - sizes(a.blocks)); n <= *r {
			*r -= n
			a.detail, a.blocks = to, wider
		}
	}
}

// permits are the changes that a yes permits, each as it is: one line a change, and at least one a plan.
func permits(q activities.Pending) []string {
	var out []string
	for _, result := range q.Plans {
		before := len(out)
		for _, c := range result.Plan.Changes {
			if strings.TrimSpace(c) != "" {
				out = append(out, redact.EscapeControlChars(c))
			}
		}
		if len(out) == before {
			out = append(out, redact.EscapeControlChars(result.Plan.Action+" of "+result.Plan.Target))
		}
	}
	return out
}

// endsBy says what ends a lease by itself.
func endsBy(e playbooks.EndMechanism) string {
	if e == "" {
		return ", by itself"
	}
	return ": " + e.String()
}

// lasting says how long what a yes permits lasts: once if all of it lasts equally long.
func lasting(q activities.Pending) []line {
	var out []line
	for i, result := range q.Plans {
		if i > 0 && slices.IndexFunc(q.Plans, func(r activities.PlanResult) bool { return r.Plan.For != q.Plans[0].Plan.For }) < 0 {
			break
		}
		l := line{label: "Undone", words: "after " + duration.Format(result.Plan.For) + endsBy(result.Plan.Ends)}
		if result.Plan.For <= 0 {
			l.words = "not by itself"
		}
		out = append(out, l)
	}
	if len(out) == 1 && q.Plans[0].Plan.For <= 0 {
		return nil // what cannot be undone says so in its own words
	}
	for i := range out {
		if len(out) > 1 {
			out[i].words = fmt.Sprintf("%s of %s: %s", text(q.Plans[i].Plan.Action, maxSomeText), redact.EscapeControlChars(q.Plans[i].Plan.Target), out[i].words)
			out[i].exact = true
		}
	}
	return out
}

// once gives the lines that plans share a single time.
func once(label string, all []string) []line {
	var out []line
	known := map[string]bool{}
	for _, s := range all {
		s = text(s, maxWarning)
		if strings.TrimSpace(s) == "" || known[s] {
			continue
		}
		known[s] = true
		out = append(out, line{label: label, words: s})
	}
	return out
}

// cautions are what speaks against a yes: warnings, and what is different since the question was asked before.
func cautions(q activities.Pending) []line {
	var all []string
	for _, result := range q.Plans {
		all = append(all, result.Plan.Warnings...)
	}
	return append(once("Changed since", q.Changed), once("But", all)...)
}

// reasons are why it is asked at all.
func reasons(q activities.Pending, in string) []line {
	var all []string
	for _, result := range q.Plans {
		all = append(all, result.Decision.Reason)
	}
	out := once("Asked because", all)
	if n := len(out) - maxReasons; n > 0 {
		out = append(first(out, maxReasons), line{label: "Asked because", words: fmt.Sprintf("and %d reasons more; `stanch incidents %s` shows them", n, in)})
	}
	return out
}

// question shows what a yes permits, who is asked, and how far it has come. Nobody can approve what is not all shown.
func (p *page) question(i int, q activities.Pending, d detail) []slack.Block {
	would := permits(q)
	var lines []line
	for _, c := range would {
		if d >= detailExact || d == detailSome && len(lines) < maxSome && weightOf(c) <= maxSomeText {
			lines = append(lines, line{label: "Would", words: c, exact: true})
		}
	}
	switch {
	case d >= detailExact:
		lines = slices.Concat(lines, lasting(q), cautions(q))
		if d == detailWhole {
			lines = append(lines, reasons(q, p.in.ID)...)
		}
	default:
		lines = append(lines, line{label: "Not shown", exact: true, words: fmt.Sprintf(
			"%d of %d changes: this is too much for a message. `stanch incidents %s` shows all of it, `stanch approve %s` answers.",
			len(would)-len(lines), len(would), p.in.ID, p.in.ID)})
	}
	quorum := max(q.Approvers.Quorum, 1)
	progress := fmt.Sprintf("%d of %d said yes", len(q.Yes), quorum)
	if len(q.Yes) > 0 {
		progress += " (" + strings.Join(q.Yes, ", ") + ")"
	}
	title, people := maxText, 200
	if d < detailExact {
		title, people = 100, 80
	}
	lines = append(lines, line{label: "Asked of", words: fmt.Sprintf("%s. %s. Nobody's answer until %s UTC means no.",
		text(q.Approvers.Who(), people), text(progress, people), q.Deadline.UTC().Format(time.TimeOnly))})
	head := line{label: "Asked", words: text(q.Title, title)}
	if q.Ask != "" && d >= detailExact {
		head.words = text(q.Title, maxWarning) + ": " + text(q.Ask, maxText)
	}
	return []slack.Block{
		slack.NewDividerBlock(),
		slack.NewRichTextBlock("", head.show(2*maxText), bullets(lines, maxText)),
		p.answers(i, q, would, quorum, d),
	}
}

// answers are the buttons of a question. To deny what one has not read does no harm.
func (p *page) answers(i int, q activities.Pending, would []string, quorum int, d detail) slack.Block {
	r := Reference{Incident: p.in.ID, Question: q.Name(), Hash: q.Hash}
	value := func(k Kind) string { r.Kind = k; return Seal(p.Sealer, r) }
	var buttons []slack.BlockElement
	if d >= detailExact {
		buttons = append(buttons, confirmed(button(value(KindApprove), KindApprove, "Approve", slack.StylePrimary), "Approve exactly this?", exactly(would), "Approve"))
	}
	buttons = append(buttons, button(value(KindDeny), KindDeny, "Deny…", slack.StyleDanger))
	if d >= detailExact && p.BreakGlass && quorum > 1 {
		buttons = append(buttons, button(value(KindBreakGlass), KindBreakGlass, "Break the glass…", slack.StyleDefault))
	}
	return slack.NewActionBlock(fmt.Sprintf("question/%d/%s", i, q.Hash[:min(16, len(q.Hash))]), buttons...)
}

// exactly is what the dialog before an approval says: all changes, or that they are those of the list.
func exactly(would []string) string {
	if all := strings.Join(would, "; "); weightOf(all) <= maxConfirm && len(would) > 0 && text(all, maxConfirm) == all {
		return all
	}
	return fmt.Sprintf("Approve exactly the %s listed above.", cmp.Or(map[int]string{1: "one change"}[len(would)], fmt.Sprintf("%d changes", len(would))))
}
