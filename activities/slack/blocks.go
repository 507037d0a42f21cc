package slack

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/slack-go/slack"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/redact"
)

// Bounds of a message: Slack takes 50 blocks, and nobody reads more at three in the morning.
const (
	maxQuestions = 5
	maxLeases    = 6
	maxSteps     = 14
	maxReasons   = 6
	maxText      = 600
	maxHeader    = 140
)

func hashOf(blocks []slack.Block) string {
	raw, err := json.Marshal(blocks)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

// longID matches ids and hashes, of which nobody reads more than the beginning.
var longID = regexp.MustCompile(`[0-9a-f]{40,}`)

// text is literal: control characters, invisible ones and those that turn the direction are shown as dots.
func text(s string, n int) string {
	s = longID.ReplaceAllStringFunc(redact.Plain(s), func(id string) string { return id[:12] + "…" })
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

func words(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(text(s, maxText), nil)
}

func bold(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(text(s, maxText), &slack.RichTextSectionTextStyle{Bold: true})
}

func code(s string) *slack.RichTextSectionTextElement {
	return slack.NewRichTextSectionTextElement(text(s, maxText), &slack.RichTextSectionTextStyle{Code: true})
}

// section is one block of literal text.
func section(parts ...string) slack.Block {
	return slack.NewRichTextBlock("", slack.NewRichTextSection(words(strings.Join(parts, " "))))
}

func list(items ...*slack.RichTextSection) slack.RichTextElement {
	elements := make([]slack.RichTextElement, len(items))
	for i, item := range items {
		elements[i] = item
	}
	return slack.NewRichTextList(slack.RTEListBullet, 0, elements...)
}

func item(label, s string) *slack.RichTextSection {
	return slack.NewRichTextSection(bold(label+"  "), words(s))
}

// safe leaves letters, digits and a few signs of a text that Slack reads as markup.
func safe(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-./:, ", r) {
			return r
		}
		return '.'
	}, text(s, 160))
}

// line is the message in one line, for notifications, where blocks are not shown.
func (p *page) line() string {
	return fmt.Sprintf("%s: %s, %s in %s", p.in.ID, safe(string(p.in.Severity)), safe(string(p.in.Objective)), safe(p.in.Workload.String()))
}

// blocks are the whole message.
func (p *page) blocks() []slack.Block {
	in := p.in
	title := fmt.Sprintf("%s · %s · %s", strings.ToUpper(string(in.Severity)), in.Objective, in.Workload)
	if in.Drill {
		title = "DRILL · " + title
	}
	blocks := []slack.Block{slack.NewHeaderBlock(slack.NewTextBlockObject(slack.PlainTextType, text(title, maxHeader), false, false))}
	blocks = append(blocks, slack.NewRichTextBlock("what", slack.NewRichTextSection(words(in.Summary)), list(p.facts()...)))
	if done := p.done(); len(done) > 0 {
		blocks = append(blocks, slack.NewRichTextBlock("did", slack.NewRichTextSection(bold("What Stanch did")), list(done...)))
	}
	for i, l := range p.held() {
		if i == maxLeases {
			blocks = append(blocks, section("and more; `stanch leases` lists all"))
			break
		}
		blocks = append(blocks, p.lease(l)...)
	}
	for i, q := range p.pending {
		if i == maxQuestions {
			blocks = append(blocks, section(fmt.Sprintf("and %d more questions; `stanch incidents %s` shows them", len(p.pending)-i, in.ID)))
			break
		}
		blocks = append(blocks, slack.NewDividerBlock())
		blocks = append(blocks, p.question(i, q)...)
	}
	if in.Status == "open" {
		blocks = append(blocks, slack.NewDividerBlock(), p.hand())
	}
	return append(blocks, slack.NewContextBlock("", slack.NewTextBlockObject(slack.PlainTextType, redact.Plain(p.foot()), false, false)))
}

func (p *page) facts() []*slack.RichTextSection {
	in := p.in
	facts := []*slack.RichTextSection{item("Workload", in.Workload.String())}
	add := func(label, s string) {
		if strings.TrimSpace(s) != "" {
			facts = append(facts, item(label, s))
		}
	}
	if in.Workload.Image != "" || in.Workload.ImageDigest != "" {
		facts = append(facts, slack.NewRichTextSection(bold("Image  "), words(in.Workload.Image+" "), code(short(in.Workload.ImageDigest))))
	}
	add("Account", in.Workload.ServiceAccount)
	add("Node", in.Workload.Node)
	for _, d := range first(in.Detections, 3) {
		facts = append(facts, slack.NewRichTextSection(bold("Seen  "), words(fmt.Sprintf("%s ×%d: ", d.Title, d.Count)), code(d.What)))
	}
	facts = append(facts, item("Confidence", fmt.Sprintf("%.2f", in.Confidence)))
	for _, r := range first(in.Reasons, maxReasons) {
		add("Why", r)
	}
	for _, c := range first(in.Changes, 3) {
		add("Changed", c.What+", "+c.When.UTC().Format(time.DateTime)+" UTC")
	}
	if in.Context.Enriched && (in.Blast.SameDigestPods+in.Blast.SameNodePods > 0 || len(in.Context.Missing) == 0) {
		add("Blast radius", fmt.Sprintf("%d other pods with this image, %d pods on the node", in.Blast.SameDigestPods, in.Blast.SameNodePods))
	}
	for _, m := range first(in.Blast.MayDo, 4) {
		add("Its account may", m)
	}
	for _, m := range first(in.Context.Missing, 3) {
		add("Not known", m)
	}
	return facts
}

func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19] + "…"
	}
	if digest == "" {
		return "no digest"
	}
	return digest
}

func first[T any](all []T, n int) []T { return all[:min(len(all), n)] }

// done is what became of each step, the last ones if there are many.
func (p *page) done() []*slack.RichTextSection {
	var out []*slack.RichTextSection
	for _, run := range p.in.Playbooks {
		for _, s := range run.Steps {
			if s.Outcome == playbooks.OutcomeSkipped || s.Action == "parallel" {
				continue
			}
			out = append(out, item(s.Action, became(s)))
		}
		if run.Error != "" {
			out = append(out, item(run.Playbook, "failed: "+run.Error))
		}
	}
	for _, l := range p.in.Leases {
		if l.State != "ended" {
			continue
		}
		what := "ended"
		if l.Undone {
			what = "undone, and observed to be"
		}
		what += fmt.Sprintf(" at %s UTC", l.At.UTC().Format(time.TimeOnly))
		if l.Reason != "" {
			what += ": " + l.Reason
		}
		out = append(out, item(l.Action, what))
	}
	if e := len(p.in.Evidence); e > 0 {
		out = append(out, item("evidence", count(e, "piece", "kept")))
	}
	return out[max(0, len(out)-maxSteps):]
}

func count(n int, what, done string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s %s", n, what, done)
}

// became says in a person's words what became of a step.
func became(s playbooks.StepReport) string {
	said := map[playbooks.Outcome]string{
		playbooks.OutcomeChanged: "done", playbooks.OutcomeUnverified: "done, and not observed", playbooks.OutcomeUnchanged: "it was so already",
		playbooks.OutcomeProposed: "not done; proposed", playbooks.OutcomeDenied: "denied", playbooks.OutcomeRefused: "refused", playbooks.OutcomeFailed: "FAILED",
	}[s.Outcome]
	switch {
	case s.Reason == "":
		return said
	case s.Action == "approval" && s.Outcome == playbooks.OutcomeChanged:
		return s.Reason
	}
	return said + ": " + s.Reason
}

func (p *page) held() []playbooks.LeaseReport {
	return slices.DeleteFunc(slices.Clone(p.in.Leases), func(l playbooks.LeaseReport) bool { return l.State == "ended" })
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
	b.Confirm = slack.NewConfirmationBlockObject(plain(title, 90), plain(what, 280), plain(yes, 28), plain("Go back", 28))
	return b
}

// lease shows what holds, with the buttons that end it and let it last.
func (p *page) lease(l playbooks.LeaseReport) []slack.Block {
	observed := "observed to hold"
	if !l.Verified {
		observed = "NOT observed to hold"
	}
	line := fmt.Sprintf("%s, %s, until %s UTC. ", l.State, observed, l.Until.UTC().Format(time.DateTime))
	r := Reference{Incident: p.in.ID, Lease: l.ID}
	release, extend := r, r
	release.Kind, extend.Kind = KindRelease, KindExtend
	return []slack.Block{
		slack.NewRichTextBlock("", slack.NewRichTextSection(bold("Held: "+l.Action+"  "), words(l.Target+"  "), words(line), words(l.Reason))),
		slack.NewActionBlock("lease/"+l.ID,
			confirmed(button(Seal(p.Sealer, release), KindRelease, "Release", slack.StyleDefault), "Release it now?", l.Action+" of "+l.Target+" is undone at once.", "Release"),
			button(Seal(p.Sealer, extend), KindExtend, "Extend by 1 h", slack.StyleDefault)),
	}
}

// question shows exactly what a yes permits, who is asked, and how far it has come.
func (p *page) question(i int, q activities.Pending) []slack.Block {
	var would []*slack.RichTextSection
	for _, c := range q.Changed {
		would = append(would, item("Changed since", c))
	}
	for _, plan := range q.Plans {
		for _, c := range plan.Plan.Changes {
			would = append(would, item("Would", c))
		}
		if plan.Plan.For > 0 {
			would = append(would, item("Undone", "after "+brief(plan.Plan.For)+", by itself"))
		}
		for _, w := range plan.Plan.Warnings {
			would = append(would, item("But", w))
		}
		if plan.Decision.Reason != "" {
			would = append(would, item("Asked because", plan.Decision.Reason))
		}
	}
	would = first(would, 20)
	quorum := max(q.Approvers.Quorum, 1)
	progress := fmt.Sprintf("%d of %d agreed", len(q.Yes), quorum)
	if len(q.Yes) > 0 {
		progress += " (" + strings.Join(q.Yes, ", ") + ")"
	}
	would = append(would, item("Asked of", fmt.Sprintf("%s. %s. Nobody's answer until %s UTC means no.", q.Approvers.Who(), progress, q.Deadline.UTC().Format(time.TimeOnly))))
	head := []slack.RichTextSectionElement{bold("Asked: " + q.Title + "  ")}
	if q.Ask != "" {
		head = append(head, words(q.Ask))
	}
	r := Reference{Incident: p.in.ID, Question: q.ID, Hash: q.Hash}
	value := func(k Kind) string { r.Kind = k; return Seal(p.Sealer, r) }
	buttons := []slack.BlockElement{
		confirmed(button(value(KindApprove), KindApprove, "Approve", slack.StylePrimary), "Approve exactly this?", strings.Join(changes(q), "; "), "Approve"),
		button(value(KindDeny), KindDeny, "Deny…", slack.StyleDanger),
	}
	if p.BreakGlass && quorum > 1 {
		buttons = append(buttons, button(value(KindBreakGlass), KindBreakGlass, "Break the glass…", slack.StyleDefault))
	}
	return []slack.Block{
		slack.NewRichTextBlock("", slack.NewRichTextSection(head...), list(would...)),
		slack.NewActionBlock(fmt.Sprintf("question/%d/%s", i, q.Hash[:min(16, len(q.Hash))]), buttons...),
	}
}

// brief is a duration without the parts that are nothing.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func changes(q activities.Pending) []string {
	var out []string
	for _, plan := range q.Plans {
		out = append(out, plan.Plan.Changes...)
	}
	return out
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
		parts = append(parts, "CLOSED "+in.Closed.UTC().Format(time.DateTime)+" UTC")
	}
	if in.Owner != "" {
		parts = append(parts, "taken over by "+in.Owner)
	}
	if in.Judged != "" {
		parts = append(parts, in.Judged+", says "+in.JudgedBy)
	}
	if p.Head != nil {
		if head := p.Head(in.ID); head != "" {
			parts = append(parts, "manifest "+head)
		}
	}
	return strings.Join(parts, " · ")
}
