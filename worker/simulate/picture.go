package simulate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"stanch/playbooks"
)

// picture is an incident with its timeline as it is drawn: a lane for what was detected, one for each step on a target.
type picture struct {
	Result
	Change *Change
	N      int
	Ticks  []mark
	Lanes  []lane
	Hidden int   // lanes that are not drawn
	First  *mark // the first containment
	Stats  []stat
}

type stat struct{ Name, Value, Note string }

// lane is a row of the timeline.
type lane struct {
	Playbook string // a heading, where it is not ""
	Started  string // under the heading
	Name     string
	Sub      string
	Bars     []bar
	Marks    []mark
	Ends     []mark // what became of it, in words
}

// bar and mark are placed in percent of the width.
type bar struct {
	Left, Width float64
	Class, Text string
	Title       string
}

type mark struct {
	Left        float64
	Class, Text string
	Title       string
}

// maxLanes bounds a picture.
const maxLanes = 40

// axis places moments on a logarithmic line: seconds matter at the beginning, hours at the end.
type axis struct{ end float64 }

func newAxis(end int64) axis { return axis{math.Log1p(float64(max(end, 10_000)) / 500)} }

func (a axis) x(ms int64) float64 {
	return math.Round(1000*math.Min(1, math.Log1p(math.Max(0, float64(ms))/500)/a.end)) / 10
}

// ticks are round moments that stand apart.
func (a axis) ticks(end int64) []mark {
	var out []mark
	last := -20.0
	for _, t := range []struct {
		ms   int64
		text string
	}{{0, "0"}, {1000, "1 s"}, {10_000, "10 s"}, {60_000, "1 min"}, {600_000, "10 min"}, {3_600_000, "1 h"}, {4 * 3_600_000, "4 h"}, {12 * 3_600_000, "12 h"}, {48 * 3_600_000, "2 d"}} {
		if x := a.x(t.ms); t.ms <= end && x-last >= 9 && x < 97 {
			out = append(out, mark{Left: x, Text: t.text})
			last = x
		}
	}
	return out
}

func draw(o Outcome, n int) picture {
	r := o.Result
	p := picture{Result: r, Change: o.Change, N: n}
	a := newAxis(r.EndsMS)
	p.Ticks = a.ticks(r.EndsMS)
	if r.FirstContainmentMS != nil {
		p.First = &mark{Left: a.x(*r.FirstContainmentMS), Text: "first containment " + at(*r.FirstContainmentMS)}
	}
	p.Lanes = append(p.Lanes, detected(r, a))
	byKey := map[string]int{}
	heading := ""
	steps := slices.Clone(r.Steps)
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(a.Run, b.Run) })
	for _, s := range steps {
		key := fmt.Sprint(s.Run) + "\x00" + s.Step + "\x00" + s.Action + "\x00" + s.Target
		i, ok := byKey[key]
		if !ok {
			l := lane{Name: s.Action, Sub: short(s.Target)}
			if run := fmt.Sprint(s.Run, s.Playbook); run != heading {
				heading = run
				l.Playbook, l.Started = s.Playbook, "for what was detected later, "+at(s.AtMS)
				if s.AtMS < 1000 {
					l.Started = ""
				}
			}
			p.Lanes = append(p.Lanes, l)
			i = len(p.Lanes) - 1
			byKey[key] = i
			questions(&p.Lanes[i], r, s, a)
			effects(&p.Lanes[i], r, s, a)
		}
		p.Lanes[i].Marks = append(p.Lanes[i].Marks, mark{Left: a.x(s.AtMS), Class: string(s.Outcome), Title: strings.TrimSpace(at(s.AtMS) + " " + because(s))})
		if text := said(s); !slices.ContainsFunc(p.Lanes[i].Ends, func(m mark) bool { return m.Text == text }) {
			p.Lanes[i].Ends = append(p.Lanes[i].Ends, mark{Class: string(s.Outcome), Text: text})
		}
	}
	if len(p.Lanes) > maxLanes {
		p.Hidden = len(p.Lanes) - maxLanes
		p.Lanes = p.Lanes[:maxLanes]
	}
	p.Stats = stats(r)
	return p
}

// said is a step's outcome beside its lane.
func said(s Step) string {
	if s.Assumed {
		return string(s.Outcome) + ", assumed"
	}
	return string(s.Outcome)
}

func detected(r Result, a axis) lane {
	l := lane{Name: "detections"}
	for _, e := range r.Events {
		if e.Kind != "detection" {
			continue
		}
		x := a.x(e.AtMS)
		if n := len(l.Marks); n > 0 && l.Marks[n-1].Left == x {
			if len(l.Marks[n-1].Title) < 600 {
				l.Marks[n-1].Title += "\n" + e.What
			}
			continue
		}
		l.Marks = append(l.Marks, mark{Left: x, Class: "detection", Title: at(e.AtMS) + " " + e.What})
	}
	if n := len(l.Marks); n > 1 {
		l.Sub = fmt.Sprintf("at %d moments", n)
	}
	return l
}

func questions(l *lane, r Result, s Step, a axis) {
	for _, q := range r.Questions {
		if q.Run != s.Run || q.Step != s.Step || s.Target != "" && !strings.Contains(q.Title, s.Action) {
			continue
		}
		left := a.x(q.AtMS)
		l.Bars = append(l.Bars, bar{
			Left: left, Width: math.Max(1.2, a.x(q.AtMS+q.WaitedMS)-left), Class: "asked", Text: "asked, " + span(q.WaitedMS),
			Title: fmt.Sprintf("%s %s asked: %s. %s", at(q.AtMS), q.Approvers, q.Title, strings.Join(q.Answers, "; ")),
		})
	}
}

func effects(l *lane, r Result, s Step, a axis) {
	for _, e := range r.Effects {
		if e.Action != s.Action || e.Target != s.Target || e.FromMS > s.AtMS+1000 || s.Outcome == playbooks.OutcomeSkipped {
			continue
		}
		to, class, text := e.ToMS, "held", "held "+held(e)
		if to == 0 {
			to, class, text = r.EndsMS, "held open", "held to the end"
		}
		if e.Assumed {
			class += " assumed"
			text += ", assumed"
		}
		left := a.x(e.FromMS)
		l.Bars = append(l.Bars, bar{Left: left, Width: math.Max(1.2, a.x(to)-left), Class: class, Text: text, Title: fmt.Sprintf("%s on %s from %s to %s", e.Action, short(e.Target), at(e.FromMS), at(to))})
	}
}

func stats(r Result) []stat {
	first := stat{Name: "first containment", Value: "none"}
	if r.FirstContainmentMS != nil {
		first.Value = span(*r.FirstContainmentMS)
		if *r.FirstContainmentMS < 100 {
			first.Value, first.Note = "at once", "actions take no time here"
		}
	}
	longest := int64(0)
	for _, q := range r.Questions {
		longest = max(longest, q.WaitedMS)
	}
	asked := stat{Name: "questions", Value: fmt.Sprint(len(r.Questions))}
	if len(r.Questions) > 0 {
		asked.Note = "longest open " + span(longest)
	}
	assumed := stat{Name: "answers assumed", Value: fmt.Sprint(len(r.Missing))}
	if len(r.Missing) > 0 {
		assumed.Note = "the recording has none"
	}
	var targets []string
	for _, e := range r.Effects {
		if !slices.Contains(targets, e.Target) {
			targets = append(targets, e.Target)
		}
	}
	contained := stat{Name: "containments", Value: fmt.Sprint(len(r.Effects))}
	if n := len(targets); n > 0 {
		contained.Note = "on " + plural(n, "target", "targets")
	}
	return []stat{first, contained, asked, assumed, {Name: "closes after", Value: span(r.EndsMS)}}
}
