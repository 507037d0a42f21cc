package simulate

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"stanch/playbooks/display"
	"stanch/playbooks/recording"
	"stanch/sensors/duration"
)

// Loaded is a recording with where it is from.
type Loaded struct {
	File      string
	Recording recording.Recording
}

// All simulates recordings, as many at once as there are processors; the results are in their order.
func All(ctx context.Context, recordings []Loaded, o Options) []Result {
	out := make([]Result, len(recordings))
	m, err := New(o)
	if err != nil {
		for i := range recordings {
			out[i] = Broken(recordings[i].File, err)
		}
		return out
	}
	next := make(chan int)
	var working sync.WaitGroup
	for range max(1, min(runtime.GOMAXPROCS(0), len(recordings))) {
		working.Go(func() {
			for i := range next {
				out[i] = m.Run(ctx, recordings[i].File, recordings[i].Recording)
			}
		})
	}
	for i := range recordings {
		next <- i
	}
	close(next)
	working.Wait()
	return out
}

// Change is how one incident would go otherwise than with the baseline.
type Change struct {
	Recording string   `json:"recording"`
	Incident  string   `json:"incident"`
	Kinds     []string `json:"kinds"` // of ChangeKinds
	// First is the first decision that differs.
	First *Parting `json:"first,omitempty"`
	What  []string `json:"what"`
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Differences say how after goes otherwise than before: in what runs, what is asked, what becomes of each step, and how
// long it holds.
func Differences(before, after Result) []string {
	what, _ := differences(before, after)
	return what
}

func differences(before, after Result) (what, kinds []string) {
	add := func(kind string, lines ...string) {
		if len(lines) > 0 && !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
		what = append(what, lines...)
	}
	if before.Error != after.Error {
		add(ChangeError, fmt.Sprintf("it ended with %q, now with %q", before.Error, after.Error))
	}
	for _, p := range after.Playbooks {
		if !slices.Contains(before.Playbooks, p) {
			add(ChangePlaybooks, "playbook "+p+" runs now")
		}
	}
	for _, p := range before.Playbooks {
		if !slices.Contains(after.Playbooks, p) {
			add(ChangePlaybooks, "playbook "+p+" no longer runs")
		}
	}
	add(ChangeOutcome, stepChanges(before, after)...)
	add(ChangeEffect, effectChanges(before, after)...)
	add(ChangeQuestion, questionChanges(before, after)...)
	was, is := before.FirstContainmentMS, after.FirstContainmentMS
	switch {
	case was == nil && is != nil:
		add(ChangeTiming, fmt.Sprintf("the first containment comes after %s, and not never", ms(*is)))
	case was != nil && is == nil:
		add(ChangeTiming, fmt.Sprintf("nothing is contained; it was after %s", ms(*was)))
	case was != nil && max(*was-*is, *is-*was) >= 1000: // less is chance
		add(ChangeTiming, fmt.Sprintf("the first containment comes after %s, and not after %s", ms(*is), ms(*was)))
	}
	return what, kinds
}

func questionChanges(before, after Result) []string {
	asked := func(r Result) []string {
		var all []string
		for _, q := range r.Questions {
			all = append(all, fmt.Sprintf("%q of %s, quorum %d, within %s", q.Title, q.Approvers, q.Quorum, ms(q.TimeoutMS)))
		}
		slices.Sort(all)
		return all
	}
	was, is := asked(before), asked(after)
	var out []string
	for _, q := range is {
		if !slices.Contains(was, q) {
			out = append(out, "asks now: "+q)
		}
	}
	for _, q := range was {
		if !slices.Contains(is, q) {
			out = append(out, "no longer asks: "+q)
		}
	}
	return out
}

// ran are a result's steps by playbook, action and target, in order: a step that only moved is no change.
func ran(r Result) (map[string][]Step, []string) {
	out := map[string][]Step{}
	var order []string
	for _, s := range r.Steps {
		k := strings.Join([]string{s.Playbook, s.Action, s.Target}, "\x00")
		if out[k] == nil {
			order = append(order, k)
		}
		out[k] = append(out[k], s)
	}
	return out, order
}

// outcomesOf are what became of a playbook's action, on whatever targets.
func outcomesOf(r Result) map[string][]string {
	out := map[string][]string{}
	for _, s := range r.Steps {
		k := s.Playbook + "\x00" + s.Action
		kind, _, _ := strings.Cut(s.Target, ":")
		out[k] = append(out[k], kind+" "+string(s.Outcome))
	}
	for _, all := range out {
		slices.Sort(all)
	}
	return out
}

func stepChanges(before, after Result) []string {
	var out []string
	was, order := ran(before)
	is, more := ran(after)
	for _, k := range more {
		if was[k] == nil {
			order = append(order, k)
		}
	}
	as, now := outcomesOf(before), outcomesOf(after)
	for _, k := range order {
		name, _, _ := strings.Cut(k, "\x00")
		if of := k[:strings.LastIndexByte(k, '\x00')]; slices.Equal(as[of], now[of]) {
			continue // which of several pods the budget is spent on first is chance
		}
		if !slices.Contains(before.Playbooks, name) || !slices.Contains(after.Playbooks, name) {
			continue // it is said already that it runs now, or no longer
		}
		for i := range max(len(was[k]), len(is[k])) {
			switch {
			case i >= len(was[k]):
				s := is[k][i]
				out = append(out, fmt.Sprintf("%s: %s now %s", s.Playbook, step(s), because(s)))
			case i >= len(is[k]):
				s := was[k][i]
				out = append(out, fmt.Sprintf("%s: %s is gone (it was %s)", s.Playbook, step(s), s.Outcome))
			case was[k][i].Outcome != is[k][i].Outcome:
				s := is[k][i]
				out = append(out, fmt.Sprintf("%s: %s was %s, now %s", s.Playbook, step(s), was[k][i].Outcome, because(s)))
			}
		}
	}
	return out
}

func step(s Step) string {
	if s.Target == "" {
		return s.Action
	}
	return s.Action + " on " + short(s.Target)
}

func because(s Step) string {
	if s.Reason == "" {
		return string(s.Outcome)
	}
	return fmt.Sprintf("%s (%s)", s.Outcome, s.Reason)
}

// short is a target's id as it can be read in a line.
func short(target string) string { return display.ShortTargetID(target) }

func effectChanges(before, after Result) []string {
	var out []string
	for _, e := range after.Effects {
		for _, b := range before.Effects {
			if b.Action != e.Action || b.Target != e.Target {
				continue
			}
			if d := (e.ToMS - e.FromMS) - (b.ToMS - b.FromMS); max(d, -d) >= 1500 { // they are told to the second
				out = append(out, fmt.Sprintf("%s on %s holds for %s, and not for %s", e.Action, short(e.Target), held(e), held(b)))
			}
			if b.Params != e.Params {
				out = append(out, fmt.Sprintf("%s on %s has other parameters: %s, and not %s", e.Action, short(e.Target), cmp.Or(e.Params, "none"), cmp.Or(b.Params, "none")))
			}
			break
		}
	}
	return out
}

// held is how long an effect lasted, to the second.
func held(e Effect) string {
	return duration.Format((time.Duration(e.ToMS-e.FromMS) * time.Millisecond).Round(time.Second))
}

func ms(n int64) string { return duration.Format(time.Duration(n) * time.Millisecond) }
