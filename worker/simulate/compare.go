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

	"stanch/playbooks/recording"
)

// Loaded is a recording with where it is from.
type Loaded struct {
	File      string
	Recording recording.Recording
}

// All simulates recordings, as many at once as there are processors; the results are in their order.
func All(ctx context.Context, recordings []Loaded, o Options) []Result {
	out := make([]Result, len(recordings))
	next := make(chan int)
	var working sync.WaitGroup
	for range max(1, min(runtime.GOMAXPROCS(0), len(recordings))) {
		working.Go(func() {
			for i := range next {
				out[i] = Run(ctx, recordings[i].File, recordings[i].Recording, o)
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

// Report is what `stanch simulate -o json` prints.
type Report struct {
	Version int      `json:"version"`
	Results []Result `json:"results"`
	Changes []Change `json:"changes,omitempty"` // with a baseline
	Summary string   `json:"summary"`
}

// Change is how one incident would go otherwise than with the baseline.
type Change struct {
	Recording string   `json:"recording"`
	Incident  string   `json:"incident"`
	What      []string `json:"what"`
}

// NewReport sums results up; base is nil without a baseline.
func NewReport(results, base []Result) Report {
	r := Report{Version: 1, Results: results}
	failed := 0
	for _, one := range results {
		if one.Error != "" {
			failed++
		}
	}
	if base == nil {
		r.Summary = count(results)
	} else {
		r.Changes = []Change{}
		for i := range results {
			if what := Differences(base[i], results[i]); len(what) > 0 {
				r.Changes = append(r.Changes, Change{Recording: results[i].Recording, Incident: results[i].Incident, What: what})
			}
		}
		r.Summary = fmt.Sprintf("this edit changes %d of %s", len(r.Changes), plural(len(results), "incident", "incidents"))
	}
	if failed > 0 {
		r.Summary += fmt.Sprintf("; %d could not be simulated to the end", failed)
	}
	return r
}

func count(results []Result) string {
	effects, asked, missing := 0, 0, 0
	for _, r := range results {
		effects += len(r.Effects)
		asked += len(r.Questions)
		missing += len(r.Missing)
	}
	text := fmt.Sprintf("%s: %s, %s", plural(len(results), "incident", "incidents"), plural(effects, "containment", "containments"), plural(asked, "question", "questions"))
	if missing > 0 {
		text += fmt.Sprintf("; %d answers are not in the recordings", missing)
	}
	return text
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
	var out []string
	if before.Error != after.Error {
		out = append(out, fmt.Sprintf("it ended with %q, now with %q", before.Error, after.Error))
	}
	for _, p := range after.Playbooks {
		if !slices.Contains(before.Playbooks, p) {
			out = append(out, "playbook "+p+" runs now")
		}
	}
	for _, p := range before.Playbooks {
		if !slices.Contains(after.Playbooks, p) {
			out = append(out, "playbook "+p+" no longer runs")
		}
	}
	out = append(out, stepChanges(before, after)...)
	out = append(out, effectChanges(before, after)...)
	asked := func(r Result) []string {
		var all []string
		for _, q := range r.Questions {
			all = append(all, fmt.Sprintf("%q of %s, quorum %d, within %s", q.Title, q.Approvers, q.Quorum, ms(q.TimeoutMS)))
		}
		slices.Sort(all)
		return all
	}
	was, is := asked(before), asked(after)
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

func stepChanges(before, after Result) []string {
	var out []string
	was, order := ran(before)
	is, more := ran(after)
	for _, k := range more {
		if was[k] == nil {
			order = append(order, k)
		}
	}
	for _, k := range order {
		name, _, _ := strings.Cut(k, "\x00")
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
func short(target string) string {
	kind, uid, ok := strings.Cut(target, ":")
	if !ok {
		return target
	}
	return kind + " " + uid[:min(12, len(uid))]
}

func effectChanges(before, after Result) []string {
	var out []string
	for _, e := range after.Effects {
		for _, b := range before.Effects {
			if b.Action != e.Action || b.Target != e.Target {
				continue
			}
			was, is := held(b), held(e)
			if d := was - is; d > time.Second || d < -time.Second {
				out = append(out, fmt.Sprintf("%s on %s holds for %s, and not for %s", e.Action, short(e.Target), is, was))
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
func held(e Effect) time.Duration {
	return (time.Duration(e.ToMS-e.FromMS) * time.Millisecond).Round(time.Second)
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
