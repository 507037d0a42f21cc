package slack

import (
	"fmt"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/playbooks/display"
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
		facts = append(facts, line{label: "Seen", words: fmt.Sprintf("%s ×%d: ", d.Title, d.Count), code: d.Description})
	}
	add("Confidence", fmt.Sprintf("%.2f", in.Confidence))
	for _, r := range first(in.Reasons, maxReasons) {
		add("Why", r)
	}
	for _, c := range first(in.Changes, 3) {
		add("Changed", c.Description+", "+c.ChangedAt.UTC().Format(time.DateTime)+" UTC")
	}
	if in.Context.Enriched && (in.BlastRadius.SameDigestPodCount+in.BlastRadius.SameNodePodCount > 0 || len(in.Context.Missing) == 0) {
		add("Blast radius", fmt.Sprintf("%d other pods with this image, %d pods on the node", in.BlastRadius.SameDigestPodCount, in.BlastRadius.SameNodePodCount))
	}
	for _, m := range first(in.BlastRadius.DangerousPermissions, 4) {
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
			out = append(out, line{label: s.Action, words: display.DescribeStepOutcome(s)})
		}
		if run.Error != "" {
			out = append(out, line{label: run.Playbook, words: "failed: " + run.Error})
		}
	}
	for _, l := range p.in.Leases {
		if l.State != "ended" {
			continue
		}
		what := display.DescribeLease(l) + fmt.Sprintf(" at %s UTC", l.At.UTC().Format(time.TimeOnly))
		if l.Reason != "" {
			what += ": " + l.Reason
		}
		out = append(out, line{label: l.Action, words: what})
	}
	for _, r := range display.FindRefusedWhilePaused(p.in) {
		out = append(out, line{label: "Not contained", words: fmt.Sprintf("%s of %s was refused while new containments were paused; now: `%s`", r.Action, r.Target, r.RetryCommand)})
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
