package slack

import (
	"fmt"
	"strings"
	"time"

	"stanch/playbooks"
)

// Bounds of what is told: nobody reads more at three in the morning.
const (
	maxSteps   = 14
	maxReasons = 6
)

// facts are what is known, the most telling first.
func (p *page) facts() []line {
	in := p.in
	facts := []line{{label: "Workload", words: in.Workload.String()}}
	add := func(label, s string) {
		if strings.TrimSpace(s) != "" {
			facts = append(facts, line{label: label, words: s})
		}
	}
	if in.Workload.Image != "" || in.Workload.ImageDigest != "" {
		facts = append(facts, line{label: "Image", words: in.Workload.Image + " ", code: short(in.Workload.ImageDigest)})
	}
	add("Account", in.Workload.ServiceAccount)
	add("Node", in.Workload.Node)
	for _, d := range first(in.Detections, 3) {
		facts = append(facts, line{label: "Seen", words: fmt.Sprintf("%s ×%d: ", d.Title, d.Count), code: d.What})
	}
	add("Confidence", fmt.Sprintf("%.2f", in.Confidence))
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

// done is what became of each step, the last ones if there are many.
func (p *page) done() []line {
	var out []line
	for _, run := range p.in.Playbooks {
		for _, s := range run.Steps {
			if s.Outcome == playbooks.OutcomeSkipped || s.Action == "parallel" {
				continue
			}
			out = append(out, line{label: s.Action, words: became(s)})
		}
		if run.Error != "" {
			out = append(out, line{label: run.Playbook, words: "failed: " + run.Error})
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
		out = append(out, line{label: l.Action, words: what})
	}
	if e := len(p.in.Evidence); e > 0 {
		out = append(out, line{label: "evidence", words: count(e, "piece", "kept")})
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
