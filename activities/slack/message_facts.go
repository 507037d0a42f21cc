package slack

import (
	"fmt"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/playbooks/display"
)

// Limits that keep the message readable.
const (
	maxStepLines   = 14
	maxReasonLines = 6
)

// factLines returns what is known, most important first.
func (p *messageView) factLines() []listLine {
	in := p.incident
	facts := []listLine{{label: "Workload", text: in.Workload.String()}}
	add := func(label, s string) {
		if strings.TrimSpace(s) != "" {
			facts = append(facts, listLine{label: label, text: s})
		}
	}
	if in.Workload.Image != "" || in.Workload.ImageDigest != "" {
		facts = append(facts, listLine{
			label: "Image", text: in.Workload.Image + " ",
			code: shortDigest(in.Workload.ImageDigest),
		})
	}
	add("Service account", in.Workload.ServiceAccount)
	add("Node", in.Workload.Node)
	for _, d := range firstN(in.Detections, 3) {
		text := fmt.Sprintf("%s ×%d: ", d.Title, d.Count)
		facts = append(facts, listLine{label: "Detection", text: text, code: d.Description})
	}
	add("Confidence", fmt.Sprintf("%.2f", in.Confidence))
	for _, r := range firstN(in.Reasons, maxReasonLines) {
		add("Confidence reason", r)
	}
	for _, c := range firstN(in.Changes, 3) {
		add("Changed", c.Description+", "+c.ChangedAt.UTC().Format(time.DateTime)+" UTC")
	}
	if in.Context.Enriched && (in.BlastRadius.SameDigestPodCount+in.BlastRadius.SameNodePodCount > 0 ||
		len(in.Context.Missing) == 0) {
		add("Blast radius", fmt.Sprintf("%d other pods with this image, %d pods on the node",
			in.BlastRadius.SameDigestPodCount, in.BlastRadius.SameNodePodCount))
	}
	for _, m := range firstN(in.BlastRadius.DangerousPermissions, 4) {
		add("Dangerous permissions", m)
	}
	for _, m := range firstN(in.Context.Missing, 3) {
		add("Unknown", m)
	}
	return facts
}

func shortDigest(digest string) string {
	if len(digest) > 19 {
		return digest[:19] + "…"
	}
	if digest == "" {
		return "no digest"
	}
	return digest
}

// stepLines returns the outcome of each step; only the last ones if there are many.
func (p *messageView) stepLines() []listLine {
	var out []listLine
	for _, run := range p.incident.Playbooks {
		for _, s := range run.Steps {
			if s.Outcome == playbooks.OutcomeSkipped || s.Action == "parallel" {
				continue
			}
			out = append(out, listLine{label: s.Action, text: display.DescribeStepOutcome(s)})
		}
		if run.Error != "" {
			out = append(out, listLine{label: run.Playbook, text: "failed: " + run.Error})
		}
	}
	for _, l := range p.incident.Leases {
		if l.State != "ended" {
			continue
		}
		what := display.DescribeLease(l) + fmt.Sprintf(" at %s UTC", l.At.UTC().Format(time.TimeOnly))
		if l.Reason != "" {
			what += ": " + l.Reason
		}
		out = append(out, listLine{label: l.Action, text: what})
	}
	for _, r := range display.FindRefusedWhilePaused(p.incident) {
		out = append(out, listLine{
			label: "Not contained",
			text: fmt.Sprintf("%s on %s was refused while new containments were paused; to apply it now: `%s`", r.Action,
				r.Target, r.RetryCommand),
		})
	}
	if e := len(p.incident.Evidence); e > 0 {
		out = append(out, listLine{label: "evidence", text: countText(e, "artifact", "stored")})
	}
	return out[max(0, len(out)-maxStepLines):]
}

func countText(n int, what, done string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s %s", n, what, done)
}
