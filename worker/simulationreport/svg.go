package simulationreport

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"stanch/playbooks"
	"stanch/worker/simulate"
)

// incidentTimeline is the drawing of an incident's timeline: one lane for detections, and one for each step on a
// target.
type incidentTimeline struct {
	simulate.Result
	Change           *simulate.IncidentChange
	Number           int
	Ticks            []timelineMark
	Lanes            []timelineLane
	Hidden           int           // number of lanes that are not drawn
	FirstContainment *timelineMark // first containment
	Stats            []summaryStat
}

type summaryStat struct{ Name, Value, Note string }

// timelineLane is a row of the drawing.
type timelineLane struct {
	Playbook     string // heading; "" for none
	StartedText  string // text below the heading
	Name         string
	Subtitle     string
	Bars         []timelineBar
	Marks        []timelineMark
	OutcomeMarks []timelineMark // outcomes, in words
}

// timelineBar and timelineMark have positions in percent of the width.
type timelineBar struct {
	LeftPercent, WidthPercent float64
	CSSClass, Text            string
	Tooltip                   string
}

type timelineMark struct {
	LeftPercent    float64
	CSSClass, Text string
	Tooltip        string
}

// maxTimelineLanes is the maximum number of lanes.
const maxTimelineLanes = 40

// logTimeAxis maps times to a logarithmic axis: seconds matter at the start, hours at the end.
type logTimeAxis struct{ endPosition float64 }

func newAxis(end int64) logTimeAxis { return logTimeAxis{math.Log1p(float64(max(end, 10_000)) / 500)} }

func (a logTimeAxis) percentAt(ms int64) float64 {
	return math.Round(1000*math.Min(1, math.Log1p(math.Max(0, float64(ms))/500)/a.endPosition)) / 10
}

// roundTicks returns round times with sufficient distance.
func (a logTimeAxis) roundTicks(end int64) []timelineMark {
	var out []timelineMark
	last := -20.0
	for _, t := range []struct {
		ms   int64
		text string
	}{
		{0, "0"},
		{1000, "1 s"},
		{10_000, "10 s"},
		{60_000, "1 min"},
		{600_000, "10 min"},
		{3_600_000, "1 h"},
		{4 * 3_600_000, "4 h"},
		{12 * 3_600_000, "12 h"},
		{48 * 3_600_000, "2 d"},
	} {
		if x := a.percentAt(t.ms); t.ms <= end && x-last >= 9 && x < 97 {
			out = append(out, timelineMark{LeftPercent: x, Text: t.text})
			last = x
		}
	}
	return out
}

func newIncidentTimeline(o simulate.RecordingOutcome, n int) incidentTimeline {
	r := o.Result
	p := incidentTimeline{Result: r, Change: o.Change, Number: n}
	a := newAxis(r.ClosesAtMS)
	p.Ticks = a.roundTicks(r.ClosesAtMS)
	if r.FirstContainmentMS != nil {
		p.FirstContainment = &timelineMark{LeftPercent: a.percentAt(*r.FirstContainmentMS), Text: "first containment " +
			simulate.FormatMoment(*r.FirstContainmentMS)}
	}
	p.Lanes = append(p.Lanes, detectionLane(r, a))
	byKey := map[string]int{}
	heading := ""
	steps := slices.Clone(r.Steps)
	slices.SortStableFunc(steps, func(a, b simulate.StepResult) int { return cmp.Compare(a.RunNumber, b.RunNumber) })
	for _, s := range steps {
		key := fmt.Sprint(s.RunNumber) + "\x00" + s.Step + "\x00" + s.Action + "\x00" + s.Target
		i, ok := byKey[key]
		if !ok {
			l := timelineLane{Name: s.Action, Subtitle: simulate.ShortTargetID(s.Target)}
			if run := fmt.Sprint(s.RunNumber, s.Playbook); run != heading {
				heading = run
				l.Playbook, l.StartedText = s.Playbook, "for a later detection, "+simulate.FormatMoment(s.AtMS)
				if s.AtMS < 1000 {
					l.StartedText = ""
				}
			}
			p.Lanes = append(p.Lanes, l)
			i = len(p.Lanes) - 1
			byKey[key] = i
			addApprovalMarks(&p.Lanes[i], r, s, a)
			addEffectBars(&p.Lanes[i], r, s, a)
		}
		p.Lanes[i].Marks = append(p.Lanes[i].Marks, timelineMark{
			LeftPercent: a.percentAt(s.AtMS),
			CSSClass:    string(s.Outcome), Tooltip: strings.TrimSpace(simulate.FormatMoment(s.AtMS) + " " +
				simulate.ReasonSuffix(s)),
		})
		if text := stepOutcomeText(s); !slices.ContainsFunc(p.Lanes[i].OutcomeMarks,
			func(m timelineMark) bool { return m.Text == text }) {
			p.Lanes[i].OutcomeMarks = append(p.Lanes[i].OutcomeMarks, timelineMark{CSSClass: string(s.Outcome), Text: text})
		}
	}
	if len(p.Lanes) > maxTimelineLanes {
		p.Hidden = len(p.Lanes) - maxTimelineLanes
		p.Lanes = p.Lanes[:maxTimelineLanes]
	}
	p.Stats = summaryStats(r)
	return p
}

// stepOutcomeText returns the outcome next to a step's lane.
func stepOutcomeText(s simulate.StepResult) string {
	if s.Assumed {
		return string(s.Outcome) + ", assumed"
	}
	return string(s.Outcome)
}

func detectionLane(r simulate.Result, a logTimeAxis) timelineLane {
	l := timelineLane{Name: "detections"}
	for _, e := range r.Events {
		if e.Kind != "detection" {
			continue
		}
		x := a.percentAt(e.AtMS)
		if n := len(l.Marks); n > 0 && l.Marks[n-1].LeftPercent == x {
			if len(l.Marks[n-1].Tooltip) < 600 {
				l.Marks[n-1].Tooltip += "\n" + e.Text
			}
			continue
		}
		l.Marks = append(l.Marks, timelineMark{
			LeftPercent: x, CSSClass: "detection",
			Tooltip: simulate.FormatMoment(e.AtMS) + " " +
				e.Text,
		})
	}
	if n := len(l.Marks); n > 1 {
		l.Subtitle = fmt.Sprintf("at %d times", n)
	}
	return l
}

func addApprovalMarks(l *timelineLane, r simulate.Result, s simulate.StepResult, a logTimeAxis) {
	for _, q := range r.ApprovalRequests {
		if q.RunNumber != s.RunNumber || q.Step != s.Step || s.Target != "" && !strings.Contains(q.Title, s.Action) {
			continue
		}
		left := a.percentAt(q.AskedAtMS)
		l.Bars = append(l.Bars, timelineBar{
			LeftPercent: left, WidthPercent: math.Max(1.2, a.percentAt(q.AskedAtMS+q.WaitedMS)-left), CSSClass: "asked",
			Text: "asked, " + simulate.FormatDuration(q.WaitedMS),
			Tooltip: fmt.Sprintf("%s %s asked for approval: %s. %s", simulate.FormatMoment(q.AskedAtMS), q.Approvers, q.Title,
				strings.Join(q.Answers, "; ")),
		})
	}
}

func addEffectBars(l *timelineLane, r simulate.Result, s simulate.StepResult, a logTimeAxis) {
	for _, e := range r.Effects {
		if e.Action != s.Action || e.Target != s.Target || e.AppliedAtMS > s.AtMS+1000 ||
			s.Outcome == playbooks.OutcomeSkipped {
			continue
		}
		to, class, text := e.UndoneAtMS, "held", "in force "+simulate.DescribeHeldDuration(e)
		if to == 0 {
			to, class, text = r.ClosesAtMS, "held open", "in force to the end"
		}
		if e.Assumed {
			class += " assumed"
			text += ", assumed"
		}
		left := a.percentAt(e.AppliedAtMS)
		l.Bars = append(l.Bars, timelineBar{
			LeftPercent: left, WidthPercent: math.Max(1.2, a.percentAt(to)-left),
			CSSClass: class, Text: text, Tooltip: fmt.Sprintf("%s on %s from %s to %s", e.Action,
				simulate.ShortTargetID(e.Target),
				simulate.FormatMoment(e.AppliedAtMS), simulate.FormatMoment(to)),
		})
	}
}

func summaryStats(r simulate.Result) []summaryStat {
	first := summaryStat{Name: "first containment", Value: "none"}
	if r.FirstContainmentMS != nil {
		first.Value = simulate.FormatDuration(*r.FirstContainmentMS)
		if *r.FirstContainmentMS < 100 {
			first.Value, first.Note = "immediately", "actions take no time in a simulation"
		}
	}
	longest := int64(0)
	for _, q := range r.ApprovalRequests {
		longest = max(longest, q.WaitedMS)
	}
	asked := summaryStat{Name: "approval requests", Value: fmt.Sprint(len(r.ApprovalRequests))}
	if len(r.ApprovalRequests) > 0 {
		asked.Note = "longest open " + simulate.FormatDuration(longest)
	}
	assumed := summaryStat{Name: "assumed results", Value: fmt.Sprint(len(r.AssumedResults))}
	if len(r.AssumedResults) > 0 {
		assumed.Note = "not in the recording"
	}
	var targets []string
	for _, e := range r.Effects {
		if !slices.Contains(targets, e.Target) {
			targets = append(targets, e.Target)
		}
	}
	contained := summaryStat{Name: "containments", Value: fmt.Sprint(len(r.Effects))}
	if n := len(targets); n > 0 {
		contained.Note = "on " + simulate.Pluralize(n, "target", "targets")
	}
	return []summaryStat{first, contained, asked, assumed, {
		Name:  "closes after",
		Value: simulate.FormatDuration(r.ClosesAtMS),
	}}
}
